# SPDX-License-Identifier: GPL-3.0-or-later
"""`models list | pull | check | remove`, with huggingface_hub's real client before a hub of our own."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import toy_models

from addon import protocol
from backend import __main__ as command
from backend import model_command, model_fetch, model_store
from backend import models as backend_models
from backend.diffusion.interface import ModelError
from backend.models import ModelShelf

ID, REVISION = "toys/red", "a" * 40
LARGE = 20_000  # bytes from which on the hub keeps a file's sha256


class Hub(ThreadingHTTPServer):
    """The part of the hub that fetching a model takes: what a model holds, and byte ranges of its files."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.served, self.break_after, self.gated = folder, [], None, False
        self.revision = REVISION
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server
        if hub.gated:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to this model is restricted")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{ID}"):
            return self.answer(json.dumps(self.listing()).encode(), {"Content-Type": "application/json"})
        name = path.removeprefix(f"/{ID}/resolve/{hub.revision}/")
        file = hub.folder / name
        if name == path or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.answer(content, {"X-Repo-Commit": hub.revision, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}, name)

    def listing(self):
        files = []
        for file in sorted(self.server.folder.rglob("*")):
            if file.is_file():
                content = file.read_bytes()
                entry = {"rfilename": file.relative_to(self.server.folder).as_posix(), "size": len(content)}
                if len(content) > LARGE:
                    entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content),
                                    "pointerSize": 130}  # fmt: skip
                files.append(entry)
        files += [{"rfilename": name, "size": 3} for name in ("unet/../../../evil.json", "unet/a/b.json")]
        return {"id": ID, "sha": self.server.revision, "siblings": files, "cardData": {"license": "toy-1.0"}}

    def answer(self, content, headers, name=None):
        start = 0
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        hub = self.server
        if name is not None:
            hub.served.append((name, start))
            if hub.break_after is not None and len(content) > LARGE:
                self.wfile.write(content[start : start + hub.break_after])
                self.wfile.flush()
                hub.break_after = 0  # the client tries again by itself, and gets nothing more
                return self.connection.close()
        self.wfile.write(content[start:])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = toy_models.save("sd", tmp_path_factory.mktemp("hub") / "red")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("# Red")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"0" * 99)
    return folder


