# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders that are no models, or not whole, or not safe: one clear sentence each, and nothing of them is run."""

import json
import pickle
import re
import shutil
import struct

import pytest
import torch
import toy_models
from safetensors.torch import save_file

from backend.diffusion import families, folder
from backend.diffusion.interface import ModelError
from backend.models import ModelShelf

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return toy_models.save("sd", tmp_path_factory.mktemp("whole") / "toy")


@pytest.fixture
def model(whole, tmp_path):
    """A copy that may be broken."""
    return shutil.copytree(whole, tmp_path / "toy")


def refused(path, sentence):
    """The shelf, which every user goes through, says `sentence` and nothing longer than a few lines."""
    with pytest.raises(ModelError) as caught:
        ModelShelf().get(str(path), CPU)
    text = str(caught.value)
    assert re.search(sentence, text), text
    assert len(text.replace(str(path), "")) < 450 and "\n" not in text
    assert text[0].isupper() | (text[0] in "/“") and text[-1] in ".)"
    assert caught.type.__name__ in ("ModelError", "FolderError")


def edit(path, **changes):
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, **changes}))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_the_whole_one_is_read(whole):
    found = folder.read(whole)
    assert found.pipeline == "StableDiffusionPipeline" and found.parts["unet"] == "UNet2DConditionModel"
    assert set(found.parts) == {"unet", "vae", "scheduler", "tokenizer", "text_encoder"}
    assert found.variant("unet") is None
    shelf = ModelShelf()
    assert shelf.get(str(whole), CPU) is shelf.get(str(whole), CPU), "loaded once"


def test_a_name_that_is_no_folder(tmp_path):
    refused(
        "stabilityai/none-here", "does not know the model “stabilityai/none-here”. Choose “built-in”, the folder of"
    )
    refused(tmp_path, "is no model folder: it holds no model_index.json.")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "is a single file. Patina needs the model as a folder")


