"""A size read from disk is the size cut out in memory, to the bit, and nothing else of the file is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cutting import NARROW
from helpers import FAMILY_NAMES, tiny_model
from model_folders import edit_config, edit_weights, refusal
from safetensors.torch import load_file

from dynabert import weights
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.files import read_json
from dynabert.loading import load, save_model
from dynabert.subnet import Subnet, SubnetGrid

GRID = SubnetGrid((1.0, 0.5), (1.0, 0.5))
SUBNETS = (
    Subnet(),
    Subnet(0.5, 0.75),
    Subnet(0.25, 0.5),
    Subnet(heads=1, neurons=0.25, depth=0.5),
    Subnet(heads=0.5, neurons=0.75),
    Subnet.of_layers(*NARROW),
)


def elastic_folder(path, family="bert", **sizes):
    """A saved elastic model whose depths are not as the rule would have them."""
    elastic = ElasticModel(tiny_model(family, **sizes), GRID, kept={0.5: (1, 3)})
    elastic.save_pretrained(path)
    return elastic


@pytest.fixture
def folder(tmp_path):
    elastic_folder(tmp_path / "elastic")
    return tmp_path / "elastic"


def sums(folder: Path):
    return read_json(folder / "MANIFEST.json")["files"]


@pytest.mark.parametrize("pad_heads", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_file_of_a_size_is_the_same_as_when_cut_in_memory(family, pad_heads, tmp_path):
    elastic_folder(tmp_path / "elastic", family)
    elastic = ElasticModel.from_pretrained(tmp_path / "elastic")
    for subnet in SUBNETS:
        save_model(elastic.extract(subnet, pad_heads=pad_heads), tmp_path / "memory")
        save_model(load(tmp_path / "elastic", subnet=subnet, pad_heads=pad_heads), tmp_path / "disk")
        assert sums(tmp_path / "disk") == sums(tmp_path / "memory"), subnet.name


def test_a_size_may_be_named_and_have_a_new_head(folder):
    elastic = ElasticModel.from_pretrained(folder)
    named = load(folder, subnet="w0.5-d0.5", n_labels=5, seed=3)
    assert [tuple(sizes) for sizes in named.config.kept] == [(2, 32), (2, 32)] and named.config.num_labels == 5
    assert torch.equal(named.classifier.weight, load(folder, n_labels=5, seed=3).classifier.weight)
    inner = elastic.extract(Subnet(0.5, 0.5)).bert.state_dict()
    assert all(torch.equal(tensor, inner[name]) for name, tensor in named.bert.state_dict().items())
    encoder = load(folder, subnet="w0.5-d0.5", head="Model")
    assert all(torch.equal(tensor, inner[name]) for name, tensor in encoder.state_dict().items())


def test_sharded_and_half_precision_weights(folder, tmp_path):
    elastic = ElasticModel.from_pretrained(folder)
    shutil.rmtree(folder)
    elastic.model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    (folder / "elastic.json").write_text(json.dumps(elastic.description()))
    again = ElasticModel.from_pretrained(folder).extract(Subnet(0.5, 0.5)).state_dict()
    read = load(folder, subnet="w0.5-d0.5").state_dict()
    assert read.keys() == again.keys() and all(torch.equal(tensor, again[name]) for name, tensor in read.items())
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}


def test_only_what_is_kept_is_read(folder, monkeypatch):
    """All else of the file is spoilt to NaN: a size that read any of it would show."""
    expected = load(folder, subnet="w0.5-d0.5").state_dict()

    def spoil(state):
        for name, tensor in state.items():
            if ".layer.0." in name or ".layer.2." in name:
                tensor.fill_(torch.nan)
            elif "attention.self" in name or "intermediate" in name:
                tensor[32:] = torch.nan
            elif name.endswith(("attention.output.dense.weight", "output.dense.weight")):
                tensor[:, 32:] = torch.nan
        return state

    edit_weights(folder, spoil)
    assert any(tensor.isnan().any() for tensor in load_file(folder / "model.safetensors").values())
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 700)  # many chunks, the last one shorter
    read = load(folder, subnet="w0.5-d0.5").state_dict()
    assert read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in read)


def test_a_folder_without_sizes_and_damaged_ones_are_refused(folder, tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "stock")
    assert "no elastic.json" in refusal(load, tmp_path / "stock", subnet="w0.5-d0.5")
    save_model(load(folder, subnet="w0.5-d0.5"), tmp_path / "small")
    assert "one size already" in refusal(load, tmp_path / "small", subnet="w0.5-d0.5")
    assert "write it like" in refusal(load, folder, subnet="half", error=SettingError)
    assert "does not fit an encoder" in refusal(load, folder, subnet="l9h1n1", error=SettingError)
    assert "give a subnet" in refusal(load, folder, pad_heads=True, error=SettingError)
    edit_config(folder, intermediate_size=80)
    assert "has shape" in refusal(load, folder, subnet="w0.5-d0.5")  # though the part that is kept would fit
    edit_config(folder, intermediate_size=64)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    assert "truncated" in refusal(load, folder, subnet="w0.5-d0.5")
