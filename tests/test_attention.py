"""Dropout and attention of the training views."""

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model
from torch import nn

from dynabert.attention import TrainingDropout, attention, keep_mask, kept_share, padding_mask
from dynabert.elastic import ElasticModel
from dynabert.precision import TrainingViews
from dynabert.subnet import Subnet

HALVES = (torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_a_mask_keeps_its_share_wherever_one_looks(rate):
    torch.manual_seed(0)
    mask = keep_mask(torch.Size((400, 1003)), rate).double()
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert kept_share(rate) == pytest.approx(1 - rate, abs=2e-5)
    error = 5 * (max(rate * (1 - rate), 1e-12) / 1e5) ** 0.5
    for part in (mask[:, 0::4], mask[:, 1::4], mask[:, 2::4], mask[:, 3::4], mask[:100], mask[300:]):
        assert part.mean().item() == pytest.approx(1 - rate, abs=error + 2e-5)
    if rate > 0:  # neighbours are independent: four of them share one random number
        for gap in (1, 2, 3, 4):
            together = (mask[:, gap:] * mask[:, :-gap]).mean().item()
            assert together == pytest.approx((1 - rate) ** 2, abs=0.005)


def test_a_seed_repeats_a_mask_and_the_next_one_differs():
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append([keep_mask(torch.Size((5, 7)), 0.5) for _ in range(2)])
    assert torch.equal(masks[0][0], masks[1][0]) and torch.equal(masks[0][1], masks[1][1])
    assert not torch.equal(masks[0][0], masks[0][1])


@pytest.mark.parametrize("dtype", HALVES)
def test_dropout_scales_what_it_keeps_and_its_gradient(dtype):
    dropout = TrainingDropout(0.25)
    features = (torch.rand(64, 65, dtype=torch.float64) + 1).to(dtype).requires_grad_()
    out = dropout(features)
    out.sum().backward()
    kept = out != 0
    assert out.dtype == dtype
    assert 0.7 < kept.double().mean() < 0.8
    torch.testing.assert_close(out[kept], features[kept] / 0.75, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)
    assert torch.equal(features.grad != 0, kept)
    assert out.double().mean().item() == pytest.approx(features.double().mean().item(), rel=0.03)
    assert dropout.eval()(features) is features
    assert TrainingDropout(0.0)(features) is features


def heads(dtype):
    random = torch.Generator().manual_seed(1)
    return [torch.randn(3, 2, 5, 8, generator=random).to(dtype).requires_grad_() for _ in range(3)]


def mask_of(*lengths):
    return torch.arange(5) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_attention_and_its_gradients_are_the_formula(dtype, dropout):
    present, exact = mask_of(5, 2, 4), {"rtol": 2e-2, "atol": 3e-2} if dtype == torch.bfloat16 else {}
    inputs, plain = heads(dtype), [tensor.detach().double().requires_grad_() for tensor in heads(dtype)]
    torch.manual_seed(0)
    out, none = attention(nn.Module(), *inputs, padding_mask(attention_mask=present), dropout=dropout, scaling=0.3)
    assert none is None and out.dtype == dtype and out.shape == (3, 5, 2, 8)

    torch.manual_seed(0)
    kept = keep_mask(torch.Size((3, 2, 5, 5)), dropout).double() / kept_share(dropout)
    scores = (plain[0] @ plain[1].transpose(-1, -2) * 0.3).masked_fill(~present[:, None, None], -torch.inf)
    expected = (scores.softmax(-1) * kept @ plain[2]).transpose(1, 2)
    torch.testing.assert_close(out.double(), expected, **(exact or {"rtol": 1e-5, "atol": 1e-5}))
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    (out.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(inputs, plain, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, **(exact or {"rtol": 1e-5, "atol": 1e-5}))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_row_that_is_all_padding_stays_finite(dtype):
    inputs = heads(dtype)
    out, _ = attention(nn.Module(), *inputs, padding_mask(attention_mask=mask_of(5, 0, 3)), dropout=0.1)
    out.float().sum().backward()
    assert out.isfinite().all() and all(tensor.grad.isfinite().all() for tensor in inputs)


def test_no_padding_needs_no_mask():
    assert padding_mask(attention_mask=None) is None
    assert padding_mask(attention_mask=mask_of(5, 5)) is None
    assert padding_mask(attention_mask=mask_of(5, 4)).shape == (2, 1, 1, 5)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_padding_changes_nothing_that_is_no_padding(family, precision):
    """The mask reaches the attention: a row alone and the same row padded give the same logits."""
    elastic, batch = ElasticModel(tiny_model(family)), tiny_batch()
    view = TrainingViews(elastic, precision=precision).at(Subnet(0.5, 0.75)).eval()
    with torch.no_grad():
        padded = view(**batch.inputs).logits
        for row in range(len(batch)):
            n_tokens = int(batch.inputs["attention_mask"][row].sum())
            alone = view(**{name: tensor[row : row + 1, :n_tokens] for name, tensor in batch.inputs.items()}).logits
            torch.testing.assert_close(alone[0], padded[row], rtol=2e-2, atol=5e-2 if precision == "bf16" else 1e-5)


def test_a_training_view_drops_and_an_eval_view_does_not():
    elastic, batch = ElasticModel(tiny_model("bert", dropout=0.3)), tiny_batch()
    view = TrainingViews(elastic, precision="bf16").at(Subnet())
    with torch.no_grad():
        first, second = view.train()(**batch.inputs).logits, view(**batch.inputs).logits
        assert not torch.equal(first, second)
        assert torch.equal(view.eval()(**batch.inputs).logits, view(**batch.inputs).logits)
