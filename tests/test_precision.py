"""Training views: low-precision products, gradients added into the masters."""

import platform
from pathlib import Path

import pytest
import torch
from helpers import FAMILY_NAMES, PAD_ID, tiny_batch, tiny_model

from dynabert.elastic import ElasticLinear, ElasticModel
from dynabert.errors import SettingError
from dynabert.precision import (
    PRECISIONS,
    TrainingEmbedding,
    TrainingLinear,
    TrainingViews,
    _warn_emulated,
    has_bf16,
    instructions,
    precision_on,
    warn_if_emulated,
)
from dynabert.subnet import Subnet

SUBNETS = (Subnet(), Subnet(0.5, 0.5), Subnet(heads=1, neurons=0.25, depth=0.75))


def forward(view, batch):
    with torch.no_grad():
        return view.eval()(**batch.inputs, output_hidden_states=True)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_fp32_is_the_plain_view_bit_for_bit(family):
    elastic = ElasticModel(tiny_model(family))
    views, batch = TrainingViews(elastic, precision="fp32"), tiny_batch()
    for subnet in SUBNETS:
        got, expected = forward(views.at(subnet), batch), forward(elastic.at(subnet), batch)
        assert torch.equal(got.logits, expected.logits)
        assert all(torch.equal(a, b) for a, b in zip(got.hidden_states, expected.hidden_states, strict=True))


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bf16_is_close_to_fp32(family, attention):
    elastic = ElasticModel(tiny_model(family, attention=attention))
    views, batch = TrainingViews(elastic, precision="bf16"), tiny_batch()
    for subnet in SUBNETS:
        got, expected = forward(views.at(subnet), batch), forward(elastic.at(subnet), batch)
        assert got.logits.dtype == torch.float32
        torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=0.1)
        assert not torch.equal(got.logits, expected.logits)
        assert torch.equal(got.hidden_states[0], expected.hidden_states[0])  # embeddings stay in fp32
        for state, other in zip(got.hidden_states, expected.hidden_states, strict=True):
            assert state.dtype == torch.float32
            assert (state - other).norm() < 0.02 * other.norm()


def test_products_of_the_layers_are_in_bf16_and_all_else_in_fp32():
    elastic = ElasticModel(tiny_model("bert"))
    view = TrainingViews(elastic, precision="bf16").at(Subnet(0.5, 0.5))
    dtypes = {}
    for name, module in view.named_modules():
        if isinstance(module, (ElasticLinear, torch.nn.LayerNorm, torch.nn.Linear, TrainingEmbedding)):
            module.register_forward_hook(lambda _, __, out, name=name: dtypes.update({name: out.dtype}))
    forward(view, tiny_batch())
    for name, dtype in dtypes.items():
        cut = isinstance(view.get_submodule(name), ElasticLinear)
        assert dtype == (torch.bfloat16 if cut else torch.float32), name
    assert sum(dtype == torch.bfloat16 for dtype in dtypes.values()) == 2 * 6
    assert {parameter.dtype for parameter in elastic.model.parameters()} == {torch.float32}


def test_low_precision_copies_follow_the_masters_after_refresh():
    elastic = ElasticModel(tiny_model("roberta"))
    views, batch = TrainingViews(elastic, precision="bf16"), tiny_batch()
    before = {subnet: forward(views.at(subnet), batch).logits for subnet in SUBNETS}
    query = elastic.model.roberta.encoder.layer[0].attention.self.query
    with torch.no_grad():
        query.weight.mul_(-1)
        query.bias.add_(0.5)
    assert all(torch.equal(forward(views.at(subnet), batch).logits, before[subnet]) for subnet in SUBNETS)
    views.refresh()
    fresh = TrainingViews(elastic, precision="bf16")
    for subnet in SUBNETS:
        after = forward(views.at(subnet), batch).logits
        assert not torch.allclose(after, before[subnet], atol=1e-3)
        assert torch.equal(after, forward(fresh.at(subnet), batch).logits)


def test_fp32_needs_no_refresh():
    elastic = ElasticModel(tiny_model("bert"))
    views, batch = TrainingViews(elastic, precision="fp32"), tiny_batch()
    forward(views.at(Subnet(0.5)), batch)
    with torch.no_grad():
        elastic.model.bert.encoder.layer[0].output.dense.weight.mul_(-1)
    expected = forward(elastic.at(Subnet(0.5)), batch).logits
    assert torch.equal(forward(views.at(Subnet(0.5)), batch).logits, expected)
    views.refresh()
    assert torch.equal(forward(views.at(Subnet(0.5)), batch).logits, expected)


