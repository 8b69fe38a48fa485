# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole run from request to files, with a cheap model in the real one's place."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch
from PIL import Image
from test_families import CUBE

from addon import protocol
from backend import __main__ as command
from backend import models, planning, texturing
from backend.maps import read_map
from backend.mesh import MeshError
from backend.prompts import PromptError
from backend.run import patina_version, peak_memory_mb

REQUEST = protocol.TextureRequest(prompt="red plastic", texture_size=512, steps=14, views=2, device="cpu")
RED = (0.8, 0.2, 0.1, 0.05, 0.4, 0.5, 0.5)


class Shelf:
    """Hands out one model, as ModelShelf does."""

    def __init__(self, model=None):
        self.model = model or oracle.Oracle(lambda gbuffer: torch.tensor(RED).expand(gbuffer.uv.shape[0], 7), 32)

    def get(self, name, device):
        assert name == protocol.BUILT_IN_MODEL and device == torch.device("cpu")
        return self.model


def job_in(folder, arrays=None):
    job = protocol.JobFolder(folder)
    shapes.write_job_mesh(job.mesh, arrays or shapes.torus(16, 8))
    return job


@pytest.fixture
def new_job(tmp_path):
    return lambda name="job", arrays=None: job_in(tmp_path / name, arrays)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, quick_start):
    """(job, events) of a run that nothing disturbs."""
    job = job_in(tmp_path_factory.mktemp("whole") / "job")
    return job, run(job)


def run(job, request=REQUEST, stop_at=None, why="cancel", shelf=None):
    """All events; after `stop_at` steps of painting `stop_asked` answers `why`."""
    events, steps = [], 0

    def stop_asked():
        nonlocal steps
        if stop_at is None or not any(getattr(event, "stage", "") in ("Painting", "Refining") for event in events):
            return None
        steps += 1
        return why if steps > stop_at else None

    for event in texturing.run(request, job, shelf or Shelf(), stop_asked):
        events.append(event)
    return events


def check_stream(events, terminal):
    """Started first, one terminal event last, steps and fractions that only grow; every event fits the wire."""
    assert isinstance(events[0], protocol.Started) and isinstance(events[-1], terminal)
    assert sum(isinstance(event, protocol.TERMINAL_EVENTS) for event in events) == 1
    assert sum(isinstance(event, protocol.Started) for event in events) == 1
    progress = [event for event in events if isinstance(event, protocol.Progress)]
    for before, after in zip(progress, progress[1:], strict=False):
        assert before.step <= after.step and before.fraction <= after.fraction
    assert all(0 <= event.fraction <= 1 for event in progress)
    for event in events:
        assert protocol.decode(protocol.encode(event), protocol.Event) == event


def maps_of(job, event):
    assert set(event.maps) == set(protocol.MAP_NAMES)
    return {name: np.asarray(Image.open(job.path / path)) for name, path in event.maps.items()}


def test_a_run_ends_with_maps_and_a_report(whole):
    job, events = whole
    check_stream(events, protocol.Done)
    started, done = events[0], events[-1]
    assert (started.total_steps, started.resumed_from_step, started.model, started.device) == (14, 0, "oracle", "cpu")
    maps = maps_of(job, done)
    assert maps["base_color"].shape == (512, 512, 3) and maps["metallic"].shape == (512, 512)
    assert maps["normal"].shape == (512, 512, 3) and all(image.dtype == np.uint8 for image in maps.values())
    flat = np.abs(maps["normal"].astype(int) - [128, 128, 255]).max()
    assert flat < 60, "the normal map is not one"
    colour = maps["base_color"].reshape(-1, 3).mean(0)
    assert colour[0] > colour[1] + 20 and colour[0] > colour[2] + 20, "it should have become redder"
    assert not job.checkpoint.exists(), "a finished run needs no checkpoint"

    report = json.loads((job.path / done.report).read_text())
    assert report["prompt"] == "red plastic" and report["seed"] == 0 and report["steps"] == 14
    assert report["texture_size"] == 512 and report["triangles"] == 256 and report["model"] == "oracle"
    assert {"total", "optimisation", "mesh", "model", "maps"} <= report["seconds"].keys()
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    assert report["covered_share"] > 0.99 and 0 <= report["unseen_share"] <= 1
    assert abs(report["covered_texels"] / 512**2 - report["covered_share"]) < 1e-3
    assert report["versions"]["patina"] == patina_version() == started.backend_version
    assert isinstance(report["warnings"], list)


