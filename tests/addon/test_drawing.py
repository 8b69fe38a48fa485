# SPDX-License-Identifier: GPL-3.0-or-later
"""Sentences are wrapped to the width of the sidebar, whatever their language."""

import pytest

pytest.importorskip("bpy")

from addon import drawing  # noqa: E402

TEXTS = (
    "AgX shows colors paler than they are; Standard shows them as made.",
    "在图中可见的地方，基础色会按均匀光照跟随它。",
    "그림에 보이는 곳의 베이스 컬러는 고른 빛을 받은 것처럼 이를 따릅니다.",
    "Карты готовы, но материал отменён: /home/artist/a-very-long-folder-name/without-any-space/in-it/maps",
)


def width(text):  # ideographs and syllables are about twice as wide as letters
    return sum(12.0 if ord(letter) > 0x2E80 else 6.0 for letter in text)


@pytest.mark.parametrize("limit", [40.0, 150.0, 1000.0])
@pytest.mark.parametrize("text", TEXTS)
def test_no_line_is_wider_and_nothing_is_lost(text, limit):
    lines = drawing.wrapped(text, width, limit)
    assert all(width(line) <= limit for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(line and line == line.strip() for line in lines)
    if limit == 150.0 and "/" not in text:  # as few lines as there can be, or one more
        assert len(lines) <= width(text) / limit + 2


def test_words_stay_whole_where_they_can_and_a_stop_stays_with_its_word():
    assert drawing.wrapped("one two three", width, 42) == ["one two", "three"]
    assert drawing.wrapped("光照跟随它。", width, 60) == ["光照跟随", "它。"]
    assert drawing.wrapped("", width, 60) == [""]