def test_an_unknown_precision_is_answered_with_the_known_ones():
    with pytest.raises(SettingError, match=r"unknown precision 'fp16'.*; known: auto, bf16, fp32"):
        TrainingViews(ElasticModel(tiny_model("bert")), precision="fp16")
    assert {"bf16": torch.bfloat16, "fp32": None} == PRECISIONS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_of_several_backwards_add_up(precision):
    elastic, batch = ElasticModel(tiny_model("bert")), tiny_batch()
    views = TrainingViews(elastic, precision=precision)

    def backward():
        views.at(Subnet(0.5))(**batch.inputs, labels=batch.labels).loss.backward()
        return {name: p.grad.clone() for name, p in elastic.model.named_parameters() if p.grad is not None}

    once, twice = backward(), backward()
    for name, grad in once.items():
        torch.testing.assert_close(twice[name], 2 * grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_graph_is_kept_without_gradients(precision):
    views = TrainingViews(ElasticModel(tiny_model("bert")), precision=precision)
    output = forward(views.at(Subnet(0.5)), tiny_batch())
    assert not output.logits.requires_grad


def test_double_precision_masters_get_double_precision_gradients():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 8, dtype=torch.float64))
    bias = torch.nn.Parameter(torch.randn(6, dtype=torch.float64))
    features = torch.randn(50, 4, dtype=torch.float64)
    coefficients = torch.randn(50, 3, dtype=torch.float64)
    (TrainingLinear(weight, bias, n_out=3, n_in=4)(features) * coefficients).sum().backward()
    torch.testing.assert_close(bias.grad[:3], coefficients.sum(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(weight.grad[:3, :4], coefficients.T @ features, rtol=1e-13, atol=1e-13)


# The table of embeddings.


@pytest.mark.parametrize("padding_idx", [None, PAD_ID])
def test_embedding_gradients_are_autograds(padding_idx):
    torch.manual_seed(0)
    table = torch.nn.Embedding(9, 4, padding_idx=padding_idx)
    ids, coefficients = torch.tensor([[1, 2, 2], [8, PAD_ID, 0]]), torch.randn(2, 3, 4)
    (table(ids) * coefficients).sum().backward()
    expected, table.weight.grad = table.weight.grad, None
    shared = TrainingEmbedding(table)
    assert shared.weight is table.weight
    out = shared(ids)
    assert torch.equal(out, table(ids))
    (out * coefficients).sum().backward()
    torch.testing.assert_close(table.weight.grad, expected, rtol=1e-6, atol=1e-6)
    assert table.weight.grad[PAD_ID].any() == (padding_idx is None)
    assert not table.weight.grad[3:8].any()


def test_a_frozen_embedding_gets_no_gradient():
    table = torch.nn.Embedding(9, 4)
    table.weight.requires_grad_(False)
    assert not TrainingEmbedding(table)(torch.tensor([1, 2])).requires_grad


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16"), (False, "fp32")])
def test_without_a_choice_the_device_decides(has, expected, monkeypatch):
    monkeypatch.setattr("dynabert.precision.has_bf16", lambda device: has)
    assert TrainingViews(ElasticModel(tiny_model("bert"))).precision == expected
    assert precision_on("cpu") == expected and precision_on("cpu", "fp32") == "fp32"
    assert precision_on("cpu", "bf16") == "bf16"  # what is asked for is taken


@pytest.mark.parametrize(
    ("wanted", "has", "warned"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_emulation_is_said(wanted, has, warned, monkeypatch, caplog):
    monkeypatch.setattr("dynabert.precision.has_bf16", lambda device: has)
    _warn_emulated.cache_clear()
    for _ in range(2):
        warn_if_emulated(wanted, "cpu")
    assert caplog.text.count("many times as long") == warned


def test_the_processor_is_known():
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not flags.exists():
        pytest.skip("the flags of an x86 processor stand in /proc/cpuinfo of Linux alone")
    assert has_bf16("cpu") == ("avx512_bf16" in flags.read_text().split())


def test_instructions_name_what_products_gain_by(monkeypatch):
    vectors = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr("dynabert.precision.has_bf16", lambda device: True)
    monkeypatch.setattr("dynabert.precision.has_vnni", lambda: True)
    monkeypatch.setattr("dynabert.precision.has_amx", lambda: True)
    assert instructions() == f"{vectors} vnni bf16 amx"
    monkeypatch.setattr("dynabert.precision.has_bf16", lambda device: False)
    monkeypatch.setattr("dynabert.precision.has_vnni", lambda: False)
    monkeypatch.setattr("dynabert.precision.has_amx", lambda: False)
    assert instructions() == vectors


def test_a_build_that_cannot_tell_has_none(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    assert not has_bf16("cpu")
