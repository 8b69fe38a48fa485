# SPDX-License-Identifier: GPL-3.0-or-later
"""What no camera sees: filled from the nearest seen surface in 3D."""

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


def test_with_very_many_points_nearly_the_nearest(monkeypatch):
    monkeypatch.setattr(unseen, "AT_MOST", 500)
    generator = torch.Generator().manual_seed(1)
    position = torch.rand(4000, 3, generator=generator)
    hidden = torch.arange(4000) % 5 == 0
    found = unseen.nearest_seen(position, hidden)
    assert found.max() < int((~hidden).sum())
    distance = (position[~hidden][found] - position[hidden]).norm(dim=1)
    assert distance.median() < 0.1 and distance.max() < 0.3
