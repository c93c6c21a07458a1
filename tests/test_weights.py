import pytest
import torch
from helpers import tiny_model
from model_folders import edit_config, edit_weights, logits, refusal, save_at

from dynabert.loading import load


@pytest.fixture
def folder(tmp_path):
    """A saved stock classifier with three labels, to be spoilt."""
    return save_at(tiny_model("bert"), tmp_path / "stock")


def drop(*parts):
    return lambda state: {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def put(name, tensor):
    return lambda state: {**state, name: tensor}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("layer.2.attention.self.key.bias"), "lacks the tensor encoder.layer.2.attention.self.key.bias"),
        (drop("word_embeddings"), "lacks the tensor embeddings.word_embeddings.weight"),
        (drop("classifier.bias"), "lacks the tensor classifier.bias"),
        (drop("pooler.dense"), "lacks the tensor pooler.dense"),
        (drop("layer.3."), "4 layers, the weights have 3"),
        (put("bert.encoder.layer.4.output.dense.bias", torch.ones(64)), "4 layers, the weights have 5"),
        (put("bert.encoder.layer.0.adapter.weight", torch.ones(2)), "adapter.weight' has no place"),
        (put("bert.encoder.layer.1.output.dense.bias", torch.ones(63)), "has shape [63], not [64]"),
        (put("classifier.weight", torch.ones(4, 64)), "has shape [4, 64], not [3, 64]"),
        (put("classifier.bias", torch.ones(3, dtype=torch.int8)), "holds I8 numbers"),
        (put("embeddings.word_embeddings.weight", torch.ones(48, 64)), "is there twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_do_not_fit_are_named(change, words, folder):
    edit_weights(folder, change)
    assert words in refusal(load, folder)


def test_saved_position_buffers_do_no_harm(folder):
    edit_weights(folder, put("bert.embeddings.position_ids", torch.arange(40)[None]))
    assert torch.equal(logits(load(folder)), logits(tiny_model("bert")))


def test_more_layers_than_are_read_are_refused_at_once(folder):
    tensors = {f"bert.encoder.layer.{index}.x": torch.ones(1) for index in range(4, 300)}
    edit_weights(folder, lambda state: {**state, **tensors})
    edit_config(folder, num_hidden_layers=300)
    assert "300 layers, more than" in refusal(load, folder)
