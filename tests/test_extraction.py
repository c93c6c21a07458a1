"""Cutting a size out of any elastic folder: the same files as from memory, a card beside them, no more memory."""

import json
import logging
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from helpers import tiny_model
from model_folders import refusal
from small_job import write_encoder

from dynabert.card_parts import header_of
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.extraction import extract_folder
from dynabert.files import read_json
from dynabert.folders import verify_manifest
from dynabert.loading import load, load_tokenizer, save_model
from dynabert.subnet import Subnet, SubnetGrid

SUBNET = Subnet(0.5, 0.5)
CARD = """---
language: en
license: mit
base_model: someone/encoder
tags: [dynabert, elastic, bert]
pipeline_tag: text-classification
model-index:
- name: films
  results:
  - task: {type: text-classification}
    dataset: {name: sst2, type: nyu-mll/glue, config: sst2}
    metrics:
    - {type: accuracy, value: 0.91, name: accuracy of w1-d1, args: {subnet: w1-d1}}
    - {type: accuracy, value: 0.9, name: accuracy of w0.5-d0.5, args: {subnet: w0.5-d0.5, low_95: 0.88, high_95: 0.92}}
---
# Films
"""
ODD = """---
language: {en: 1}
license: [3]
tags: 7
datasets: 5
base_model: {a: b}
pipeline_tag: []
model-index:
- name: [films]
  results:
  - task: {type: 3}
    dataset: {name: 3, type: [4]}
    metrics:
    - {type: accuracy, value: high, name: 5, args: {subnet: w0.5-d0.5, low_95: [1], high_95: x}}
---
"""


@pytest.fixture
def folder(tmp_path):
    """An elastic folder with a tokenizer and a card."""
    write_encoder(tmp_path / "encoder")
    elastic = ElasticModel(tiny_model("bert"), SubnetGrid((1.0, 0.5), (1.0, 0.5)))
    elastic.save_pretrained(tmp_path / "elastic", tokenizer=load_tokenizer(tmp_path / "encoder"))
    (tmp_path / "elastic" / "README.md").write_text(CARD)
    return tmp_path / "elastic"


def test_the_folder_is_that_of_the_size_cut_in_memory_with_a_card(folder, tmp_path):
    cut = extract_folder(folder, SUBNET, tmp_path / "small")
    elastic = ElasticModel.from_pretrained(folder)
    save_model(elastic.extract(SUBNET), tmp_path / "memory", tokenizer=load_tokenizer(folder))
    verify_manifest(tmp_path / "small")
    files = [read_json(tmp_path / name / "MANIFEST.json")["files"] for name in ("small", "memory")]
    assert files[0].pop("README.md") and files[0] == files[1] and "tokenizer.json" in files[0]
    assert cut.loads_with == "dynabert or trust_remote_code"
    assert cut.n_params == sum(parameter.numel() for parameter in load(tmp_path / "small").parameters())


def test_its_card_takes_over_what_was_measured_of_this_size(folder, tmp_path):
    extract_folder(folder, SUBNET, tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    header = header_of(card)
    assert (header.language, header.license, header.base_model) == (["en"], "mit", ["someone/encoder"])
    [result] = header.eval_results
    assert (result.metric_name, result.metric_value, result.dataset_type) == ("accuracy", 0.9, "nyu-mll/glue")
    assert "| accuracy | 0.9000 | 0.880 to 0.920 | sst2 |" in card and "custom_code" in header.tags
    extract_folder(folder, Subnet(0.5, 0.25), tmp_path / "other")
    other = (tmp_path / "other" / "README.md").read_text()
    assert "was not measured" in other and "was not trained" in other and header_of(other).eval_results is None


@pytest.mark.parametrize(
    "text", ["", "no header", "---\n[: broken\n---\n", "---\nmodel-index: 3\n---\n", "---\n- 1\n---\n"]
)
def test_a_card_that_says_nothing_is_no_hindrance(text, folder, tmp_path):
    (folder / "README.md").write_text(text)
    extract_folder(folder, SUBNET, tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    assert "was not measured" in card and header_of(card).tags == ["dynabert", "custom_code"]


def test_a_card_that_leads_elsewhere_is_left_out(folder, tmp_path, caplog):
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")
    extract_folder(folder, SUBNET, tmp_path / "small")
    assert "is a link that leads out" in caplog.text


def test_an_elastic_model_of_the_hub_is_named_as_the_origin(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(folder))
    extract_folder("someone/films", SUBNET, tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    assert header_of(card).base_model == "someone/films" and "Cut out of [someone/films]" in card
    assert str(tmp_path) not in card


def test_padded_heads_and_a_folder_without_tokenizer(tmp_path):
    ElasticModel(tiny_model("roberta"), SubnetGrid((1.0, 0.5), (1.0, 0.5))).save_pretrained(tmp_path / "elastic")
    cut = extract_folder(tmp_path / "elastic", SUBNET, tmp_path / "small", pad_heads=True)
    card = (tmp_path / "small" / "README.md").read_text()
    assert cut.loads_with == "transformers" and "A stock model of transformers" in card and "are there as zeros" in card
    assert not (tmp_path / "small" / "tokenizer.json").exists()


def test_places_and_sources_that_cannot_be(folder, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert "is a file" in refusal(extract_folder, folder, SUBNET, tmp_path / "file", error=SettingError)
    assert "inside the elastic model" in refusal(extract_folder, folder, SUBNET, folder / "x", error=SettingError)
    assert "inside the elastic model" in refusal(extract_folder, folder, SUBNET, folder, error=SettingError)
    assert "has no config.json" in refusal(extract_folder, folder, SUBNET, tmp_path, error=SettingError)
    assert "no elastic.json" in refusal(extract_folder, tmp_path / "encoder", SUBNET, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    with caplog.at_level(logging.WARNING):
        extract_folder(folder, SUBNET, tmp_path / "small")
        assert "not trained" not in caplog.text
        extract_folder(folder, Subnet(heads=0.5, neurons=0.5, depth=0.5), tmp_path / "small")  # another name for it
        assert "not trained" not in caplog.text
        assert "| accuracy | 0.9000" in (tmp_path / "small" / "README.md").read_text()
        extract_folder(folder, Subnet(0.25), tmp_path / "small")
    assert "w0.25-d1 was not trained" in caplog.text
    assert "one size already" in refusal(extract_folder, tmp_path / "small", SUBNET, tmp_path / "smaller")


PEAK = """
import json, sys
from dynabert.extraction import extract_folder
from dynabert.memory import peak_memory
from dynabert.subnet import Subnet
first, second, out = sys.argv[1:]
extract_folder(first, Subnet(0.25, 0.5), out)  # whatever is imported on the way is there now
now = next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
peak = peak_memory()
extract_folder(second, Subnet(0.25, 0.5), out)
print(json.dumps(peak() - now))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is begun anew by Linux alone")
def test_memory_is_about_that_of_the_small_model(folder, tmp_path):
    large = ElasticModel(tiny_model("bert", hidden=512, n_neurons=2048, n_heads=8, n_layers=8))
    large.save_pretrained(tmp_path / "large")
    command = [sys.executable, "-c", PEAK, str(folder), str(tmp_path / "large"), str(tmp_path / "small")]
    peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    small = sum(parameter.nbytes for parameter in load(tmp_path / "small").parameters())
    full = sum(parameter.nbytes for parameter in large.model.parameters())
    assert small < 20e6 < 90e6 < full
    assert 0.5 * small < peak < small + 20e6  # a few megabytes of buffers; the full network would be five times that


def test_what_is_read_owns_its_memory(folder):
    model = load(folder, subnet=SUBNET)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