def test_pickles_are_never_opened(model, tmp_path):
    burnt = tmp_path / "burnt"
    for name in ("model.ckpt", "model.pt", "model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(burnt)))
        refused(tmp_path / name, "is a pickle checkpoint, which can run any program when it is opened")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(pickle.dumps(Bomb(burnt)))
    refused(model, "diffusion_pytorch_model.bin is a pickle, .* Patina opens safetensors only")
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    (lonely / "weights.ckpt").write_bytes(pickle.dumps(Bomb(burnt)))
    refused(lonely, "weights.ckpt is a pickle checkpoint")
    assert not burnt.exists()


def test_a_pickle_beside_safetensors_is_left_alone(model, tmp_path):
    burnt = tmp_path / "burnt"
    for part in ("unet", "text_encoder"):
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
            (model / part / name).write_bytes(pickle.dumps(Bomb(burnt)))
    ModelShelf().get(str(model), CPU).set_prompt("red plastic", "")
    assert not burnt.exists()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part(model, part):
    shutil.rmtree(model / part)
    refused(model, f"The model is not complete: .*{part} is missing. Download it again.")
    (model / part).mkdir()
    refused(model, f"The model is not complete: .*{part}.* Download it again.")


def test_half_a_download(model):
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    for half in (content[:-1], content[: len(content) // 2], content[:5], b"", content + b"x",
                 b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
                 struct.pack("<Q", 20) + b"{" * 20, struct.pack("<Q", 2**60) + content[8:],
                 struct.pack("<Q", 2) + b"[]"):  # fmt: skip
        weights.write_bytes(half)
        refused(model, "The model is not complete: .*safetensors is cut off or damaged. Download it again.")
    weights.unlink()
    refused(model, "The model is not complete: .*unet holds no weights")


def test_a_missing_piece_of_many(model):
    unet = model / "unet"
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    for name in ("diffusion_pytorch_model-00002-of-00002.safetensors", "../../../../etc/passwd", 5):
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
        refused(model, "The model is not complete: .* is missing. Download it again.")
    index.write_text(json.dumps({"weight_map": 3}))
    refused(model, "is no list of weights")


def test_a_model_of_an_unknown_class(model):
    index = model / "model_index.json"
    for name in ("MysteryPipeline", None, ["os", "system"], "a\nb" * 500):
        edit(index, _class_name=name)
        refused(model, "holds a “.*”, a kind of model that Patina does not know. It knows: IFPipeline, Stable")
    index.write_text("{")
    refused(model, "The model is damaged: .*model_index.json cannot be read")
    index.write_text("[]")
    refused(model, "The model is damaged: .*model_index.json holds no settings")


def test_no_class_is_loaded_because_a_file_names_it(model):
    index = model / "model_index.json"
    edit(index, text_encoder=["subprocess", "Popen"])
    refused(model, "names “subprocess Popen” as its text_encoder; Patina can load CLIPTextModel there.")
    edit(index, text_encoder=[None, None])
    refused(model, "names nothing as its text_encoder")
    edit(
        index,
        text_encoder=["transformers", "CLIPTextModel"],
        scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
    )
    refused(
        model, "names “diffusers FlowMatchEulerDiscreteScheduler” as its scheduler; Patina can load DDPMScheduler or"
    )


def test_code_that_travels_with_a_model_is_not_run(model, tmp_path):
    burnt = tmp_path / "burnt"
    for part in ("text_encoder", "unet", "tokenizer"):
        (model / part / "evil.py").write_text(f"open({str(burnt)!r}, 'w')\nclass Evil: pass\n")
    edit(model / "text_encoder" / "config.json", auto_map={"AutoModel": "evil.Evil"}, architectures=["Evil"])
    edit(model / "unet" / "config.json", auto_map={"AutoModel": "evil.Evil"})
    edit(model / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    ModelShelf().get(str(model), CPU).set_prompt("red plastic", "")
    assert not burnt.exists()


def test_a_part_is_no_model_and_a_control_neither(model):
    refused(model / "unet", "holds a “UNet2DConditionModel”, one part of a model and no whole one")
    control = model.parent / "control"
    control.mkdir()
    (control / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    refused(control, "holds a “ControlNetModel”, one part of a model")


def test_weights_of_another_shape(model):
    edit(model / "unet" / "config.json", block_out_channels=[16, 16])
    refused(model, "The model in .* cannot be loaded. ")


def test_settings_that_mean_nothing(model):
    edit(model / "unet" / "config.json", block_out_channels="many")
    refused(model, "The model in .* cannot be loaded. ")


def test_a_model_for_inpainting_is_refused(model, tmp_path):
    torch.manual_seed(0)
    pipeline = toy_models.stable_diffusion()
    pipeline.unet = toy_models.unet(9, 16, out_channels=4)
    pipeline.save_pretrained(tmp_path / "inpaint", safe_serialization=True)
    refused(tmp_path / "inpaint", "takes 9 channels where its autoencoder makes 4: it is made for inpainting")


def test_a_later_stage_of_a_cascade_is_refused(tmp_path):
    torch.manual_seed(0)
    pipeline = toy_models.pixel()
    pipeline.unet = toy_models.unet(6, 12, out_channels=6, encoder_hid_dim=16)
    pipeline.save_pretrained(tmp_path / "second", safe_serialization=True)
    refused(tmp_path / "second", "is a later stage of a cascade")


def test_a_variant_is_found(model):
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        weights = model / part / f"{stem}.safetensors"
        weights.rename(weights.with_name(f"{stem}.fp16.safetensors"))
    assert folder.read(model).variant("unet") == "fp16"
    families.load(model, CPU).set_prompt("red plastic", "")


def test_whole_weights_are_measured(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert folder.check_weights(tmp_path / "w.safetensors") == (tmp_path / "w.safetensors").stat().st_size
    save_file({}, tmp_path / "empty.safetensors")
    assert folder.check_weights(tmp_path / "empty.safetensors") > 0
