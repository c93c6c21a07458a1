"""An extracted model is the function of its view, with weights of its own.

Bit for bit where whole heads and neurons in multiples of 16 are kept; other sizes go through other matrix kernels,
which add in another order.
"""

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model

from dynabert.elastic import ElasticModel, count_params
from dynabert.subnet import LayerSlice, Subnet

EXACT = (
    Subnet(),
    Subnet(0.5),
    Subnet(1, 0.75),
    Subnet(0.25, 0.5),
    Subnet(heads=1, neurons=0.25, depth=0.5),
    Subnet(heads=0.5, neurons=0.75),
    Subnet.of_layers(LayerSlice(0, 3, 16), LayerSlice(1, 1, 64), LayerSlice(3, 4, 32)),
)
UNEVEN = Subnet.of_layers(LayerSlice(1, 2, 5), LayerSlice(2, 3, 1), LayerSlice(3, 4, 33))

by_family = pytest.mark.parametrize("family", FAMILY_NAMES)
by_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def outputs(model, batch, attention):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return model(**batch.inputs, output_hidden_states=True, output_attentions=attention == "eager")


def tensors(output):
    return [output.logits, *output.hidden_states, *(output.get("attentions") or ())]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@by_attention
@by_family
def test_whole_heads_and_even_neurons_bit_for_bit(family, attention, training):
    elastic = ElasticModel(tiny_model(family, attention=attention, dropout=0.1))
    batch = tiny_batch()
    for subnet in EXACT:
        small, view = elastic.extract(subnet), elastic.at(subnet)
        got = tensors(outputs(small.train(training), batch, attention))
        expected = tensors(outputs(view.train(training), batch, attention))
        assert len(got) == len(expected) == 2 + len(elastic.slices(subnet)) * (2 if attention == "eager" else 1)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(got, expected, strict=True)), subnet.name


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@by_attention
@by_family
def test_uneven_sizes_nearly(family, attention, training):
    elastic = ElasticModel(tiny_model(family, attention=attention, dropout=0.1))
    batch = tiny_batch()
    small, view = elastic.extract(UNEVEN), elastic.at(UNEVEN)
    got = tensors(outputs(small.train(training), batch, attention))
    expected = tensors(outputs(view.train(training), batch, attention))
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@by_family
def test_all_heads_kept_make_a_stock_model(family):
    elastic = ElasticModel(tiny_model(family, n_labels=5))
    small = elastic.extract(Subnet(heads=1, neurons=0.25, depth=0.5))
    assert type(small) is type(elastic.model) and small.config.model_type == family
    assert small.config.num_hidden_layers == 2 and small.config.intermediate_size == 16
    assert small.config.num_labels == 5
    again = type(small)(small.config)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in small.state_dict().items()}


@by_family
def test_padded_heads_make_a_stock_model_with_the_same_answers(family):
    elastic = ElasticModel(tiny_model(family))
    batch = tiny_batch()
    for subnet in (Subnet(0.5, 0.5), Subnet(0.25), Subnet(heads=0.5, neurons=0.25, depth=0.75)):
        padded = elastic.extract(subnet, pad_heads=True)
        assert type(padded) is type(elastic.model) and padded.config.model_type == family
        for got, expected in zip(
            tensors(outputs(padded, batch, "sdpa")), tensors(outputs(elastic.at(subnet), batch, "sdpa")), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@by_family
def test_its_weights_are_its_own(family):
    elastic = ElasticModel(tiny_model(family))
    batch = tiny_batch()
    for subnet in (Subnet(), Subnet(0.5, 0.5)):
        small = elastic.extract(subnet)
        before = outputs(small, batch, "sdpa").logits
        shared = {tensor.untyped_storage().data_ptr() for tensor in elastic.model.parameters()}
        assert shared.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in small.parameters())
        assert all(parameter.is_contiguous() for parameter in small.parameters())
        assert sum(parameter.numel() for parameter in small.parameters()) == count_params(elastic.at(subnet))
        with torch.no_grad():
            for parameter in elastic.model.parameters():
                parameter.add_(1)
        assert torch.equal(outputs(small, batch, "sdpa").logits, before)


def test_it_is_in_the_mode_of_the_view():
    elastic = ElasticModel(tiny_model("bert", dropout=0.1))
    for training in (False, True):
        elastic.at(Subnet(0.5)).train(training)
        small = elastic.extract(Subnet(0.5))
        assert all(module.training == training for module in small.modules())
        assert all(parameter.requires_grad for parameter in small.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_data_type_stays(dtype):
    elastic = ElasticModel(tiny_model("bert", dtype=dtype))
    batch = tiny_batch()
    for subnet in (Subnet(0.5, 0.5), Subnet(heads=1, neurons=0.5)):
        small = elastic.extract(subnet)
        assert {parameter.dtype for parameter in small.parameters()} == {dtype}
        assert torch.equal(outputs(small, batch, "sdpa").logits, outputs(elastic.at(subnet), batch, "sdpa").logits)
