"""A Subnet's gradient is exactly zero outside its own part of the weights, and inside it is autograd's."""

import functools

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model
from torch.nn import functional as F

from dynabert.elastic import ElasticLinear, ElasticModel
from dynabert.precision import TrainingLinear, TrainingViews
from dynabert.slicing import leading
from dynabert.subnet import LayerSlice, Subnet

PER_LAYER = Subnet.of_layers(LayerSlice(1, 1, 5), LayerSlice(3, 3, 32))
SUBNETS = (Subnet(0.25, 0.5), Subnet(0.75, 0.75), Subnet(heads=0.5, neurons=0.75), PER_LAYER)
HEAD_DIM = 16

by_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
by_family = pytest.mark.parametrize("family", FAMILY_NAMES)


def active_mask(name, parameter, slices):
    """True where a Subnet uses a weight of the full model, spelled out by hand; all False in a dropped layer."""
    mask = torch.ones_like(parameter, dtype=torch.bool)
    if ".layer." not in name:
        return mask
    index = int(name.split(".layer.")[1].split(".")[0])
    part = {part.layer: part for part in slices}.get(index)
    if part is None:
        return torch.zeros_like(mask)
    attended = part.n_heads * HEAD_DIM
    if any(f".self.{projection}." in name for projection in ("query", "key", "value")):
        mask[attended:] = False
    elif name.endswith("attention.output.dense.weight"):
        mask[:, attended:] = False
    elif ".intermediate.dense." in name:
        mask[part.n_neurons :] = False
    elif name.endswith(".output.dense.weight"):
        mask[:, part.n_neurons :] = False
    return mask


def objective(model, batch):
    """A loss that every weight takes part in: labels and hidden states."""
    output = model(**batch.inputs, labels=batch.labels, output_hidden_states=True)
    states = torch.stack([state.float().square().mean() for state in output.hidden_states])
    return output.loss + (states * torch.linspace(0.5, 1.5, len(states))).sum()


def gradients(elastic, source, subnets):
    elastic.model.zero_grad()
    for subnet in subnets:
        objective(source.at(subnet).train(), tiny_batch()).backward()
    return {name: parameter.grad for name, parameter in elastic.model.named_parameters()}


def make_source(kind, elastic):
    return elastic if kind == "plain" else TrainingViews(elastic, precision=kind)


@pytest.mark.parametrize("kind", ["plain", "fp32", "bf16"])
@by_attention
@by_family
def test_zero_outside_the_active_part(family, attention, kind):
    elastic = ElasticModel(tiny_model(family, attention=attention))
    source = make_source(kind, elastic)
    for subnet in SUBNETS:
        grads = gradients(elastic, source, [subnet])
        for name, parameter in elastic.model.named_parameters():
            mask = active_mask(name, parameter, elastic.slices(subnet))
            if not mask.any():
                assert grads[name] is None or not grads[name].any(), name
                continue
            assert grads[name] is not None, name
            assert not grads[name][~mask].any(), name
            if ".self.key.bias" in name:  # mathematically zero: attention is the same when all keys move together
                continue
            cut = mask.ndim == 2 and ".layer." in name
            assert grads[name][mask].all() if cut else grads[name].any(), name


@by_attention
@by_family
def test_training_views_in_fp32_have_autograds_gradients(family, attention):
    elastic = ElasticModel(tiny_model(family, attention=attention))
    for subnets in ([SUBNETS[0]], SUBNETS):  # one alone, and all added up in the same masters
        expected = gradients(elastic, elastic, subnets)
        expected = {name: None if grad is None else grad.clone() for name, grad in expected.items()}
        got = gradients(elastic, TrainingViews(elastic, precision="fp32"), subnets)
        rounding = 1e-6 if attention == "sdpa" else 5e-6  # training views never run the eager kernel
        floor = 1e-2 * torch.stack([grad.norm() for grad in expected.values() if grad is not None]).max()
        for name, grad in expected.items():
            if grad is None:
                assert got[name] is None or not got[name].any(), name
                continue
            assert (got[name] - grad).norm() <= rounding * max(grad.norm(), floor), name


