"""Uploads, against a stand-in for the hub that runs here: what arrives, and what is said when it does not."""

import json
import socket
import sys
from functools import partial

import pytest
from helpers import tiny_model
from hub_stand_in import hub_stand_in, log_in
from huggingface_hub import snapshot_download
from model_folders import refusal
from small_job import write_run

from dynabert import cli
from dynabert.card_parts import HERE
from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError, SettingError, StorageError
from dynabert.export import ExportSettings, export_run
from dynabert.exported import open_export
from dynabert.folders import write_manifest
from dynabert.hub import push_folder
from dynabert.predict import predict_lines
from dynabert.subnet import Subnet, SubnetGrid

# What the client itself does when it uploads a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

GRID = SubnetGrid((1.0, 0.5), (1.0, 0.5))


@pytest.fixture
def elastic():
    return ElasticModel(tiny_model("bert", hidden=32, n_neurons=32), GRID)


@pytest.fixture
def folder(elastic, tmp_path):
    elastic.save_pretrained(tmp_path / "elastic")
    (tmp_path / "elastic" / "README.md").write_text(f'# Mine\n\ndynabert.load("{HERE}")\n')
    return tmp_path / "elastic"


@pytest.fixture
def hub(monkeypatch):
    with hub_stand_in(monkeypatch) as hub:
        hub.read = partial(read_with_visibility, hub, hub.read)
        yield hub


def read_with_visibility(hub, read, path):
    """What a repository is: as its first creation asked for."""
    name = path.removeprefix("/api/models/")
    if name not in hub.repositories:
        return read(path)
    return 200, {"id": name, "private": dict(reversed(hub.created)).get(name) == "private"}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["dynabert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_every_file_arrives_and_the_card_names_the_repository(folder, hub):
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("exported")
    write_manifest(folder)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "edited\n")  # a card may be
    expected = contents(folder)
    (folder / ".secret").write_text("mine")
    (folder / "onnx" / ".ipynb_checkpoints").mkdir()
    (folder / "onnx" / ".ipynb_checkpoints" / "model.onnx").write_text("of an editor")
    sent = push_folder(folder, "me/small-bert", private=True)
    assert sent.url == f"{hub.endpoint}/me/small-bert" and hub.created == [("me/small-bert", "private")]
    arrived = hub.repositories["me/small-bert"]
    assert arrived.pop("README.md").decode() == '# Mine\n\ndynabert.load("me/small-bert")\nedited\n'
    del expected["README.md"]
    assert arrived == expected and "MANIFEST.json" in arrived
    assert dict(sent.files)["model.safetensors"] == len(expected["model.safetensors"])


def test_pushing_again_replaces_what_is_there(folder, hub):
    push_folder(folder, "small-bert")
    (folder / "README.md").write_text("# Better\n")
    again = push_folder(folder, "small-bert")
    assert again.repository == "me/small-bert" and hub.repositories["me/small-bert"]["README.md"] == b"# Better\n"


def test_files_of_an_earlier_upload_go_and_those_of_others_stay(folder, elastic, hub):
    push_folder(folder, "me/small-bert")
    there = hub.repositories["me/small-bert"]
    there["notes.md"] = b"mine"
    smaller = folder.parent / "smaller"
    elastic.extract(Subnet(0.5, 0.5)).save_pretrained(smaller)
    sent = push_folder(smaller, "me/small-bert")
    assert set(there) == {"notes.md", "README.md", *contents(smaller)}
    assert set(sent.deleted) >= {"elastic.json", "MANIFEST.json"} and "README.md" not in sent.deleted
    there["MANIFEST.json"] = b"not one of ours"
    push_folder(folder, "me/small-bert")  # then nothing is deleted
    assert "notes.md" in there and "elastic.json" in there


