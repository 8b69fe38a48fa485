# SPDX-License-Identifier: Apache-2.0
"""Words about the view, in the object's frame: azimuth 0 is the object's front (-Y). No torch here."""

from __future__ import annotations


class PromptError(ValueError):
    """The prompt cannot be used; a sentence for a person that says what to do."""


def view_words(azimuth_deg: float, elevation_deg: float) -> str:
    """DreamFusion's bins: overhead above 60 degrees, front and back within 45 degrees of -Y and +Y."""
    if elevation_deg > 60:
        return "overhead view"
    off_front = abs((azimuth_deg + 180) % 360 - 180)
    if off_front < 45:
        return "front view"
    return "back view" if off_front > 135 else "side view"
