# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts that are not whole are refused by loading and by `models check` alike; those with older names pass."""

import json
import shutil

import pytest
import torch
import toy_models
from safetensors.torch import load_file, save_file

from backend import job, model_store, models
from backend.diffusion import families, parts, worded
from backend.diffusion.folder import FolderError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("parts")
    for name in (*toy_models.FAMILIES, "second"):
        toy_models.save(name, home / name)
    for name in ("sd", "sd3", "z_image"):
        toy_models.save_control(name, home / f"{name}-depth")
    return home


@pytest.fixture
def copy(home, tmp_path):
    """A copy of a toy model that may be broken."""
    return lambda name: shutil.copytree(home / name, tmp_path / name)


def change(part, edit):
    """`edit` the part's tensors, a dict by name."""
    (file,) = part.glob("*.safetensors")
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def drop(part, words):
    """Delete the tensors whose names hold the words; how many."""
    gone = []

    def edit(tensors):
        gone.extend(name for name in tensors if words in name)
        for name in gone:
            del tensors[name]

    change(part, edit)
    return len(gone)


def renamed(tensors, rename):
    for name in list(tensors):
        tensors[rename(name)] = tensors.pop(name)


def use(path):
    models.ModelShelf().get(str(path), CPU).set_prompt("red plastic", "")


def refused(path, sentence):
    """Both say it, in one line that a person can read."""
    for refuse in (use, model_store.check):
        with pytest.raises(FolderError, match=sentence) as caught:
            refuse(path)
        text = str(caught.value)
        assert len(text) < 500 and "\n" not in text and job.failure_of(caught.value).kind == "bad_model"


@pytest.mark.parametrize("name", [*toy_models.FAMILIES, "second", "sd-depth", "sd3-depth", "z_image-depth"])
def test_whole_ones_pass(home, name):
    assert model_store.check(home / name).path == home / name


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("sd", "unet", "up_blocks"),
        ("sd", "vae", "decoder"),
        ("sd", "text_encoder", "layers"),
        ("sdxl", "text_encoder_2", "text_projection"),
        ("pixel", "text_encoder", "block.1"),
        ("sd3", "transformer", "transformer_blocks.1"),
        ("klein", "vae", "bn.running_mean"),
        ("klein", "text_encoder", "layers.27"),
        ("z_image", "text_encoder", "embed_tokens"),
    ],
)
def test_a_part_without_some_of_its_weights(copy, name, part, words):
    model = copy(name)
    assert (count := drop(model / part, words))
    refused(model, f"not complete: of its weights .*{part} lacks {count}, .*{words}.* among them. Download it again.")


@pytest.mark.parametrize(
    ("name", "words"), [("sd", "down_blocks.1"), ("sd3", "controlnet_blocks"), ("z_image", "layers")]
)
def test_a_control_without_some_of_its_weights(home, copy, name, words):
    control = copy(f"{name}-depth")
    assert drop(control, words)
    model = families.load(home / name, CPU)
    for refuse in (lambda path: model.set_control(path, "", 1.0), model_store.check):
        with pytest.raises(FolderError, match=f"of its weights .*-depth lacks .*{words}.* Download it again."):
            refuse(control)


def test_weights_that_another_one_stands_for_may_lack(copy):
    """T5's words stand in its files once or twice, Qwen's output words never; older files have other names."""
    model = copy("sd")

    def old_vae(tensors):
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            new, old = f"attentions.0.{new}.", f"attentions.0.{old}."
            renamed(tensors, lambda name, new=new, old=old: name.replace(new, old))
        assert any("query" in name for name in tensors)

    def old_words(tensors):
        renamed(tensors, lambda name: f"text_model.{name}")
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    change(model / "vae", old_vae)
    change(model / "text_encoder", old_words)
    model_store.check(model)
    use(model)
    pixel = copy("pixel")
    change(pixel / "text_encoder", lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"].clone()}))
    model_store.check(pixel)
    drop(pixel / "text_encoder", "shared.weight")
    model_store.check(pixel)
    use(pixel)
    tied = copy("z_image")
    edit_json(tied / "text_encoder" / "config.json", tie_word_embeddings=True)
    drop(tied / "text_encoder", "lm_head")
    model_store.check(tied)
    use(tied)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_check_reads_no_weights(home, monkeypatch):
    made, own = [], parts.network
    for module in (parts, worded):
        monkeypatch.setattr(module, "network", lambda *a, **named: made.append(own(*a, **named)) or made[-1])
    families.check(home / "sd3")
    assert len(made) == 5
    assert {tensor.device.type for network in made for tensor in network.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["sd", "pixel", "klein"])
def test_a_tokenizer_without_a_vocabulary(copy, name):
    model = copy(name)
    for file in (model / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    refused(model, r"not complete: .*tokenizer has no vocabulary \(tokenizer.json, or vocab.json with merges.txt, or")
    (model / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    refused(model, "has no vocabulary")


def test_a_vocabulary_that_knows_no_words(copy):
    model = copy("sd")
    (model / "tokenizer" / "tokenizer.json").unlink()
    (model / "tokenizer" / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (model / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    refused(model, "the tokenizer in .*tokenizer knows no words, and every prompt would mean the same. Download it")


def test_damaged_tokenizers(copy):
    model = copy("sd")
    stored = model / "tokenizer" / "tokenizer.json"
    whole = stored.read_text()
    for content in (whole[: len(whole) // 2], "[1, 2]", '{"model": {"type": "Magic"}}', '{"version": 3}'):
        stored.write_text(content)
        refused(model, "The model is damaged: the tokenizer in .* cannot be read|knows no words")
    stored.write_text(whole)
    (model / "tokenizer" / "tokenizer_config.json").write_text("{")
    refused(model, "The model is damaged: the tokenizer in .* cannot be read")


def test_text_encoders_that_do_not_fit(copy):
    model = copy("sd")
    config = model / "text_encoder" / "config.json"
    whole = config.read_text()
    for changes, sentence in (
        ({"hidden_size": 32}, r"text_encoder does not fit its own config.json \(.*16.* in the one and \(.*32"),
        ({"hidden_size": "many"}, "The text_encoder of the model in .* cannot be loaded."),
        ({"num_hidden_layers": 3}, "not complete: of its weights .*text_encoder lacks 16"),
    ):
        config.write_text(json.dumps({**json.loads(whole), **changes}))
        refused(model, sentence)
    config.write_text("{}")
    refused(model, "text_encoder")


def test_a_tokenizer_of_another_model(copy):
    model = copy("sd")
    vocabulary = {word: number for number, word in enumerate(toy_models.clip_tokenizer().get_vocab())}
    vocabulary |= {f"{word}{word}": len(vocabulary) + number for number, word in enumerate("abcdef")}
    (model / "tokenizer" / "tokenizer.json").unlink()
    (model / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (model / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    refused(model, "has 62 words where its text encoder knows 56: they are of different models. Download it again.")


def test_want_of_memory_is_no_fault_of_the_folder():
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory"), OSError(12, "mmap")):
        with pytest.raises(type(error)) as caught, parts.refusals("The model in x"):
            raise error
        assert caught.value is error and job.failure_of(error).kind == "out_of_memory"
    sentence = "The model in x needs a library that is missing: sentencepiece."
    with pytest.raises(FolderError, match=sentence), parts.refusals("The model in x"):
        raise ModuleNotFoundError("No module", name="sentencepiece")
