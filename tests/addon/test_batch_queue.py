# SPDX-License-Identifier: GPL-3.0-or-later
"""A wish of a batch is known again after an update."""

from addon import batch_queue, protocol


def test_a_wish_keeps_its_name_when_requests_get_new_fields():
    request = protocol.TextureRequest(prompt="red brick", seed=3, quality="high")
    assert batch_queue.item_id("Chair", "out/red", request) == "Chair-7eb70f1b85"
    other = protocol.TextureRequest(prompt="red brick", seed=4, quality="high")
    assert batch_queue.item_id("Chair", "out/red", other) != "Chair-7eb70f1b85"
