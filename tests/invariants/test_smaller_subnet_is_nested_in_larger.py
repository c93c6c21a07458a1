"""A narrower Subnet is the leading part of a wider one: width only, because the paper's depth rule does not nest."""

import itertools

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model

from dynabert.elastic import ElasticLinear, ElasticModel
from dynabert.families import FAMILIES
from dynabert.subnet import LayerSlice, Subnet, SubnetGrid

PER_LAYER = Subnet.of_layers(LayerSlice(0, 1, 5), LayerSlice(1, 2, 64), LayerSlice(2, 4, 1), LayerSlice(3, 3, 17))
PAIRS = [
    *((Subnet(small), Subnet(large)) for small, large in itertools.combinations((0.25, 0.5, 0.75, 1.0), 2)),
    (Subnet(0.5, 0.5), Subnet(0.75, 0.5)),
    (Subnet(heads=0.5, neurons=0.25), Subnet(heads=1, neurons=0.5)),
    (PER_LAYER, Subnet()),
]


@pytest.mark.parametrize(("small", "large"), PAIRS, ids=lambda subnet: subnet.name)
def test_active_slices_are_the_leading_part(small, large):
    elastic = ElasticModel(tiny_model("bert"))
    narrow, wide = (dict(elastic.at(subnet).named_modules()) for subnet in (small, large))
    cut = [name for name, module in narrow.items() if isinstance(module, ElasticLinear)]
    assert len(cut) == 6 * len(elastic.slices(small))
    for name in cut:
        weight, bias = narrow[name].active()
        wide_weight, wide_bias = wide[name].active()
        assert weight.data_ptr() == wide_weight.data_ptr()
        assert torch.equal(weight, wide_weight[: weight.shape[0], : weight.shape[1]])
        assert torch.equal(bias, wide_bias[: bias.shape[0]])
    assert any(narrow[name].active()[0].numel() < wide[name].active()[0].numel() for name in cut)


def zero_what_is_dropped(model, slices, kept_layers):
    """Make the dropped heads and neurons of a stock model contribute nothing: zero columns where they are summed."""
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    layers = model.base_model.encoder.layer
    for index, part in zip(kept_layers, slices, strict=True):
        with torch.no_grad():
            layers[index].attention.output.dense.weight[:, part.n_heads * head_dim :] = 0
            layers[index].output.dense.weight[:, part.n_neurons :] = 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("small", [Subnet(0.25), Subnet(0.75), PER_LAYER], ids=lambda subnet: subnet.name)
def test_larger_with_the_dropped_part_zeroed_is_the_smaller(family, attention, small):
    make = {"attention": attention, "dtype": torch.float64}
    elastic = ElasticModel(tiny_model(family, **make))
    zeroed = tiny_model(family, **make)
    zero_what_is_dropped(zeroed, elastic.slices(small), range(elastic.shape.n_layers))
    batch = tiny_batch()
    with torch.no_grad():
        got = elastic.at(small)(**batch.inputs, output_hidden_states=True)
        expected = zeroed(**batch.inputs, output_hidden_states=True)
        full = elastic.model(**batch.inputs)
    assert not torch.allclose(got.logits, full.logits, atol=1e-3)  # what was dropped did count
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-10)
    for state, other in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_dropped_layers_are_skipped(family):
    """A shorter view is the stock model with the dropped layers taken out of the list by hand."""
    elastic = ElasticModel(tiny_model(family, dtype=torch.float64), SubnetGrid((1.0, 0.5), (1.0, 0.75, 0.5)))
    batch = tiny_batch()
    for depth, kept in ((0.75, (0, 1, 2)), (0.5, (0, 2))):
        stock = tiny_model(family, dtype=torch.float64)
        layers = stock.base_model.encoder.layer
        stock.base_model.encoder.layer = torch.nn.ModuleList([layers[index] for index in kept])
        zero_what_is_dropped(stock, elastic.slices(Subnet(0.5, depth)), range(len(kept)))
        with torch.no_grad():
            got = elastic.at(Subnet(0.5, depth))(**batch.inputs)
            expected = stock(**batch.inputs)
        torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-10)


def test_every_family_is_covered():
    assert set(FAMILY_NAMES) == set(FAMILIES)