@pytest.mark.parametrize(("file_format", "bits"), [("png", 16), ("exr", None)])
def test_maps_come_in_the_format_that_was_asked_for(file_format, bits, new_job):
    job = new_job()
    events = run(job, replace(REQUEST, file_format=file_format, bit_depth=bits, steps=2))
    check_stream(events, protocol.Done)
    assert events[-1].maps == {name: f"maps/{name}.{file_format}" for name in protocol.MAP_NAMES}
    assert sorted(path.name for path in job.maps.iterdir()) == sorted(Path(p).name for p in events[-1].maps.values())
    colours = read_map(job.maps / f"base_color.{file_format}")
    assert colours.shape == (512, 512, 3) and 0.2 < colours.mean() < 0.8
    assert np.abs(colours * 255 - np.round(colours * 255)).max() > 0.1, "no finer than 8 bits"
    assert all(path.endswith(".png") for e in events if isinstance(e, protocol.Preview) for path in e.maps.values())


def test_a_rasteriser_that_is_not_here_ends_in_a_sentence(new_job):
    with pytest.raises(protocol.ProtocolError, match="nvdiffrast works on CUDA alone"):
        run(new_job(), replace(REQUEST, rasterizer="nvdiffrast"))


def test_the_peak_of_memory_is_this_processes_own():
    """A child's getrusage begins with its parent's memory, on Linux: Blender's would be told as the backend's."""
    hoard = np.ones(75_000_000)  # 600 MB
    code = "from backend.run import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert 100 < int(done.stdout) < peak_memory_mb() - 200
    assert hoard.sum() == len(hoard)


def test_previews_show_the_maps_while_they_grow(new_job):
    job = new_job()
    events = run(job, stop_at=9)
    previews = [event for event in events if isinstance(event, protocol.Preview)]
    assert previews and all(preview.step < 14 for preview in previews)
    assert [p.number for p in previews] == sorted({p.number for p in previews})
    last = maps_of(job, previews[-1])
    assert last["base_color"].shape[0] == last["base_color"].shape[1] <= 512
    assert all(path.startswith("preview/") for path in previews[-1].maps.values())
    again = [e for e in run(job, stop_at=9) if isinstance(e, protocol.Preview)]
    assert again[0].number > previews[-1].number, "a second attempt must not write over files that are open"


def test_cancelled_it_leaves_what_there_is(new_job):
    job = new_job()
    events = run(job, stop_at=6)
    check_stream(events, protocol.Cancelled)
    assert events[-1].step == 6
    assert maps_of(job, events[-1])["base_color"].shape == (512, 512, 3)
    assert not job.report.exists()


def test_who_cancels_does_not_wait_for_empty_magnification(new_job):
    """4096 texels to a side take longer than a cancelled backend may live."""
    job = new_job()
    maps = maps_of(job, run(job, replace(REQUEST, texture_size=4096), stop_at=2)[-1])
    assert {image.shape[0] for image in maps.values()} == {planning.EFFECTIVE_SIZE}


def test_cancelled_before_the_first_step_there_are_no_maps(new_job):
    events = run(new_job(), stop_at=0)
    check_stream(events, protocol.Cancelled)
    assert events[-1].step == 0 and events[-1].maps == {}


@pytest.mark.parametrize(
    "why, reason, step", [("pause", "asked", 0), ("pause", "asked", 12), ("host gone", "host gone", 7)]
)
def test_paused_and_resumed_it_ends_as_if_nothing_had_been(why, reason, step, whole, new_job):
    unbroken, events = whole
    wanted = maps_of(unbroken, events[-1])
    job = new_job()
    events = run(job, stop_at=step, why=why)
    check_stream(events, protocol.Paused)
    assert events[-1] == protocol.Paused(reason, step)
    assert any(isinstance(event, protocol.Checkpoint) and event.step == step for event in events)
    events = run(job)
    check_stream(events, protocol.Done)
    assert events[0].resumed_from_step == step
    assert not job.checkpoint.exists()
    found = maps_of(job, events[-1])
    for name in protocol.MAP_NAMES:
        assert np.array_equal(wanted[name], found[name]), f"{name} differs after a pause"
    unseen = [json.loads(folder.report.read_text())["unseen_share"] for folder in (unbroken, job)]
    assert unseen[0] == unseen[1]


@pytest.mark.parametrize(("why", "end"), [("pause", protocol.Paused), ("cancel", protocol.Cancelled)])
def test_a_run_can_be_stopped_while_it_chooses_the_material(why, end, new_job):
    """Which takes minutes with a large model on a small machine."""
    job, asked = new_job(), []
    events = list(texturing.run(REQUEST, job, Shelf(), lambda: asked.append(0) or (why if len(asked) == 3 else None)))
    check_stream(events, end)
    assert len(asked) == 3 and events[-1].step == 0 and not job.checkpoint.exists()
    assert [event.stage for event in events if isinstance(event, protocol.Progress)] == ["Choosing the material"]
    assert isinstance(run(job)[-1], protocol.Done)


