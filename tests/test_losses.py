"""Each loss term against numbers worked out by hand."""

from dataclasses import dataclass
from math import log

import pytest
import torch
from torch import Tensor

from dynabert.errors import SettingError
from dynabert.losses import (
    PUBLISHED,
    Counts,
    LossWeights,
    Reduction,
    label_loss,
    loss_terms,
    soft_cross_entropy,
    squared_error,
    state_error,
    weighted_sum,
)

ALL_TERMS = LossWeights(logits=1, hidden=1, embeddings=1, labels=1)


@dataclass
class Output:
    """What a model returns."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...]


def random_output(seed, *, n_states, n_labels=3, shape=(4, 5, 8), dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    states = tuple(torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for _ in range(n_states))
    return Output(torch.randn(shape[0], n_labels, generator=random, dtype=torch.float64).to(dtype), states)


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
LABELS = torch.tensor([0, 2, 1, 1])


def terms(
    student, teacher, *, mask=MASK, labels=LABELS, weights=ALL_TERMS, reduction=None, counts=None, matched=(1, 3)
):
    reduction = reduction or Reduction()
    counts = counts or Counts.of(mask, reduction.padding)
    settings = {"matched": matched, "weights": weights, "reduction": reduction, "counts": counts}
    return loss_terms(student, teacher, attention_mask=mask, labels=labels, **settings)


# The terms themselves.


def test_soft_cross_entropy_by_hand():
    student = torch.tensor([[log(2), 0.0], [0.0, 0.0]])  # probabilities 2/3, 1/3 and 1/2, 1/2
    teacher = torch.tensor([[log(3), 0.0], [0.0, log(9)]])  # 3/4, 1/4 and 1/10, 9/10
    expected = -(0.75 * log(2 / 3) + 0.25 * log(1 / 3)) + log(2)
    assert float(soft_cross_entropy(student, teacher, 2)) == pytest.approx(expected / 2, rel=1e-6)
    assert float(soft_cross_entropy(student, teacher, 5)) == pytest.approx(expected / 5, rel=1e-6)


def test_soft_cross_entropy_is_least_where_the_student_agrees():
    teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    student = teacher.clone().requires_grad_()
    soft_cross_entropy(student, teacher, 6).backward()
    assert student.grad.abs().max() < 1e-6
    moved = soft_cross_entropy(teacher + torch.tensor([0.5, 0, 0, 0]), teacher, 6)
    assert moved > soft_cross_entropy(teacher, teacher, 6)


def test_squared_error_by_hand():
    assert float(squared_error(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.5]), 2)) == (4 + 0.25) / 2
    assert float(squared_error(torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [2.5]]), 4)) == (4 + 0.25) / 4


def test_state_error_by_hand():
    student = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    mask = torch.tensor([[1, 1], [1, 0]])
    real = (1 + 4) / 2 + (4 + 9) / 2 + (1 + 1) / 2
    assert float(state_error(student, teacher, mask, 3)) == pytest.approx(real / 3)
    assert float(state_error(student, teacher, None, 4)) == pytest.approx((real + 81) / 4)
    assert float(state_error(student, teacher, None, 4)) == pytest.approx(float(((student - teacher) ** 2).mean()))


def test_label_loss_by_hand():
    logits = torch.tensor([[log(2), 0.0, 0.0], [0.0, 0.0, log(6)]])
    expected = -(log(1 / 4) + log(6 / 8))
    assert float(label_loss(logits, torch.tensor([1, 2]), 2)) == pytest.approx(expected / 2, rel=1e-6)
    assert float(label_loss(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.5]), 2)) == (4 + 0.25) / 2


def test_counts():
    assert Counts.of(MASK, "masked") == Counts(4, 11)
    assert Counts.of(MASK, "included") == Counts(4, 20)


# Their composition.


def test_all_terms_with_the_repairs():
    student, teacher = random_output(0, n_states=3), random_output(1, n_states=4)
    got = terms(student, teacher)
    error = [(s - teacher.hidden_states[i]) ** 2 for s, i in zip(student.hidden_states, (0, 1, 3), strict=True)]
    of_tokens = [float(e[MASK.bool()].mean()) for e in error]
    assert list(got) == ["logits", "embeddings", "hidden", "labels"]
    assert all(term.ndim == 0 for term in got.values())
    assert float(got["embeddings"]) == pytest.approx(of_tokens[0], rel=1e-6)
    assert float(got["hidden"]) == pytest.approx((of_tokens[1] + of_tokens[2]) / 2, rel=1e-6)
    expected = torch.nn.functional.cross_entropy(student.logits, teacher.logits.softmax(-1))
    assert float(got["logits"]) == pytest.approx(float(expected), rel=1e-6)
    expected = torch.nn.functional.cross_entropy(student.logits, LABELS)
    assert float(got["labels"]) == pytest.approx(float(expected), rel=1e-6)


def test_all_terms_as_published():
    student, teacher = random_output(0, n_states=3), random_output(1, n_states=4)
    got = terms(student, teacher, reduction=PUBLISHED)
    mse = [
        float(torch.nn.functional.mse_loss(s, teacher.hidden_states[i]))
        for s, i in zip(student.hidden_states, (0, 1, 3), strict=True)
    ]
    assert float(got["embeddings"]) == pytest.approx(mse[0], rel=1e-6)
    assert float(got["hidden"]) == pytest.approx(mse[1] + mse[2], rel=1e-6)


def test_the_published_reductions():
    assert Reduction(padding="included", layers="sum", subnets="sum", regression="none") == PUBLISHED
    assert Reduction() == Reduction(padding="masked", layers="mean", subnets="mean", regression="mse")


def test_regression_learns_the_teachers_score_unless_as_published():
    student, teacher = random_output(0, n_states=3, n_labels=1), random_output(1, n_states=4, n_labels=1)
    labels = torch.tensor([0.5, 1.0, 2.0, 3.0])
    got = terms(student, teacher, labels=labels)
    assert float(got["logits"]) == pytest.approx(float(((student.logits - teacher.logits) ** 2).mean()), rel=1e-6)
    assert float(got["labels"]) == pytest.approx(float(((student.logits[:, 0] - labels) ** 2).mean()), rel=1e-6)
    assert list(terms(student, teacher, labels=labels, reduction=PUBLISHED)) == ["embeddings", "hidden", "labels"]


def test_a_term_without_weight_is_left_out():
    student, teacher = random_output(0, n_states=3), random_output(1, n_states=4)
    for name in ("logits", "hidden", "embeddings", "labels"):
        weights = LossWeights(**{**{"logits": 0, "hidden": 0, "embeddings": 0, "labels": 0}, name: 2})
        assert list(terms(student, teacher, weights=weights)) == [name]
    labels_alone = LossWeights(logits=0, hidden=0, embeddings=0, labels=1)
    assert list(terms(Output(student.logits, ()), None, weights=labels_alone)) == ["labels"]


def test_weighted_sum():
    student, teacher = random_output(0, n_states=3), random_output(1, n_states=4)
    weights = LossWeights(logits=0.5, hidden=2, embeddings=3, labels=0.25)
    got = terms(student, teacher, weights=weights)
    expected = 0.5 * got["logits"] + 2 * got["hidden"] + 3 * got["embeddings"] + 0.25 * got["labels"]
    assert float(weighted_sum(got, weights)) == pytest.approx(float(expected))


def widened(output, extra):
    """The same output with more padding, in which anything may stand."""
    noise = [torch.full((*s.shape[:1], extra, s.shape[2]), 7.0 * (i + 1)) for i, s in enumerate(output.hidden_states)]
    return Output(output.logits, tuple(torch.cat([s, n], 1) for s, n in zip(output.hidden_states, noise, strict=True)))


def test_more_padding_changes_nothing_when_masked():
    student, teacher = random_output(0, n_states=3), random_output(1, n_states=4)
    other = widened(teacher, 3)
    other.hidden_states = tuple(-state for state in other.hidden_states)
    negated = Output(teacher.logits, tuple(-state for state in teacher.hidden_states))
    mask = torch.nn.functional.pad(MASK, (0, 3))
    plain, padded = terms(student, negated), terms(widened(student, 3), other, mask=mask)
    assert plain.keys() == padded.keys()
    for name, term in plain.items():
        assert float(padded[name]) == pytest.approx(float(term), rel=1e-6), name
    published = terms(student, negated, reduction=PUBLISHED)
    published_padded = terms(widened(student, 3), other, mask=mask, reduction=PUBLISHED)
    assert float(published_padded["hidden"]) != pytest.approx(float(published["hidden"]), rel=1e-3)


@pytest.mark.parametrize("reduction", [Reduction(), PUBLISHED], ids=["default", "paper"])
def test_a_batch_cut_in_two_has_the_loss_of_the_whole(reduction):
    student, teacher = random_output(0, n_states=3), random_output(1, n_states=4)
    whole = terms(student, teacher, reduction=reduction)
    counts = Counts.of(MASK, reduction.padding)
    summed = dict.fromkeys(whole, 0.0)
    for rows in (slice(0, 1), slice(1, 4)):
        cut = [Output(o.logits[rows], tuple(s[rows] for s in o.hidden_states)) for o in (student, teacher)]
        for name, term in terms(*cut, mask=MASK[rows], labels=LABELS[rows], reduction=reduction, counts=counts).items():
            summed[name] += float(term)
    assert summed == pytest.approx({name: float(term) for name, term in whole.items()}, rel=1e-6)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_low_precision_is_summed_in_float32_and_high_precision_is_kept(dtype, expected):
    student, teacher = random_output(0, n_states=3, dtype=dtype), random_output(1, n_states=4, dtype=dtype)
    assert {name: term.dtype for name, term in terms(student, teacher).items()} == dict.fromkeys(
        ("logits", "embeddings", "hidden", "labels"), expected
    )


def test_unequal_numbers_of_states_are_a_mistake():
    with pytest.raises(ValueError, match="zip"):
        terms(random_output(0, n_states=4), random_output(1, n_states=4), matched=(1, 3))


def test_labels_that_are_needed_and_missing():
    with pytest.raises(SettingError, match="the batches have none"):
        terms(random_output(0, n_states=3), random_output(1, n_states=4), labels=None)
    weights = LossWeights()
    assert "labels" not in terms(
        random_output(0, n_states=3), random_output(1, n_states=4), labels=None, weights=weights
    )


# Settings.


def test_weights_are_checked():
    assert LossWeights(logits=1, hidden=0, embeddings=0).needs_states is False
    assert LossWeights(logits=0, hidden=0, embeddings=0.1).needs_states is True
    for bad in ({"logits": -1}, {"logits": 0, "hidden": 0, "embeddings": 0, "labels": 0}, {"labels": float("nan")}):
        with pytest.raises(SettingError, match="must not be negative"):
            LossWeights(**bad)


@pytest.mark.parametrize("name", ["padding", "layers", "subnets", "regression"])
def test_an_unknown_reduction_is_answered_with_the_known_ones(name):
    with pytest.raises(SettingError, match="known: "):
        Reduction(**{name: "maen"})
