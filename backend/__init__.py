# SPDX-License-Identifier: Apache-2.0
"""Patina's backend: runs in its own Python with torch, never inside Blender."""
