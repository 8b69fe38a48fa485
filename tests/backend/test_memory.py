# SPDX-License-Identifier: GPL-3.0-or-later
"""Less memory, the same pictures: networks that leave, blocks that come one by one, attention and pictures in parts."""

import json

import pytest
import shapes_for_tests as shapes
import torch
import toy_models
from test_control import scene_of
from test_families import CPU, CUBE, Views, listen, network_of, noise_for

from addon import protocol
from backend import __main__ as command
from backend import models, planning
from backend.diffusion import families, memory
from backend.diffusion.interface import ModelError, Sparing
from backend.diffusion.memory import Memory
from backend.distillation import Options, option_names, take_aim

CONTROLLED = ("sd", "sdxl")
NETWORKS = [name for name in toy_models.FAMILIES if name != "sd_v"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("memory")
    for name in NETWORKS:
        toy_models.save(name, home / name)
    for name in CONTROLLED:
        toy_models.save_control(name, home / f"{name}-depth")
    return home


@pytest.fixture
def load(home):
    def loaded(name, control=False):
        model = families.load(home / name, CPU)
        model.set_prompt("red plastic", "blurry")
        if control:
            model.set_control(home / f"{name}-depth", "", 1.0)
        return model

    return loaded


def predicted(model, count=3, scene=None):
    noise = noise_for(model, count)[1]
    timestep = torch.tensor([100, 500, 900, 300, 700])[:count]
    made = model.predict(noise, timestep, scene or Views())
    return torch.stack((made.conditional, made.unconditional))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_however_many_pictures_at_once_they_are_the_same(load, name, rows):
    model = load(name)
    model.set_memory(Memory(rows=64))
    wanted = predicted(model, 5)
    model.set_memory(Memory(rows=rows))
    calls = listen(model)
    assert torch.allclose(predicted(model, 5), wanted, atol=1e-4, rtol=1e-4)
    assert len(calls) == -(-10 // rows)


class Ledger:
    """Which of a model's networks are on its device, after each time one is sent anywhere."""

    def __init__(self, model):
        self.names = {id(getattr(model, name)): name for name in ("unet", "transformer", "vae") if hasattr(model, name)}
        if getattr(model, "control", None) is not None:
            self.names[id(model.control.net)] = "control"
        self.there, self.most, self.arrivals = set(), 0, []
        own = model._send

        def send(modules, where):
            modules = list(modules)
            own(modules, where)
            for module in modules:
                name = self.names[id(module)]
                if where == "cpu":
                    self.there.discard(name)
                elif name not in self.there:
                    self.there.add(name)
                    self.arrivals.append(name)
            self.most = max(self.most, len(self.there))

        model._send = send


@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_network_that_works_is_on_the_device(load, name):
    model = load(name)
    wanted = predicted(model)
    model.set_memory(Memory(offload="parts"))
    ledger = Ledger(model)
    size = model.render_size
    aim = take_aim(
        model, torch.zeros(3, 3, size, size), Views(size=size), torch.ones(3, 1, size, size), 0.5, "clamped", 3.0,
        Options(), torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.isfinite(aim.picture).all() and ledger.most == 1
    network = "transformer" if hasattr(model, "transformer") else "unet"
    assert ledger.arrivals == ([network] if name == "pixel" else ["vae", network, "vae"])
    assert torch.equal(predicted(model), wanted)
    model.set_memory(Memory(offload="never"))
    ledger = Ledger(model)
    predicted(model)
    model.bring(*model.modules())
    assert ledger.most == len(model.modules()), "they are sent away although nobody asked for it"
    for module in model.modules():
        module.to = lambda *_: pytest.fail("moved although it is there")
    predicted(model)


def test_networks_do_move(load):
    """What the others cannot see on a machine with one device."""
    model, sent = load("sd"), []
    for name in ("unet", "vae"):
        getattr(model, name).to = lambda where, name=name: sent.append((name, str(where)))
    model.set_memory(Memory(offload="parts"))
    model.device = torch.device("meta")
    model.bring(model.unet)
    assert sent == [("unet", "meta")], "the autoencoder is on the CPU as it is"


@pytest.mark.parametrize("name", CONTROLLED)
def test_network_and_control_change_places_once_for_all_pictures(load, name):
    scene = scene_of(shapes.torus(16, 8), 16, (0.0, 90.0, 200.0))
    model = load(name, control=True)
    wanted = predicted(model, scene=scene)
    model.set_memory(Memory(rows=1, offload="parts"))
    ledger = Ledger(model)
    asked = []
    model.control.net.register_forward_hook(lambda *_: asked.append("control"))
    network_of(model).register_forward_hook(lambda *_: asked.append("network"))
    assert torch.allclose(predicted(model, scene=scene), wanted, atol=1e-4, rtol=1e-4)
    assert ledger.arrivals == ["vae", "control", "unet"] and ledger.most == 1, "the pictures, then each once"
    assert asked == 6 * ["control"] + 6 * ["network"]
    model.set_memory(Memory(rows=1, offload="never"))
    asked.clear()
    assert torch.allclose(predicted(model, scene=scene), wanted, atol=1e-4, rtol=1e-4)
    assert asked == 6 * ["control", "network"], "what a control says of all views is kept at once"


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_one_by_one_change_nothing_and_can_be_left(load, name):
    model = load(name)
    wanted = predicted(model)
    moved = []
    own = memory.stream_blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "stream_blocks", lambda module, device: moved.append(module) or own(module, device))
        model.set_memory(Memory(offload="blocks"))
    assert moved == [network_of(model)], "the autoencoder is called by other names than forward"
    hooked = [part for part in network_of(model).modules() if _group_hook(part) is not None]
    assert len(hooked) > 1
    assert torch.equal(predicted(model), wanted)
    with pytest.raises(ModelError, match="“vsd” trains layers inside the network.* offload=parts"):
        model.companion(0)
    model.set_memory(Memory())
    assert not any(_group_hook(part) for part in network_of(model).modules())
    assert torch.equal(predicted(model), wanted)
    model.companion(0)


def _group_hook(part):
    registry = getattr(part, "_diffusers_hook", None)
    return registry.get_hook("group_offloading") if registry is not None else None


@pytest.mark.parametrize("name", ["pixel", "sd", "sdxl"])
def test_attention_in_slices_is_the_same_attention(load, name):
    scene = scene_of(shapes.torus(16, 8), 16, (0.0, 90.0, 200.0))
    model = load(name, control=name in CONTROLLED)
    wanted = predicted(model, scene=scene)
    plain = {type(processor) for processor in model.unet.attn_processors.values()}
    model.set_memory(Memory(attention_slicing=True))
    nets = [model.unet] + ([model.control.net] if name in CONTROLLED else [])
    for net in nets:
        kinds = {type(processor).__name__ for processor in net.attn_processors.values()}
        assert kinds and all(kind.startswith("Sliced") for kind in kinds)
    assert torch.allclose(predicted(model, scene=scene), wanted, atol=1e-4, rtol=1e-4)
    model.set_memory(Memory())
    assert {type(processor) for processor in model.unet.attn_processors.values()} == plain


@pytest.mark.parametrize("name", ["sd", "klein"])
def test_the_autoencoder_works_in_tiles(load, name):
    """Untrained ones see each tile differently, so what can be compared is a tile, and what fits one."""
    model = load(name)
    picture = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent, small = model.encode(picture), model.encode(picture[..., :16, :16])
    whole, first = model.decode(latent), model.decode(small)
    sizes = []
    hook = model.vae.decoder.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    model.set_memory(Memory(vae_tiling=True))
    tiled = model.decode(latent)
    assert len(sizes) == 16 and max(sizes) == 16 and tiled.shape == whole.shape
    assert torch.equal(model.encode(picture[..., :16, :16]), small) and torch.equal(model.decode(small), first)
    side = latent.shape[-1] // 3
    # The first tile up to where the next one is blended in.
    alone = model.decode(latent[..., :side, :side])
    assert torch.allclose(tiled[..., :11, :11], alone[..., :11, :11], atol=1e-5)
    sizes.clear()
    model.set_memory(Memory())
    assert torch.equal(model.decode(latent), whole) and sizes == [48]
    hook.remove()


def test_auto_looks_at_what_is_free(load, monkeypatch):
    model = load("sd")
    gpu = torch.device("cuda")
    weights = sum(p.nbytes for m in model.modules() for p in (*m.parameters(), *m.buffers()))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    for free, short in ((weights + memory.WORK_BYTES, False), (weights + memory.WORK_BYTES - 1, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2 * free))
        assert memory.is_short(model.modules(), gpu) is short
    assert not memory.is_short(model.modules(), CPU)
    for answer in (True, False):
        monkeypatch.setattr(memory, "is_short", lambda modules, device, answer=answer: answer)
        for offload, alone in (("auto", answer), ("never", False), ("parts", True)):
            model.set_memory(Memory(offload=offload))
            assert model._alone is alone


def test_what_cannot_be_done_is_said(load):
    built_in = models.ModelShelf().get(protocol.BUILT_IN_MODEL, CPU)
    assert not isinstance(built_in, Sparing) and isinstance(load("sd"), Sparing)
    models.set_memory((built_in,), Memory())
    with pytest.raises(ModelError, match="“built-in” is small.* Leave rows, offload, .* out."):
        models.set_memory((built_in,), Memory(rows=2))
    for name in ("sd3", "klein", "z_image"):
        with pytest.raises(ModelError, match=f"The network of “{name}” offers no attention slicing"):
            load(name).set_memory(Memory(attention_slicing=True))
    with pytest.raises(ModelError, match="“pixel” paints pixels and has no autoencoder to tile"):
        load("pixel").set_memory(Memory(vae_tiling=True))


def test_of_a_cascade_each_model_does_what_it_can(load, tmp_path):
    built_in = models.second_stage(protocol.BUILT_IN_MODEL, CPU)
    stage = families.load(toy_models.save("second", tmp_path / "second"), CPU, second=True)
    latent, pixel, flow = load("sd"), load("pixel"), load("sd3")
    models.set_memory((latent, built_in), Memory(rows=1))
    assert latent.rows == 1
    models.set_memory((built_in, stage), Memory(rows=2))
    assert stage.rows == 2
    models.set_memory((latent, stage), Memory(rows=3, vae_tiling=True))
    assert latent.rows == stage.rows == 3 and latent.vae.use_tiling
    models.set_memory((flow, stage), Memory(attention_slicing=True))
    kinds = {type(processor).__name__ for processor in stage.unet.attn_processors.values()}
    assert kinds and all(kind.startswith("Sliced") for kind in kinds)
    for run, wanted, sentence in (
        ((built_in, built_in), Memory(rows=2), "second stage” is small.* Leave rows, offload, .* out."),
        ((pixel, stage), Memory(vae_tiling=True), "“pixel” paints pixels and has no autoencoder to tile"),
        ((flow, built_in), Memory(attention_slicing=True), "The network of “sd3” offers no attention slicing"),
    ):
        with pytest.raises(ModelError, match=sentence):
            models.set_memory(run, wanted)


def test_memory_is_no_part_of_the_plan(load):
    model = load("sd")
    request = protocol.TextureRequest(prompt="x", options={"rows": "1", "offload": "blocks", "rescale": "0.2"})
    assert planning.memory_of(request) == Memory(rows=1, offload="blocks")
    plain = protocol.TextureRequest(prompt="x", options={"rescale": "0.2"})
    assert planning.make_plan(request, model) == planning.make_plan(plain, model), "a checkpoint would not fit"


# --- through the command ----------------------------------------------------------------------------


def texture(tmp_path, capsys, *arguments):
    (tmp_path / "cube.obj").write_text(CUBE)
    common = ["texture", tmp_path / "cube.obj", "--prompt", "red plastic", "--out", tmp_path / "out", "--steps", "2",
              "--texture-size", "512", "--device", "cpu"]  # fmt: skip
    code = command.main([str(argument) for argument in (*common, *arguments)])
    return code, capsys.readouterr().err


@pytest.mark.slow
def test_the_command_takes_them_and_the_maps_are_the_same(home, tmp_path, capsys):
    def maps(name, *settings):
        code, told = texture(
            tmp_path, capsys, "--model", home / "sd", *(part for s in settings for part in ("--set", s))
        )
        assert code == protocol.EXIT_OK, told
        made = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.png")}
        return made, json.loads((tmp_path / "out" / "report.json").read_text())

    plain, _ = maps("plain", "rows=64")
    spared, report = maps("spared", "rows=64", "offload=parts")
    assert plain == spared and report["options"] == {"rows": "64", "offload": "parts"}


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("rows=0", "A network cannot see 0 pictures at once; rows must lie between 1 and 64."),
        ("rows=few", "The option “rows” cannot be “few”; it is of the kind int."),
        ("offload=disk", "The option “offload” is one of auto, never, parts, blocks, not “disk”."),
        ("vae_tiles=true", "There is no option “vae_tiles”; there are guidance_scale_end,"),
    ],
)
def test_bad_settings_get_one_sentence(home, tmp_path, capsys, setting, sentence):
    code, told = texture(tmp_path, capsys, "--model", home / "sd", "--set", setting)
    assert code == protocol.EXIT_BAD_REQUEST and told.count(sentence) == 1 and "Traceback" not in told


def test_help_tells_of_every_option():
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("sys.stdout", type("Out", (), {"write": lambda self, text: said.append(text)})())
        command.main(["texture", "--help"])
    text = " ".join("".join(said).split())
    for name in (*option_names(Options), *option_names(Memory)):
        assert f"{name}=" in text, name
