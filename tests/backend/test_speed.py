# SPDX-License-Identifier: GPL-3.0-or-later
"""`evaluate speed` at toy size: every part runs, says what it measured, and measures what it says."""

import importlib.util
import json
import os
import time

import pytest
import torch

from addon import protocol, worker
from backend import planning
from backend.evaluate import _child, _step_speed, speed

EMBREE = importlib.util.find_spec("embreex") is not None


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(_step_speed, "STEPS", 3)
    monkeypatch.setattr(_step_speed, "WARM_UP", 1)


def test_the_renderer_and_the_file(tmp_path, capsys):
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"busy": {"times_slower": 1.5}}))
    options = ["--json", str(file), "--parts", "renderer", "--pixels", "16", "--texture", "64"]
    assert speed.main([*options, "--without-mitsuba", "--network-ms", "300"]) == 0
    told = json.loads(file.read_text())
    assert told["busy"] == {"times_slower": 1.5}, "what was measured before is lost"
    made = told["renderer"]
    assert (made["pictures"], made["size"], made["texture"]) == (4, 16, 64) and 100 < made["object_pixels"] < 1024
    assert 0 < made["ms"] < 60_000 and made["threads"] == torch.get_num_threads()
    assert made["share_of_step"] == pytest.approx(made["ms"] / (made["ms"] + 300), abs=1e-3)
    assert told["machine"]["torch"] == torch.__version__
    assert "renderer" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--parts", "renderer,network"], ["--device", "cuda"]])
def test_what_cannot_be_measured_is_refused(wrong, tmp_path, capsys):
    if "cuda" in wrong and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(SystemExit):
        speed.main(["--json", str(tmp_path / "x.json"), *wrong])
    assert not (tmp_path / "x.json").exists()
    said = capsys.readouterr().err
    assert "There is no part 'network'" in said or "no CUDA device" in said


def test_without_mitsuba_the_reason_stands_in_its_place(monkeypatch):
    def refused(function, *arguments):
        raise RuntimeError("Traceback\nImportError: No module named 'mitsuba'")

    monkeypatch.setattr(speed, "child", refused)
    told = speed.beside_mitsuba(("cpu", 8, 32, "auto", None), 64)
    assert told["mitsuba"] == "ImportError: No module named 'mitsuba'" and told["ms"] > 0


def test_the_shares_of_a_step_add_up():
    told = speed.step("draft")
    assert 0 < told["network_cpu_ms"] < told["prior_cpu_ms"] < told["step_cpu_ms"]
    assert told["outside_network_cpu_ms"] == pytest.approx(told["step_cpu_ms"] - told["network_cpu_ms"], abs=0.2)
    assert told["outside_prior_share"] == pytest.approx(
        (told["step_cpu_ms"] - told["prior_cpu_ms"]) / told["step_cpu_ms"], abs=2e-3
    )
    assert told["finest"] == 512 and told["views"] == 4


def test_output_beyond_what_views_resolve_changes_nothing_of_a_step():
    told = speed.size_ratio((512, 4096))
    assert told["ratio"] == pytest.approx(told["cpu_ms_4096"] / told["cpu_ms_512"], rel=0.05)
    model = _step_speed.Oracle(torch.zeros(7, 8, 8), 64, None)
    requests = (protocol.TextureRequest(prompt="x", texture_size=size) for size in (1024, 4096))
    assert len({planning.make_plan(request, model) for request in requests}) == 1


def test_setting_up_is_measured_in_a_process_of_its_own():
    told = speed.setup(2000)
    assert 1500 < told["triangles"] < 2500
    for name in ("torch", "embree") if EMBREE else ("torch",):
        made = told[name]
        assert 0 < made["seconds"] < 60 and 0 <= made["loading_cpu_seconds"] <= made["cpu_seconds"]
        assert 100 < made["before_mb"] <= made["peak_mb"] < 2000
    if not EMBREE:
        assert "Embree is not installed" in told["embree"]


def test_busy_steps_run_as_the_launcher_starts_them():
    asked, own = _child.launcher_environment(), worker.backend_environment()
    assert {name for name in asked if name.startswith("OMP")} == {name for name in own if name.startswith("OMP")}
    assert asked["OMP_WAIT_POLICY"] == "passive" and asked["OMP_NUM_THREADS"] == own["OMP_NUM_THREADS"]
    told = speed.busy(16, 32)
    assert told["quiet"]["ms"] > 0 and told["busy"]["ms"] > 0
    wanted = int(os.environ.get("OMP_NUM_THREADS", worker.thread_count()))
    assert told["busy"]["threads"] == told["quiet"]["threads"] == wanted
    assert told["times_slower"] == pytest.approx(told["busy"]["ms"] / told["quiet"]["ms"], abs=0.01)


def test_rasterisers_are_compared():
    (row,) = speed.rasteriser(((24, 12),))["meshes"]
    assert row["triangles"] == 576 and row["torch"]["view_cpu_ms"] > 0
    if EMBREE:
        assert row["same_triangle"] > 0.99 and row["embree"]["view_cpu_ms"] > 0
    else:
        assert "not installed" in row["embree"]


def test_a_failing_child_says_why():
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no mesh file"):
        _child.child(speed.setup_times, "/nowhere/mesh.npz", "torch")
    assert time.monotonic() - began < 120