def test_an_export_that_was_pushed_runs_from_the_hub(hub, tmp_path, monkeypatch):
    """As a snapshot, whose files are links into the cache, and as a plain download, beside files of the hub's own."""
    run = write_run(tmp_path)
    export_run(run, (Subnet(),), tmp_path / "export", settings=ExportSettings("torch", "fp32", shape=(1, 8)))
    here = [(p.label, p.score) for p in predict_lines(tmp_path / "export", ["film is warm", "plot is dull"])]
    push_folder(tmp_path / "export", "me/deployed")
    hub.repositories["me/deployed"][".gitattributes"] = b"*.safetensors filter=lfs"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    there = [(p.label, p.score) for p in predict_lines("me/deployed", ["film is warm", "plot is dull"])]
    assert there == here
    (snapshot,) = (tmp_path / "cache").glob("models--me--deployed/snapshots/*")
    assert not (snapshot / ".gitattributes").exists() and (snapshot / "export.json").is_symlink()
    local = snapshot_download("me/deployed", local_dir=tmp_path / "local")
    assert [(p.label, p.score) for p in predict_lines(local, ["film is warm", "plot is dull"])] == here
    (tmp_path / "local" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        open_export(local)


def test_a_folder_of_anybodys_has_no_manifest(folder, hub):
    (folder / "MANIFEST.json").unlink()
    (folder / ".secret").write_text("mine")
    push_folder(folder, "me/small-bert")
    assert hub.repositories["me/small-bert"].keys() == contents(folder).keys() - {".secret"}


def test_a_repository_that_others_see_gets_nothing_that_they_must_not(folder, hub, monkeypatch, capsys):
    hub.repositories["me/open"] = {"README.md": b"# Here before\n"}
    hub.created.append(("me/open", "public"))
    assert call(monkeypatch, "push", folder, "me/open", "--private") == 2
    shown = capsys.readouterr()
    assert "me/open is there already, public and not private" in shown.err and len(shown.err.splitlines()) == 1
    assert hub.repositories["me/open"] == {"README.md": b"# Here before\n"} and shown.out == ""
    push_folder(folder, "me/closed", private=True)
    assert "private and not public" in refusal(push_folder, folder, "me/closed", private=False, error=SettingError)
    for name, private in (("me/open", False), ("me/closed", True), ("me/closed", None)):
        assert push_folder(folder, name, private=private).url
    asked = len(hub.asked)
    assert push_folder(folder, "me/open", private=True, dry_run=True).url is None and len(hub.asked) == asked


def test_a_dry_run_asks_nothing_of_the_hub(folder, hub, monkeypatch, capsys):
    expected = contents(folder)
    (folder / ".DS_Store").write_text("of a desktop")
    assert call(monkeypatch, "push", folder, "me/small-bert", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["repository"] == "me/small-bert" and told["url"] is None and told["dry_run"]
    assert told["files"].keys() == expected.keys()
    assert told["n_bytes"] == sum(told["files"].values())
    assert call(monkeypatch, "push", folder, "me/small-bert", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "would go to me/small-bert" in shown
    assert hub.asked == []


def test_a_model_in_memory_brings_its_card(elastic, hub):
    would = elastic.push_to_hub("me/small-bert", private=False, dry_run=True)
    assert would.url is None and hub.asked == []
    sent = elastic.push_to_hub("me/small-bert", private=False)
    assert sent.url == f"{hub.endpoint}/me/small-bert" and sent.files == would.files
    arrived = hub.repositories["me/small-bert"]
    assert {"config.json", "model.safetensors", "elastic.json", "README.md", "MANIFEST.json"} == arrived.keys()
    card = arrived["README.md"].decode()
    assert 'dynabert.load("me/small-bert", subnet="w0.5-d0.5")' in card and HERE not in card
    assert hub.created == [("me/small-bert", "public")]


@pytest.mark.parametrize(
    ("where", "status", "error", "words"),
    [
        ("/api/repos/create", 403, SettingError, "may not write to them/theirs (You don't have the rights"),
        ("/api/repos/create", 401, SettingError, "does not accept this login"),
        ("/api/repos/create", 400, SettingError, "refuses them/theirs"),
        ("/them/theirs.git/info/lfs", 403, SettingError, "may not write to them/theirs"),
        ("/blobs/", 403, SettingError, "may not write to them/theirs"),
        ("/api/models/them/theirs/commit", 403, SettingError, "may not write to them/theirs"),
        ("/api/models/them/theirs/commit", 500, StorageError, "could not be reached, or failed"),
        ("/api/validate-yaml", 400, SettingError, "refuses them/theirs (Invalid metadata"),
    ],
)
def test_what_the_hub_refuses_is_one_line(where, status, error, words, folder, hub):
    hub.refuse[where] = status, "You don't have the rights to create a model"
    assert words in refusal(push_folder, folder, "them/theirs", error=error)
    assert not hub.repositories.get("them/theirs")


def test_nobody_is_logged_in_no_network_and_offline(folder, hub, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    log_in(monkeypatch, nowhere)
    assert "could not be reached" in refusal(push_folder, folder, "me/x", error=StorageError)
    log_in(monkeypatch, hub.endpoint, token="hf_wrong")
    assert "does not accept this login" in refusal(push_folder, folder, "me/x", error=SettingError)
    log_in(monkeypatch, hub.endpoint, token="")
    assert call(monkeypatch, "push", folder, "me/x") == 2
    shown = capsys.readouterr()
    assert "nobody is logged in" in shown.err and len(shown.err.splitlines()) == 1 and shown.out == ""
    log_in(monkeypatch, hub.endpoint)
    monkeypatch.setattr(sys.modules["huggingface_hub.constants"], "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(push_folder, folder, "me/x", error=SettingError)
    assert hub.repositories == {}


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(folder, hub, tmp_path):
    for name in ("a/b/c", "-x", "me/..", "me/a--b", "./x", ""):
        assert "not the name of a repository" in refusal(push_folder, folder, name, error=SettingError)
    assert "not a model folder" in refusal(push_folder, tmp_path, "me/x")
    (folder / "notes.txt").write_text("mine")
    assert "'notes.txt' is extra" in refusal(push_folder, folder, "me/x", error=ModelFileError)
    assert hub.asked == []