@by_attention
@by_family
def test_training_views_in_bf16_have_nearly_autograds_gradients(family, attention):
    elastic = ElasticModel(tiny_model(family, attention=attention))
    expected = {n: None if g is None else g.clone() for n, g in gradients(elastic, elastic, SUBNETS).items()}
    got = gradients(elastic, TrainingViews(elastic, precision="bf16"), SUBNETS)
    for name, grad in expected.items():
        if grad is None or ".self.key.bias" in name:
            continue
        assert got[name].dtype == torch.float32
        assert F.cosine_similarity(got[name].flatten(), grad.flatten(), dim=0) > 0.98, name
        assert 0.9 < got[name].norm() / grad.norm() < 1.1, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_weights_get_no_gradient(precision):
    model = tiny_model("bert")
    frozen = [
        model.bert.embeddings.word_embeddings.weight,
        model.bert.encoder.layer[0].attention.self.query.weight,
        model.bert.encoder.layer[0].intermediate.dense.bias,
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    elastic = ElasticModel(model)
    grads = gradients(elastic, TrainingViews(elastic, precision=precision), [Subnet(0.5)])
    assert all(parameter.grad is None for parameter in frozen)
    assert grads["bert.encoder.layer.0.attention.self.query.bias"].any()
    assert grads["bert.encoder.layer.0.intermediate.dense.weight"].any()
    assert grads["bert.embeddings.position_embeddings.weight"].any()


# Fused and gated weights: no family has them yet, so the modules are tested bare.


def blocks_by_hand(tensor, size, dim, parts):
    return torch.cat([block.narrow(dim, 0, size) for block in tensor.chunk(parts, dim)], dim)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_leading_takes_the_first_of_every_block(parts, size):
    tensor = torch.randn(4 * parts, 4 * parts, 2)
    for dim in (0, 1):
        assert torch.equal(leading(tensor, size, dim, parts), blocks_by_hand(tensor, size, dim, parts))
    assert torch.equal(leading(tensor[:, 0, 0], size, 0, parts), blocks_by_hand(tensor[:, 0, 0], size, 0, parts))
    assert leading(tensor, size, 0, 1).data_ptr() == tensor.data_ptr()


def make_linear(kind, weight, bias, **sizes):
    if kind == "plain":
        return ElasticLinear(weight, bias, **sizes)
    low = torch.bfloat16 if kind == "bf16" else None
    low_weight, low_bias = (None if low is None or t is None else t.detach().to(low) for t in (weight, bias))
    return TrainingLinear(weight, bias, low_weight=low_weight, low_bias=low_bias, **sizes)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)], ids=len)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("kind", ["plain", "fp32", "bf16"])
def test_cut_linear_of_several_parts(kind, parts, with_bias, shape):
    random = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=random)
    weight = torch.nn.Parameter(draw(6 * parts, 8))
    bias = torch.nn.Parameter(draw(6 * parts)) if with_bias else None
    plain = [None if t is None else t.detach().clone().requires_grad_() for t in (weight, bias)]
    inputs = draw(*shape, 4)
    features, plain_features = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    coefficients = draw(*shape, 2 * parts)

    out = make_linear(kind, weight, bias, n_out=2, n_in=4, parts=parts)(features)
    cut_bias = None if bias is None else blocks_by_hand(plain[1], 2, 0, parts)
    expected = F.linear(plain_features, blocks_by_hand(plain[0], 2, 0, parts)[:, :4], cut_bias)
    (out.float() * coefficients).sum().backward()
    (expected * coefficients).sum().backward()

    exact = {"rtol": 0, "atol": 0.1} if kind == "bf16" else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(out.float(), expected, **exact)
    torch.testing.assert_close(features.grad, plain_features.grad, **exact)
    torch.testing.assert_close(weight.grad, plain[0].grad, **exact)
    assert torch.equal(weight.grad == 0, plain[0].grad == 0)  # zero exactly where nothing is active
    assert int((weight.grad != 0).sum()) == 2 * parts * 4
    if bias is not None:
        torch.testing.assert_close(bias.grad, plain[1].grad, **exact)
        assert torch.equal(bias.grad == 0, plain[1].grad == 0)


@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_of_two_sizes_add_up(parts):
    weight, bias = torch.nn.Parameter(torch.randn(6 * parts, 8)), torch.nn.Parameter(torch.randn(6 * parts))
    features = torch.randn(7, 8)
    small = TrainingLinear(weight, bias, n_out=2, n_in=3, parts=parts)
    large = TrainingLinear(weight, bias, n_out=6, n_in=8, parts=parts)
    small(features[:, :3]).sum().backward()
    alone = weight.grad.clone()
    large(features).sum().backward()
    expected = alone + features.sum(0).expand_as(weight)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-5)