@pytest.fixture
def hub(published):
    made = Hub(published)
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def models(monkeypatch, capsys):
    """The command as a user types it: (exit code, stdout, stderr). Without a hub, nobody listens there."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    # What it writes at once: 10 MB, more than a toy has.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)

    def run(hub, home, *arguments):
        monkeypatch.setenv("HF_ENDPOINT", hub.address if hub else "http://127.0.0.1:9")
        monkeypatch.setenv("PATINA_MODELS", str(home))
        code = command.main(["models", *arguments])
        out, told = capsys.readouterr()
        return code, out, told

    return run


def test_pull_tells_the_licence_first_goes_on_where_it_broke_and_checks_what_came(hub, models, tmp_path):
    code, _, told = models(hub, tmp_path, "pull", ID)
    assert code == protocol.EXIT_BAD_REQUEST
    assert "licence: toy-1.0" in told and "Nothing was fetched. Read the licence at http" in told
    assert not any(name.endswith(".safetensors") for name, _ in hub.served)

    hub.break_after = 15_000
    code, _, told = models(hub, tmp_path, "pull", ID, "--accept")
    assert code != 0 and "Traceback" not in told, told
    code, _, told = models(None, tmp_path, "check", ID)
    assert code == protocol.EXIT_BAD_REQUEST and f"“{ID}” was not fetched to its end. Pull it again" in told
    with pytest.raises(ModelError, match="was not fetched to its end. Go on with: python -m backend models pull toys/"):
        ModelShelf().get(ID, torch.device("cpu"))
    hub.break_after = None
    hub.served.clear()
    code, out, told = models(hub, tmp_path, "pull", ID, "--accept")
    assert code == 0, told
    place = tmp_path / "toys--red"
    assert out.strip() == str(place)
    assert any(start > 0 for _, start in hub.served), "it began anew"
    names = {name for name, _ in hub.served}
    assert not list(tmp_path.parent.rglob("evil.json")) and not (place / "unet" / "a").exists()
    assert not any(name.endswith(".bin") or name.startswith(("safety_checker", "README")) for name in names)

    # From here on there is no network.
    code, out, _ = models(None, tmp_path, "list")
    assert code == 0 and "toys/red: 0.00 GB, toy-1.0; general" in out
    assert "stabilityai/stable-diffusion-xl-base-1.0: about 7 GB, CreativeML Open RAIL++-M" in out
    code, out, _ = models(None, tmp_path, "check", ID)
    assert code == 0 and "is whole: StableDiffusionPipeline" in out
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, told = models(None, tmp_path, "check", str(place))
    assert code == protocol.EXIT_BAD_REQUEST and "is not what was published: it is damaged. Pull it again." in told
    code, _, told = models(hub, tmp_path, "pull", ID, "--accept")
    assert code == 0, "a damaged file is fetched anew"
    code, out, _ = models(None, tmp_path, "remove", ID)
    assert code == 0 and "GB are free again." in out and not place.exists()


def test_a_model_that_asks_first_and_one_that_is_not_there(hub, models, tmp_path):
    code, _, told = models(hub, tmp_path, "pull", "toys/blue", "--accept")
    assert code == protocol.EXIT_BAD_REQUEST and "There is no model “toys/blue” on the hub" in told
    hub.gated = True
    code, _, told = models(hub, tmp_path, "pull", ID, "--accept")
    assert code == protocol.EXIT_BAD_REQUEST and "given only to those who agreed to its licence" in told


def test_without_a_network_the_sentence_says_so(models, tmp_path):
    code, _, told = models(None, tmp_path, "pull", ID, "--accept")
    assert code == protocol.EXIT_BAD_REQUEST
    assert "The hub cannot be reached" in told and "Models that are here still work." in told


def test_names_that_would_lead_out_of_the_models_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PATINA_MODELS", str(tmp_path / "models"))
    (tmp_path / "precious").mkdir()
    for name in ("../precious", "a/..", "/etc", "one", "a/b/c", "", "a b/c"):
        with pytest.raises(ModelError, match="is no model id; one looks like owner/name"):
            model_store.remove(name)
    with pytest.raises(ModelError, match="“toys/none” is not here. Fetched models: none."):
        model_store.remove("toys/none")
    assert (tmp_path / "precious").is_dir()


def test_notes_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PATINA_MODELS", str(tmp_path))
    place = tmp_path / "toys--red"
    place.mkdir()
    for content in ("{", "[]", '{"id": 3, "files": {}}'):
        (place / model_store.FACTS).write_text(content)
        with pytest.raises(ModelError, match="patina.json cannot be read. Pull the model again."):
            model_store.check(place)
    assert model_store.find("toys/red") == place and model_store.find("toys/blue") is None


def test_one_damaged_model_does_not_hide_the_others(models, tmp_path, published):
    for name in ("toys--red", "toys--blue"):
        shutil.copytree(published, tmp_path / name)
    (tmp_path / "toys--red" / model_store.FACTS).write_text(json.dumps({"id": ID, "licence": "toy-1.0", "files": {}}))
    for content in ("{", "[]", '{"id": "toys/blue", "files": {"a": 3}}', '{"id": "toys/blue", "files": 3}'):
        (tmp_path / "toys--blue" / model_store.FACTS).write_text(content)
        code, out, _ = models(None, tmp_path, "list")
        assert code == 0 and "toys/red: 0.00 GB, toy-1.0; general" in out
        assert "toys/blue: 0.00 GB, unknown; " in out and "patina.json cannot be read. Pull the model again." in out
        rows = {row["id"]: row for row in model_command.listed()}
        assert rows["toys/red"]["here"] and not rows["toys/red"]["problem"]
        assert rows["toys/blue"]["here"] and "cannot be read. Pull the model again." in rows["toys/blue"]["problem"]
        code, _, told = models(None, tmp_path, "remove", "toys/none")
        assert "Fetched models: toys/blue, toys/red." in told
    # A control without its settings.
    (tmp_path / "toys--blue" / "model_index.json").unlink()
    (tmp_path / "toys--blue" / "config.json").write_text("{")
    assert {row["id"]: row for row in model_command.listed()}["toys/blue"]["problem"]
    assert models(None, tmp_path, "remove", "toys/blue")[0] == 0 and not (tmp_path / "toys--blue").exists()


WHOLE, WHOLE16 = ["u/model.safetensors"], ["u/model.fp16.safetensors"]
LIST, LIST16 = ["u/model.safetensors.index.json"], ["u/model.safetensors.index.fp16.json"]
PIECES = [f"u/model-0000{i}-of-00002.safetensors" for i in (1, 2)]
PIECES16 = [f"u/model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
OLD16 = [f"u/model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]  # as it was named before


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (WHOLE, WHOLE),
        (WHOLE + WHOLE16, WHOLE16),
        (WHOLE16, WHOLE16),
        (LIST + PIECES, LIST + PIECES),
        (LIST + PIECES + LIST16 + PIECES16, LIST16 + PIECES16),
        (LIST + PIECES + LIST16 + OLD16, LIST16 + OLD16),
        (LIST + PIECES + WHOLE16, WHOLE16),
        (WHOLE + WHOLE16 + LIST16 + PIECES16, WHOLE16),
        (LIST + PIECES + LIST16 + PIECES16[:1], LIST + PIECES),
        (LIST + PIECES + LIST16, LIST + PIECES),
        (LIST + PIECES + PIECES16, LIST + PIECES),
        (WHOLE + ["u/model.bf16.safetensors"], WHOLE),
        (["u/model.bf16.safetensors"], ["u/model.bf16.safetensors"]),
    ],
)
def test_weights_are_fetched_once_and_in_half_precision_where_they_are_whole(there, wanted):
    for names in (there, there[::-1]):
        assert sorted(model_fetch._smallest(names)) == sorted(wanted)


def test_a_part_that_is_too_long_is_fetched_anew(hub, models, tmp_path):
    name = "unet/diffusion_pytorch_model.safetensors"
    part = tmp_path / "toys--red" / f"{name}.{REVISION[:8]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * ((hub.folder / name).stat().st_size + 1))
    code, _, told = models(hub, tmp_path, "pull", ID, "--accept")
    assert code == 0, told
    assert (tmp_path / "toys--red" / name).read_bytes() == (hub.folder / name).read_bytes()


def test_two_do_not_fetch_or_remove_one_model_at_once(hub, models, tmp_path):
    assert models(hub, tmp_path, "pull", ID, "--accept")[0] == 0
    hub.served.clear()
    held = protocol.take_lock(tmp_path / "toys--red.lock", "another")
    try:
        code, _, told = models(hub, tmp_path, "pull", ID, "--accept")
        assert code == protocol.EXIT_BAD_REQUEST
        assert f"Another Patina is fetching “{ID}” just now. Wait until that has ended." in told
        assert not any(name.endswith(".safetensors") for name, _ in hub.served)
        code, _, told = models(None, tmp_path, "remove", ID)
        assert code == protocol.EXIT_BAD_REQUEST and "Remove it when that has ended." in told
    finally:
        protocol.release_lock(held)
    assert models(None, tmp_path, "check", ID)[0] == 0
    assert models(None, tmp_path, "remove", ID)[0] == 0


def test_another_revision_replaces_what_is_here(models, tmp_path, published):
    shutil.copytree(published, tmp_path / "hub")
    hub, home = Hub(tmp_path / "hub"), tmp_path / "models"
    place, config = home / "toys--red", "scheduler/scheduler_config.json"
    try:
        assert models(hub, home, "pull", ID, "--accept")[0] == 0
        hub.served.clear()
        assert models(hub, home, "pull", ID, "--accept")[0] == 0
        assert {name for name, _ in hub.served} == {"model_index.json"}, "all is here"
        # Files of the same size, one that is gone, and what a broken download left behind.
        old = (hub.folder / config).read_text()
        (hub.folder / config).write_text(new := old.replace("0.012", "0.013"))
        assert new != old
        (place / f"unet/diffusion_pytorch_model.safetensors.{REVISION[:8]}.part").write_bytes(b"old")
        (place / "unet" / "diffusion_pytorch_model.fp16-00001-of-00002.safetensors").write_bytes(b"old")
        hub.revision = "b" * 40
        code, _, told = models(hub, home, "pull", ID)
        assert "Nothing was fetched." in told and (place / config).read_text() == old
        hub.served.clear()
        code, _, told = models(hub, home, "pull", ID, "--accept")
        assert code == 0, told
        assert (place / config).read_text() == new
        assert json.loads((place / model_store.FACTS).read_text())["revision"] == hub.revision
        assert not any(name.endswith(".safetensors") for name, _ in hub.served), "the same weights were fetched again"
        assert not list(place.rglob("*.part")) and not list(place.rglob("*of-00002*"))
    finally:
        hub.shutdown()
        hub.server_close()


def test_a_control_is_pulled_checked_and_found_too(models, tmp_path):
    folder = toy_models.save_control("sd", tmp_path / "published")
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("# A control")
    hub, home = Hub(folder), tmp_path / "models"
    try:
        code, _, told = models(hub, home, "pull", ID)
        assert code == protocol.EXIT_BAD_REQUEST and "licence: toy-1.0" in told and "Nothing was fetched" in told
        code, out, told = models(hub, home, "pull", ID, "--accept")
        assert code == 0, told
        names = {name for name, _ in hub.served}
        assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    finally:
        hub.shutdown()
        hub.server_close()
    code, out, _ = models(None, home, "list")
    assert code == 0 and f"{ID}: 0.00 GB, toy-1.0; control, for SD or SDXL" in out
    known = "lllyasviel/control_v11f1p_sd15_depth: about 0.7 GB, CreativeML Open RAIL-M; control: depth, for SD 1.5"
    assert known in out
    assert ID not in {row["id"] for row in model_command.listed()}, "it can be chosen as a model"
    code, out, _ = models(None, home, "check", ID)
    assert code == 0 and "is whole: ControlNetModel" in out
    weights = model_store.find(ID) / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    code, _, told = models(None, home, "check", ID)
    assert code == protocol.EXIT_BAD_REQUEST and "is missing or cut off. Pull it again." in told


def test_the_list_says_what_each_model_can_be_used_for(models, tmp_path):
    home = tmp_path / "models"
    _, out, _ = models(None, home, "list")
    told = "DeepFloyd/IF-II-L-v1.0: about 12 GB, DeepFloyd IF: research only (ask first); second stage: 256 px pictures"
    assert told in out
    assert "DeepFloyd/IF-II-L-v1.0" in {row["id"] for row in model_command.listed()}
    for name, identifier in (
        ("sd", "stable-diffusion-v1-5/stable-diffusion-v1-5"), ("second", "toys/large"), ("pixel", "toys/small"),
    ):  # fmt: skip
        place = toy_models.save(name, model_store.place(identifier))
        (place / model_store.FACTS).write_text(json.dumps({"id": identifier, "licence": "toy-1.0", "files": {}}))
    depth = "lllyasviel/control_v11f1p_sd15_depth"
    place = toy_models.save_control("sd", model_store.place(depth))
    (place / model_store.FACTS).write_text(json.dumps({"id": depth, "licence": "toy-1.0", "files": {}}))
    _, out, _ = models(None, home, "list")
    for line in (
        "stable-diffusion-v1-5/stable-diffusion-v1-5: 0.00 GB, toy-1.0; general, from 4 GB",
        "toys/large: 0.00 GB, toy-1.0; second stage",
        "toys/small: 0.00 GB, toy-1.0; 64 px pictures",
        f"{depth}: 0.00 GB, toy-1.0; control: depth, for SD 1.5",
    ):
        assert line in out.splitlines(), out
    uses = {row["id"]: row["use"] for row in model_command.listed()}
    assert uses["toys/large"] == "second stage" and uses["toys/small"] == "64 px pictures"
    (model_store.place("stable-diffusion-v1-5/stable-diffusion-v1-5") / "model_index.json").unlink()
    row = next(row for row in model_command.listed() if row["id"].startswith("stable-diffusion-v1-5"))
    assert row["problem"] and not row["use"].startswith("control")


@pytest.mark.parametrize(
    "name", ["~nosuchuser/x", "a" * 300 + "/b", "/tmp/" + "a" * 300, "x\0y", "a/..", "a" * 60 + "/" + "b" * 60]
)
def test_names_that_no_disk_can_hold(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PATINA_MODELS", str(tmp_path))
    assert model_store.find(name) is None and not model_store.is_partly_here(name)
    with pytest.raises(ModelError, match="Patina does not know the model"):
        ModelShelf().get(name, torch.device("cpu"))
    with pytest.raises(ModelError, match="is no CLIP model"):
        backend_models.clip(name, torch.device("cpu"))
    assert command._model_named(name) == name


def test_what_is_neither_model_nor_control_is_not_pulled(models, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    for content, name in (('{"_class_name": "MysteryModel"}', "config.json"), ("x", "weights.safetensors")):
        (folder / name).write_text(content)
        hub = Hub(folder)
        try:
            code, _, told = models(hub, tmp_path / "models", "pull", ID, "--accept")
        finally:
            hub.shutdown()
            hub.server_close()
        assert code == protocol.EXIT_BAD_REQUEST and "is neither a model nor a control in diffusers' format" in told
