# SPDX-License-Identifier: GPL-3.0-or-later
"""`evaluate performance`: the architectures are the published ones, and the program runs at toy size."""

import json

import pytest
import torch

from backend import __main__ as command
from backend.diffusion import drawn
from backend.evaluate import performance


@pytest.mark.slow
def test_the_architectures_are_the_published_ones():
    """By their numbers of parameters, which the model cards round."""
    autoencoder = 83_653_863
    wanted = {
        "SD 1.5": {"unet": 859_520_964, "vae": autoencoder},
        "SDXL + ControlNet": {"unet": 2_567_463_684, "vae": autoencoder, "control": 1_251_014_160},
        "IF I": {"unet": 4_304_695_110},
        "FLUX.2 klein 4B": {"transformer": 3_875_544_576, "vae": 84_046_115},
    }
    for name, counts in wanted.items():
        assert drawn.parameters(name) == counts, name
    assert drawn.parameters("IF II")["unet"] == pytest.approx(1.2e9, rel=0.1)
    assert {row.model for row in performance.ROWS} == set(drawn.ARCHITECTURES) == set(drawn.TOYS)


def test_drawn_weights_are_numbers_of_the_wanted_precision():
    network = drawn.drawn(torch.nn.Sequential, {}, torch.bfloat16)
    assert not list(network.parameters())
    model = drawn.model("FLUX.2 klein 4B", torch.device("cpu"), toy=True)
    for module in model.modules():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            assert torch.isfinite(tensor).all() and not tensor.requires_grad, name
    assert (model.vae.bn.running_var == 1).all() and model.transformer.x_embedder.weight.std() > 0.01


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(performance, "WARM_UP", 1)
    monkeypatch.setattr(performance.views, "FULL_VIEWS", 6)
    monkeypatch.setattr(performance.views, "CLOSE_VIEWS", 6)


def test_it_measures_row_by_row_and_goes_on_where_it_ended(tmp_path, capsys, small, monkeypatch):
    file, table = tmp_path / "p.json", tmp_path / "p.md"
    names = ["SDXL + ControlNet, 768, within 8 GB", "IF II", "FLUX.2 klein 4B, within 8 GB", "renderer"]

    def evaluate(only):
        chosen = [part for name in only for part in ("--only", name)]
        given = ["evaluate", "performance", "--json", file, "--markdown", table, "--toy", "--steps", "1", *chosen]
        assert command.main([str(part) for part in given]) == 0
        return json.loads(file.read_text())["rows"]

    evaluate(only=names[:1])
    first = file.read_text()
    made = evaluate(only=names)
    assert set(made) == set(names) and made[names[0]] == json.loads(first)["rows"][names[0]], "measured again"
    assert capsys.readouterr().out.count(names[0]) == 1
    for name in names[:3]:
        told = made[name]
        assert 0 < told["network_s"] < told["clocked_s"] and told["step_s"] > 0 and 0 < told["outside_share"] < 1
        assert (told["autoencoder_s"] == 0) is (name == "IF II") and told["peak_gb"] > 0.1
        assert told["network_s"] + told["autoencoder_s"] + told["moving_s"] <= told["clocked_s"] * 1.01
    assert [made[name]["offload"] for name in names[:3]] == ["parts", "never", "blocks"]
    assert made["IF II"]["size"] == 32
    assert made["renderer"]["ms"] > 0 and made["renderer"]["pictures"] == 4
    text = table.read_text()
    assert "the CPU (toy models)" in text and "Tiny models, whose figures mean nothing" in text
    assert "Not measured yet: SD 1.5, " in text
    assert text.count("\n| ") == 4 and "The renderer alone" in text
    # Want of memory is a result of its row, and tried again.
    monkeypatch.setattr(performance, "measure", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA\nout")))
    assert evaluate(only=["IF I"])["IF I"] == {"failed": "out of memory: CUDA out"}
    assert "| IF I | out of memory: CUDA out |" in table.read_text()
    monkeypatch.setattr(performance, "measure", lambda *_: {"failed": "again"})
    assert evaluate(only=["IF I"])["IF I"] == {"failed": "again"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_cuda_it_says_that_it_needs_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        performance.main(["--json", str(tmp_path / "p.json")])
    assert "There is no CUDA device here, and models of full size need one. --toy" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


def test_figures_of_two_machines_are_not_mixed(tmp_path, capsys):
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"machine": {"device": "H200", "torch": "2"}, "rows": {}}))
    with pytest.raises(SystemExit):
        performance.main(["--json", str(file), "--toy"])
    assert "is from another machine" in capsys.readouterr().err


def test_a_missed_share_is_marked():
    told = {"size": 512, "step_s": 1, "network_s": 0.8, "autoencoder_s": 0.1, "moving_s": 0, "peak_gb": 9.0}
    results = {"machine": {"device": "x", "torch": "2"}, "rows": {}}
    for share, marked in ((0.06, True), (0.04, False)):
        results["rows"]["SDXL + ControlNet, 512"] = {**told, "outside_share": share}
        assert ("(missed: 5 % wanted)" in performance.markdown(results)) is marked


def test_what_lies_outside_counts_the_new_views_of_a_run():
    told = {"network_s": 0.7, "autoencoder_s": 0.2, "clocked_s": 1.0, "new_views": 100, "new_view_s": 1.0,
            "steps_of_a_run": 1000}  # fmt: skip
    assert performance._outside(told) == pytest.approx(0.2 / 1.1)


def test_a_clock_counts_what_is_nested_once():
    clock = performance.Clock(torch.device("cpu"))
    clock.begin()
    clock.begin()
    clock.end()
    assert clock.total == 0
    clock.end()
    assert clock.total > 0