def test_a_resumed_run_that_is_cancelled_keeps_what_was_painted(new_job):
    job, other = new_job(), new_job("other")
    run(job, stop_at=12, why="pause")
    cancelled = maps_of(job, run(job, stop_at=1)[-1])
    straight = maps_of(other, run(other, stop_at=13)[-1])
    assert np.array_equal(cancelled["base_color"], straight["base_color"])


def test_a_damaged_checkpoint_starts_again(new_job):
    job = new_job()
    run(job, stop_at=3, why="pause")
    job.checkpoint.write_bytes(job.checkpoint.read_bytes()[:1000])
    events = run(job, stop_at=1)
    check_stream(events, protocol.Cancelled)
    assert events[0].resumed_from_step == 0


def test_the_same_seed_twice_gives_the_same_bytes_and_another_seed_does_not(whole, new_job):
    content = []
    twice, other = new_job("twice"), new_job("other")
    for job, events in (whole, (twice, run(twice)), (other, run(other, replace(REQUEST, seed=6)))):
        content.append([(job.path / events[-1].maps[m]).read_bytes() for m in protocol.MAP_NAMES])
    assert content[0] == content[1]
    assert content[0][0] != content[2][0]


def test_the_models_warnings_are_told_and_reported(new_job):
    class Talkative(oracle.Oracle):
        def set_prompt(self, prompt, negative_prompt):
            return (f"I do not know {prompt} without {negative_prompt}.",)

    job = new_job()
    model = Talkative(lambda gbuffer: torch.tensor(RED).expand(gbuffer.uv.shape[0], 7), 32)
    events = run(job, replace(REQUEST, negative_prompt="dust", steps=1), shelf=Shelf(model))
    assert protocol.Warning("I do not know red plastic without dust.") in events
    assert "I do not know red plastic without dust." in json.loads(job.report.read_text())["warnings"]


def test_what_no_camera_sees_is_filled_and_its_share_told(new_job):
    """A small sphere inside a large one; in the maps its half lies beside the outer one's."""
    outer, inner = shapes.sphere(24, 12), shapes.moved(shapes.sphere(24, 12), 0.6, (0.0, 0.0, 0.0))
    for arrays, offset in ((outer, 0.0), (inner, 0.5)):
        arrays["uvs"] = np.float32(arrays["uvs"] * [0.5, 1] + [offset, 0])
    job = new_job(arrays=shapes.together(outer, inner))
    events = run(job, replace(REQUEST, steps=20))
    report = json.loads(job.report.read_text())
    assert 0.45 < report["unseen_share"] < 0.6
    assert any(isinstance(e, protocol.Warning) and "No camera sees" in e.message for e in events)
    image = maps_of(job, events[-1])["base_color"][64:-64].astype(float)
    seen, unseen = image[:, 8:248], image[:, 264:504]
    assert np.abs(seen - unseen).mean() < 6, "the inner sphere does not wear what lies above it"


def test_triangles_smaller_than_a_pixel_are_not_unseen(new_job):
    events = run(new_job("fine", shapes.sphere(240, 160)), replace(REQUEST, steps=2))
    assert [event.message for event in events if isinstance(event, protocol.Warning)] == []


def test_the_command_passes_views_and_render_size_on(tmp_path, monkeypatch):
    (tmp_path / "cube.obj").write_text(CUBE)
    monkeypatch.setattr(command, "_run_here", lambda job_folder: protocol.EXIT_CANCELLED)
    common = ["texture", str(tmp_path / "cube.obj"), "--prompt", "red plastic", "--out", str(tmp_path / "out")]
    for number, (more, wanted) in enumerate(
        (([], (None, None)), (["--views", "2", "--render-size", "96"], (2, 96))), 1
    ):  # fmt: skip
        assert command.main(common + more) == protocol.EXIT_CANCELLED
        request = protocol.JobFolder(tmp_path / "out" / f"job-{number:04d}").read_request()
        assert (request.views, request.render_size) == wanted
    assert command.main([*common, "--render-size", "8"]) == protocol.EXIT_BAD_REQUEST


def test_what_cannot_be_used_is_left_to_the_caller(new_job):
    class Choosy(oracle.Oracle):
        def set_prompt(self, prompt, negative_prompt):
            raise PromptError("No.")

    job = new_job()
    with pytest.raises(PromptError):
        run(job, shelf=Shelf(Choosy(None, 32)))
    with pytest.raises(protocol.ProtocolError, match="guidance must be one of"):
        run(job, replace(REQUEST, guidance="magic"))
    with pytest.raises(models.ModelError, match="does not know the model"):
        run(job, replace(REQUEST, model="somebody/else"), shelf=models.ModelShelf())
    job.mesh.write_bytes(b"nonsense")
    with pytest.raises(MeshError):
        run(job)
    if not torch.cuda.is_available():
        with pytest.raises(models.ModelError, match="not available on this computer"):
            run(job, replace(REQUEST, device="cuda"))
