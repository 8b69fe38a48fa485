# SPDX-License-Identifier: GPL-3.0-or-later
"""A CLIP model leads what a reference picture does not show: real transformers classes at toy size."""

import json
from dataclasses import replace

import oracle_for_tests as oracle
import pytest
import shapes_for_tests as shapes
import torch
import toy_models
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from test_families import CPU, CUBE

from addon import protocol
from backend import __main__ as command
from backend import ggx_tables, lighting, material, optimisation, planning, reference
from backend.diffusion.likeness import CLEAN_BELOW, Clip
from backend.distillation import Aim
from backend.rasterize import Triangles


def save_clip(folder, whole=True):
    """A CLIP model, or its picture side alone, as both are published."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 4, "projection_dim": 12}  # fmt: skip
    text = {"vocab_size": 56, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "projection_dim": 12}  # fmt: skip
    if whole:
        made = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        )
    else:
        made = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
    made.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "whole")


def pictures(count=3, size=24):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_sees_as_transformers_own_processor_does(folder, tmp_path):
    clip = Clip(folder, CPU)
    image = (pictures(1, 16) * 0.5 + 0.5).mul(255).round()
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    seen = processor(Image.fromarray(image[0].permute(1, 2, 0).byte().numpy()), return_tensors="pt")["pixel_values"]
    whole = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = whole.visual_projection(whole.vision_model(pixel_values=seen).pooler_output)
        found = clip.embed(image / 127.5 - 1)
    assert torch.allclose(found, torch.nn.functional.normalize(wanted, dim=1), atol=1e-4)
    alone = Clip(save_clip(tmp_path / "alone", whole=False), CPU)
    assert alone.embed(pictures()).shape == (3, 12)


def test_a_step_leads_towards_the_reference_and_is_as_long_as_said(folder):
    clip, picture = Clip(folder, CPU), 0.5 * pictures()
    mask = torch.zeros(3, 1, 24, 24)
    mask[..., 4:20, 4:20] = 1
    with torch.no_grad():
        towards = clip.embed(pictures(4)[3:])
    led = clip.led(picture, mask, towards, torch.tensor([0.01, 0.0, 0.02]))
    before, after = ((clip.embed(p) @ towards.T)[:, 0] for p in (picture, led))
    print("unlikeness before", (1 - before).tolist(), "after", (1 - after).tolist())
    assert 1 - after[0] < 0.8 * (1 - before[0]) and 1 - after[2] < 0.8 * (1 - before[2])
    assert torch.equal(led[1], picture[1])
    moved = led - picture
    assert not moved[..., :4, :].any() and not led.requires_grad
    size = (moved.square() * mask).sum((1, 2, 3)).div(3 * mask[0].sum()).sqrt()
    assert torch.allclose(size, torch.tensor([0.01, 0.0, 0.02]), atol=0.002)


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (64, 64), (200, 40, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_only_what_was_seen_nearly_clean_is_led(folder, red):
    triangles, clip = Triangles.of(shapes.mesh_of(shapes.torus(16, 8))), Clip(folder, CPU)
    seen = reference.new(red, {}, triangles, 32, clip, 0.1)
    time = torch.tensor([CLEAN_BELOW - 0.01, CLEAN_BELOW + 0.01, 0.9])
    aim, mask = Aim(pictures(), torch.ones(3), time), torch.ones(3, 1, 24, 24)
    led = seen.led(aim, mask)
    changed = (led.picture - aim.picture).abs().amax((1, 2, 3)) > 0
    assert changed.tolist() == [True, False, False] and torch.equal(led.weight, aim.weight)
    without = reference.new(red, {}, triangles, 32)
    assert without.led(aim, mask) is aim


def test_other_views_come_to_look_like_it(folder, red):
    """A model that wants nothing but what is there, and a reference of which the far side shows nothing. Looked at as
    the run does, under lights and before a background of its kind: a random CLIP sees those as much as the maps."""
    mesh, tables, clip = shapes.mesh_of(shapes.torus(16, 8)), ggx_tables.load(), Clip(folder, CPU)
    model = oracle.Oracle(lambda points: torch.full((len(points.uv), 7), 0.5), 32)
    base = oracle.plan_for(steps=60, render_size=32, finest=32, views=2)
    plan = replace(base, options=replace(base.options, highest=(0.3, 0.3), lowest=(0.1, 0.1)))
    found = []
    for given in (None, clip):
        state, pool = optimisation.new_state(plan, CPU), oracle.new_pool(mesh, 32, 0)
        pool.reference = reference.new(red, {}, pool.triangles, 32, given, 0.6)
        while state.step < plan.steps:
            optimisation.step(state, plan, model, pool, tables)
        far = [i for i in range(pool.full) if 120 < float(pool.cameras.azimuth_deg[i]) % 360 < 240][:10]
        gbuffer, lights = pool.gbuffer(far), lighting.sample(len(far), torch.Generator().manual_seed(5))
        shown = oracle.render(lambda points, state=state: material.look_up(state.average, points), gbuffer, lights)
        behind = torch.full((len(far), 32, 32, 3), model.background)
        picture = (gbuffer.picture(shown, behind) * 2 - 1).permute(0, 3, 1, 2)
        with torch.no_grad():
            look = reference.new(red, {}, pool.triangles, 32, clip, 0.3).look
            found.append(float((clip.embed(picture) @ look.T).mean()))
    print(f"unlikeness of the far side without it {1 - found[0]:.4f}, with it {1 - found[1]:.4f}")
    assert 1 - found[1] < 0.7 * (1 - found[0])


def test_what_is_no_clip_model_gets_a_sentence_each(tmp_path, folder):
    toy_models.save("sd", tmp_path / "sd")
    half = save_clip(tmp_path / "half")
    weights = half / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    pickled = save_clip(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    (tmp_path / "file.safetensors").write_bytes(b"x")
    thinned = save_clip(tmp_path / "thinned")
    stored = load_file(thinned / "model.safetensors")
    del stored["visual_projection.weight"]
    save_file(stored, thinned / "model.safetensors", metadata={"format": "pt"})
    for path, sentence in (
        (tmp_path / "none", "none is no CLIP model: it is no folder with a config.json."),
        (tmp_path / "sd", "sd is no CLIP model: it is no folder with a config.json."),
        (tmp_path / "sd" / "text_encoder", "its config.json says “clip_text_model”. Choose one of type clip."),
        (half, "is not complete: .* is cut off or damaged. Download it again."),
        (thinned, "is not complete: of its weights .*thinned lacks 1, visual_projection.weight among them. Download"),
        (pickled, "pytorch_model.bin is a pickle"),
        (tmp_path / "file.safetensors", "is a single file. Patina needs the CLIP model as a folder"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            Clip(path, CPU)
        assert "\n" not in str(caught.value)
    for options, more, sentence in (
        ({"clip_model": "x"}, {}, "compares other views with a reference picture, and none is given"),
        ({"clip_strength": "2"}, {"reference": "x.png"}, "clip_strength is 2.0; it must lie over 0 and up to 1"),
    ):
        with pytest.raises(protocol.ProtocolError, match=sentence):
            planning.likeness_of(protocol.TextureRequest(prompt="x", options=options, **more))


@pytest.mark.slow
def test_the_command_takes_the_folder_and_says_what_is_missing_without_it(folder, red, tmp_path, capsys, monkeypatch):
    model = toy_models.save("sd", tmp_path / "sd")
    (tmp_path / "cube.obj").write_text(CUBE)
    monkeypatch.chdir(folder.parent)
    for settings in (["--set", f"clip_model={folder.name}"], []):
        common = ["texture", tmp_path / "cube.obj", "--prompt", "red plastic", "--out", tmp_path / "out", "--steps",
                  "2", "--texture-size", "512", "--device", "cpu", "--model", model, "--reference", red]  # fmt: skip
        code = command.main([str(argument) for argument in (*common, *settings)])
        told = capsys.readouterr().err
        assert code == protocol.EXIT_OK, told
        assert ("No CLIP model compares" in told) is (not settings)
    request = json.loads((tmp_path / "out" / "job-0001" / "request.json").read_text())
    assert request["options"] == {"clip_model": str(folder)}, "a resumed run would not find it"
