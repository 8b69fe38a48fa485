# SPDX-License-Identifier: GPL-3.0-or-later
"""The wire and the job folder: what is written is read back, and what is wrong is refused by name."""

import dataclasses
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from addon import protocol

ROOT = Path(__file__).resolve().parents[1]
HOLD_LOCK = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from addon import protocol
protocol.take_lock(pathlib.Path(sys.argv[2]), "me")
print("held", flush=True)
time.sleep(60)
"""
EXAMPLES = [
    protocol.Started("0.1.0", "cpu", "built-in", 400, 20),
    protocol.Progress("Painting", 3, 400, 0.01, 40.5),
    protocol.Progress("Painting", 3, 400, 0.01, None),
    protocol.Preview(1, 20, {"base_color": "preview/0001-base_color.png"}),
    protocol.Checkpoint(20),
    protocol.Warning('unknown words: "blorb", \u2028 and ü'),
    protocol.Done({"base_color": "maps/base_color.png"}, "report.json"),
    protocol.Cancelled(7, {}),
    protocol.Paused("host gone", 7),
    protocol.Failed("bad_mesh", "no faces", "add one"),
    protocol.Pause(),
    protocol.Cancel(),
    protocol.Run("/tmp/job", 1),
    protocol.ReleaseMemory(),
    protocol.Shutdown(),
]
REQUEST_V1 = {
    "prompt": "rusty iron",
    "negative_prompt": "",
    "object_name": "Suzanne",
    "seed": 3,
    "quality": "draft",
    "texture_size": 1024,
    "model": "built-in",
    "pattern_scale": 1.0,
    "guidance": "clamped",
    "guidance_scale": None,
    "steps": None,
    "views": None,
    "render_size": None,
    "device": "auto",
    "protocol_version": 1,
}


def family_of(message):
    for family in (protocol.Event, protocol.Control, protocol.Command):
        if type(message) in typing.get_args(family):
            return family
    raise AssertionError(message)


def test_examples_name_every_message():
    every = {cls for f in (protocol.Event, protocol.Control, protocol.Command) for cls in typing.get_args(f)}
    assert {type(example) for example in EXAMPLES} == every


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire(message, tmp_path):
    path = tmp_path / "lines.jsonl"
    protocol.append_line(path, message)
    assert protocol.read_lines(path, 0, family_of(message)) == ([message], path.stat().st_size)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_missing_and_extra_fields_are_refused_by_name(message):
    fields = json.loads(protocol.encode(message))
    with pytest.raises(protocol.ProtocolError, match="unheard"):
        protocol.decode(json.dumps(fields | {"unheard": 1}), family_of(message))
    for name in fields.keys() - {"type"}:
        rest = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(protocol.ProtocolError, match=name):
            protocol.decode(json.dumps(rest), family_of(message))


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        "{}",
        '{"type": "Unknown"}',
        '{"type": ["Checkpoint"], "step": 1}',
        '{"type": "Checkpoint", "step": "1"}',
        '{"type": "Checkpoint", "step": true}',
        '{"type": "Progress", "stage": "x", "step": 1, "total_steps": 2, "fraction": NaN, "seconds_left": null}',
        '{"type": "Preview", "number": 1, "step": 1, "maps": {"base_color": 3}}',
        '{"type": "Failed", "kind": "whim", "message": "", "hint": ""}',
        "[" * 5000,
    ],
)
def test_wrong_lines_raise_protocol_errors(line):
    with pytest.raises(protocol.ProtocolError):
        protocol.decode(line, protocol.Event)


def test_a_line_without_newline_is_not_read_yet(tmp_path):
    path = tmp_path / "events.jsonl"
    whole = protocol.encode(protocol.Checkpoint(1)).encode()
    path.write_bytes(whole + whole[:-5])
    messages, offset = protocol.read_lines(path, 0, protocol.Event)
    assert (messages, offset) == ([protocol.Checkpoint(1)], len(whole))
    path.write_bytes(whole + whole)
    assert protocol.read_lines(path, offset, protocol.Event) == ([protocol.Checkpoint(1)], 2 * len(whole))


def test_a_flood_is_read_in_bounded_pieces(tmp_path):
    path = tmp_path / "events.jsonl"
    line = protocol.encode(protocol.Checkpoint(1)).encode()
    path.write_bytes(line * 100)
    messages, offset = protocol.read_lines(path, 0, protocol.Event, limit=len(line) * 10 + 3)
    assert len(messages) == 10 and offset == len(line) * 10
    path.write_bytes(b"x" * 1000)
    with pytest.raises(protocol.ProtocolError, match="over 500 bytes"):
        protocol.read_lines(path, 0, protocol.Event, limit=500)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "  "),
        ("prompt", "x" * 2001),
        ("seed", -1),
        ("quality", "best"),
        ("texture_size", 1000),
        ("pattern_scale", 0.0),
        ("pattern_scale", float("nan")),
        ("steps", 0),
        ("device", "tpu"),
        ("file_format", "tiff"),
        ("bit_depth", 32),
        ("bit_depth", 12),
        ("rasterizer", "gpu"),
        ("strength", 0.0),
        ("mask_border", 2.0),
        ("locked_maps", ["normal"]),
        ("locked_maps", "normal"),
        ("protocol_version", 99),
    ],
)
def test_a_request_refuses_wrong_values_by_name(field, value):
    with pytest.raises(protocol.ProtocolError, match=field):
        protocol.TextureRequest(**(REQUEST_V1 | {"protocol_version": protocol.PROTOCOL_VERSION, field: value}))


def test_formats_have_depths_of_their_own():
    assert protocol.TextureRequest(prompt="x", file_format="exr", bit_depth=32).bit_depth == 32
    assert protocol.TextureRequest(prompt="x", bit_depth=16).file_format == "png"
    with pytest.raises(protocol.ProtocolError, match="bit_depth must be 16 or 32 in exr files"):
        protocol.TextureRequest(prompt="x", file_format="exr", bit_depth=8)


def test_a_request_of_version_1_is_still_read(tmp_path):
    (tmp_path / "request.json").write_text(json.dumps(REQUEST_V1))
    request = protocol.JobFolder(tmp_path).read_request()
    assert request.prompt == "rusty iron" and request.seed == 3
    assert (request.file_format, request.bit_depth, request.rasterizer) == ("png", None, "auto")
    assert not request.start_maps and request.strength == 1.0 and request.locked_maps == []
    assert request.protocol_version == protocol.PROTOCOL_VERSION
    (tmp_path / "request.json").write_text(json.dumps(REQUEST_V1 | {"unheard": 1}))
    with pytest.raises(protocol.ProtocolError, match="unheard"):
        protocol.JobFolder(tmp_path).read_request()


@pytest.mark.parametrize("maps", [["color"], list(protocol.MAP_NAMES)])
def test_maps_that_cannot_be_locked_are_refused(maps):
    with pytest.raises(protocol.ProtocolError, match="locked_maps"):
        protocol.TextureRequest(prompt="x", start_maps=True, locked_maps=maps)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xfe", b'{"protocol_version": 7}', b"{}", b"[" * 5000])
def test_an_unreadable_request_is_a_protocol_error(tmp_path, content):
    if content is not None:
        (tmp_path / "request.json").write_bytes(content)
    with pytest.raises(protocol.ProtocolError):
        protocol.JobFolder(tmp_path).read_request()


def test_a_written_request_is_read_back(tmp_path):
    job = protocol.JobFolder(tmp_path)
    request = protocol.TextureRequest(prompt="chipped teal paint", steps=20, guidance_scale=3)
    job.write_request(request)
    assert job.read_request() == request
    assert [path.name for path in tmp_path.iterdir()] == ["request.json"]


def test_attempts_are_numbered_and_never_reused(tmp_path):
    job = protocol.JobFolder(tmp_path)
    assert [job.new_attempt().number for _ in range(3)] == [1, 2, 3]
    assert [attempt.number for attempt in job.attempts()] == [1, 2, 3]


def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    protocol.write_beside(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        protocol.write_beside(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_every_failure_kind_has_a_sentence_for_its_exit_code():
    for code in protocol.FAILURE_KINDS.values():
        assert protocol.EXIT_SENTENCES[code].endswith(".")


def test_a_lock_has_one_holder_and_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD_LOCK, str(ROOT), str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert path.read_text() == "me"
        assert protocol.take_lock(path, "you") is None
        assert path.read_text() == "me"
    finally:
        holder.kill()
        holder.communicate()
    descriptor = protocol.take_lock(path, "you")
    assert descriptor is not None and path.read_text() == "you"
    protocol.release_lock(descriptor)


def test_a_request_holds_plain_values_only():
    assert dataclasses.asdict(protocol.TextureRequest(prompt="x")) == json.loads(
        json.dumps(dataclasses.asdict(protocol.TextureRequest(prompt="x")))
    )


BEFORE = '{"type": "Progress", "stage": "x", "total_steps": 2, "seconds_left": 1, '


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "Failed", "kind": [], "message": "x", "hint": ""}',
        BEFORE + '"step": 1, "fraction": 1' + 400 * "0" + "}",
        BEFORE + '"fraction": 0.5, "step": ' + 5000 * "1" + "}",
    ],
)
def test_values_of_the_wrong_kind_are_an_error_of_the_protocol(line):
    with pytest.raises(protocol.ProtocolError):
        protocol.decode(line, protocol.Event)
