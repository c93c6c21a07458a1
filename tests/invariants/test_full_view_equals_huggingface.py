"""The view of the whole network is the same function as the stock Hugging Face model, bit for bit."""

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model

from dynabert.elastic import ElasticModel
from dynabert.precision import TrainingViews
from dynabert.subnet import Subnet

FULL = (Subnet(), Subnet(1, 1), Subnet(heads=1, neurons=1, depth=1))


def outputs(model, batch, **options):
    with torch.no_grad():
        return model(**batch.inputs, **options)


def assert_same_outputs(got, expected):
    assert got.keys() == expected.keys()
    assert torch.equal(got.logits, expected.logits)
    for name in ("hidden_states", "attentions"):
        if name in expected:
            assert len(got[name]) == len(expected[name])
            assert all(torch.equal(a, b) for a, b in zip(got[name], expected[name], strict=True)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_evaluation_is_equal_bit_for_bit(family, attention, dtype):
    stock = tiny_model(family, attention=attention, dtype=dtype)
    elastic = ElasticModel(tiny_model(family, attention=attention, dtype=dtype))
    batch = tiny_batch()
    options = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    expected = outputs(stock, batch, **options)
    assert expected.logits.dtype == dtype
    assert ("attentions" in expected) == (attention == "eager")
    for subnet in FULL:
        assert_same_outputs(outputs(elastic.at(subnet), batch, **options), expected)
        assert_same_outputs(outputs(elastic.at(subnet), batch), outputs(stock, batch))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_training_is_equal_with_the_same_seed(family, attention):
    stock = tiny_model(family, attention=attention, dropout=0.1).train()
    elastic = ElasticModel(tiny_model(family, attention=attention, dropout=0.1).train())
    batch, results = tiny_batch(), []
    for model in (stock, elastic.at(Subnet())):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            results.append(outputs(model, batch, output_hidden_states=True))
    assert_same_outputs(results[1], results[0])
    assert not torch.equal(results[0].logits, outputs(stock, batch).logits)  # dropout really was on


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_training_views_without_dropout_are_equal_too(family):
    """With dropout they draw masks of their own, see the reference loop."""
    stock = tiny_model(family).train()
    view = TrainingViews(ElasticModel(tiny_model(family)), precision="fp32").at(Subnet()).train()
    expected = outputs(stock, tiny_batch(), output_hidden_states=True)
    assert_same_outputs(outputs(view, tiny_batch(), output_hidden_states=True), expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_gradients_are_equal(family, attention):
    stock = tiny_model(family, attention=attention)
    elastic = ElasticModel(tiny_model(family, attention=attention))
    batch = tiny_batch()
    stock(**batch.inputs, labels=batch.labels).loss.backward()
    elastic.at(Subnet())(**batch.inputs, labels=batch.labels).loss.backward()
    expected = dict(stock.named_parameters())
    for name, parameter in elastic.model.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name


def test_taking_views_leaves_the_model_as_it_was():
    model = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [(name, type(module)) for name, module in model.named_modules()]
    config = model.config.to_dict()
    elastic = ElasticModel(model)
    for subnet in elastic.grid:
        outputs(elastic.at(subnet), tiny_batch(), output_hidden_states=True)
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert model.config.to_dict() == config
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
