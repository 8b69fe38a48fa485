# SPDX-License-Identifier: GPL-3.0-or-later
"""What no camera sees: filled from the nearest seen surface in 3D."""

import time

import pytest
import torch

from backend import unseen


def test_hidden_points_take_the_nearest_seen_one():
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(3000, 3, generator=generator)
    hidden = torch.rand(3000, generator=generator) < 0.3
    found = unseen.nearest_seen(position, hidden)
    distance = torch.cdist(position[hidden].double(), position[~hidden].double())
    assert found.shape == (int(hidden.sum()),)
    assert torch.allclose(distance.gather(1, found[:, None])[:, 0], distance.amin(1))


@pytest.mark.parametrize(
    "limits", [{"SEEN_AT_MOST": 500}, {"ASKED_AT_MOST": 300}, {"SEEN_AT_MOST": 500, "ASKED_AT_MOST": 300}]
)
def test_with_very_many_points_nearly_the_nearest(limits, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(unseen, name, value)
    generator = torch.Generator().manual_seed(1)
    position = torch.rand(4000, 3, generator=generator)
    hidden = torch.arange(4000) % 5 == 0
    found = unseen.nearest_seen(position, hidden)
    assert found.shape == (800,) and found.max() < 3200
    distance = (position[~hidden][found] - position[hidden]).norm(dim=1)
    assert distance.median() < 0.13 and distance.max() < 0.4


def test_inside_a_closed_shell_it_takes_no_longer():
    """Everything is about equally near there: the worst there is for a search tree."""
    generator = torch.Generator().manual_seed(2)
    position = torch.nn.functional.normalize(torch.randn(120_000, 3, generator=generator), dim=1)
    hidden = torch.arange(120_000) < 60_000
    position[hidden] *= 0.6
    start = time.process_time()
    found = unseen.nearest_seen(position, hidden)
    assert time.process_time() - start < 5
    off = (position[~hidden][found] - position[hidden] / 0.6).norm(dim=1)
    assert off.median() < 0.04
