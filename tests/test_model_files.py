import json
import pickle
import shutil
import struct

import huggingface_hub
import pytest
import torch
from helpers import tiny_model
from model_folders import WATCH, Exploit, edit_config, logits, refusal, save_at

from dynabert.loading import load
from dynabert.model_files import resolve


@pytest.fixture
def folder(tmp_path):
    """A saved stock classifier with three labels, to be spoilt."""
    return save_at(tiny_model("bert"), tmp_path / "stock")


# Hostile folders: nothing runs, nothing outside is read, one line says why


def spoil_pickle(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Exploit()))


def spoil_zip(folder):
    torch.save({"x": Exploit()}, folder / "model.safetensors")


def spoil_bin_only(folder):
    torch.save({"x": Exploit()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def spoil_config_pickle(folder):
    (folder / "config.json").write_bytes(pickle.dumps(Exploit()))


def spoil_truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def spoil_empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def spoil_header_size(folder):
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    padded = data[8 : 8 + size].ljust(11 * 2**20)  # still a valid file, only no honest one
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(padded)) + padded + data[8 + size :])


def spoil_shape(folder):
    entry = {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}
    header = json.dumps({"classifier.bias": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def spoil_deep_json(folder):
    (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000)


def spoil_deep_field(folder):
    (folder / "config.json").write_text('{"model_type": "bert", "x": ' + "[" * 100_000 + "]" * 100_000 + "}")


def spoil_repeated_key(folder):
    (folder / "config.json").write_text('{"model_type": "bert", "model_type": "roberta"}')


def spoil_long_config(folder):
    edit_config(folder, x="y" * 2**20)


def spoil_list(folder):
    (folder / "config.json").write_text("[1]")


def spoil_nan(folder):
    (folder / "config.json").write_text('{"model_type": "bert", "layer_norm_eps": NaN}')


def spoil_latin(folder):
    (folder / "config.json").write_bytes('{"model_type": "bért"}'.encode("latin-1"))


def spoil_no_config(folder):
    (folder / "config.json").unlink()


def spoil_no_weights(folder):
    (folder / "model.safetensors").unlink()


def spoil_config_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def spoil_link(folder, name="model.safetensors"):
    shutil.move(folder / name, folder.parent / f"forbidden-{name}")
    (folder / name).symlink_to(folder.parent / f"forbidden-{name}")


def spoil_config_link(folder):
    spoil_link(folder, "config.json")


def spoil_link_loop(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")


def spoil_index(folder, name="../forbidden.safetensors"):
    shutil.copy(folder / "model.safetensors", folder.parent / "forbidden.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"classifier.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_index_absolute(folder):
    spoil_index(folder, str(folder.parent / "forbidden.safetensors"))


def spoil_index_missing(folder):
    spoil_index(folder, "model-\n00001.safetensors")


def spoil_index_type(folder):
    spoil_index(folder, 3)


def spoil_index_pickle(folder):
    spoil_index(folder, "pytorch_model.bin")
    torch.save({"x": Exploit()}, folder / "pytorch_model.bin")


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_folder_is_refused_in_one_line(spoil, folder):
    spoil(folder)
    with WATCH:
        line = refusal(load, folder)
    assert str(folder) in line


def test_pickled_weights_come_with_the_way_out(folder):
    spoil_bin_only(folder)
    line = refusal(load, folder)
    assert "pytorch_model.bin" in line and "save_pretrained" in line


# Where models come from


def test_a_path_that_is_no_model_is_refused(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("a path went to the hub"))
    assert "neither a folder nor the name" in refusal(load, tmp_path / "missing")
    assert "neither a folder nor the name" in refusal(load, "./missing")
    assert "neither a folder nor the name" in refusal(load, "a/../b")
    assert "give the folder that holds" in refusal(load, folder / "config.json")
    assert resolve(folder) == folder == resolve(str(folder))


def test_the_hub_gives_only_files_that_are_read(folder, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load("someone/some-model")
    assert loaded.config.name_or_path == loaded.name_or_path == "someone/some-model"
    [(name, patterns)] = asked
    assert name == "someone/some-model"
    assert not [pattern for pattern in patterns if pattern.endswith((".py", ".bin", ".pt", "*"))]


def test_without_the_hub_one_line_says_so(monkeypatch):
    def download(*_, **__):
        raise OSError("cannot reach\nthe hub: " + 100 * "long ")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert "not a folder here, and the hub did not give it (cannot reach the hub" in refusal(load, "some/model")


def test_a_snapshot_in_the_hubs_cache_loads_though_its_files_are_links(folder, tmp_path):
    repository = tmp_path / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (tmp_path / "hub" / "blobs").mkdir()
    shutil.move(folder / "config.json", repository / "blobs" / "aa")
    (snapshot / "config.json").symlink_to("../../blobs/aa")
    shutil.move(folder / "model.safetensors", tmp_path / "hub" / "blobs" / "bb")
    (repository / "blobs" / "cc").symlink_to("../../blobs/bb")
    (snapshot / "model.safetensors").symlink_to("../../blobs/cc")
    assert torch.equal(logits(load(snapshot)), logits(tiny_model("bert")))
