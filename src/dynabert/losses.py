"""What a student is asked to do: agree with its teacher's logits, embeddings and hidden states, and with the labels.

Every term is a sum divided by a count of the whole step, handed in by the caller, so that a step cut into several
micro-batches or processes has the same loss as one batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from dynabert.errors import SettingError, check_choices


class EncoderOutput(Protocol):
    """What the losses read of a Hugging Face output."""

    logits: Tensor
    """(batch, n_labels)"""
    hidden_states: tuple[Tensor, ...]
    """The embedding output and the output of every executed layer, each (batch, seq, hidden)."""


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term; 0 leaves it out.

    The paper's lambdas: (logits, hidden) are (1, 0.1) in the width stage and (1, 1) in the depth stage, and the
    embeddings count as one more hidden state.
    """

    logits: float = 1.0
    hidden: float = 0.1
    embeddings: float = 0.1
    labels: float = 0.0

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not all(value >= 0 for value in values.values()) or max(values.values()) <= 0:
            raise SettingError(f"loss weights {values} must not be negative, and at least one must be above 0")

    @property
    def needs_states(self) -> bool:
        """Whether hidden states have to be computed at all."""
        return self.hidden > 0 or self.embeddings > 0


@dataclass(frozen=True)
class Reduction:
    """How the terms are averaged. The defaults repair the published procedure; `PUBLISHED` is the procedure itself.

    :param padding: ``masked`` leaves padding out of the hidden losses. Differs from the paper: its code includes it,
        which makes the loss depend on the length that batches are padded to.
    :param layers: ``mean`` averages the hidden loss over the matched layers. Differs from the paper: it sums, so deeper
        Subnets weigh more.
    :param subnets: ``mean`` averages the losses of a step over its Subnets. Differs from the paper: it sums, so that
        gradient clipping acts on nearly every step.
    :param regression: ``mse`` asks regression students for their teacher's score. Differs from the paper: its code has
        no logit loss for regression, so the task head gets no gradient in the distillation stages.
    """

    padding: Literal["masked", "included"] = "masked"
    layers: Literal["mean", "sum"] = "mean"
    subnets: Literal["mean", "sum"] = "mean"
    regression: Literal["mse", "none"] = "mse"

    def __post_init__(self) -> None:
        check_choices(self)


PUBLISHED = Reduction(padding="included", layers="sum", subnets="sum", regression="none")
"""The reductions of the paper's published code."""


@dataclass(frozen=True)
class Counts:
    """Denominators of one step, over all its micro-batches and processes."""

    examples: float
    tokens: float

    @classmethod
    def of(cls, attention_mask: Tensor, padding: Literal["masked", "included"]) -> "Counts":
        """The counts of one batch, from its mask (batch, seq); with ``included`` padding counts as tokens."""
        tokens = attention_mask.numel() if padding == "included" else int(attention_mask.sum())
        return cls(attention_mask.shape[0], tokens)


def _wide(tensor: Tensor) -> Tensor:
    """In fp32 at least: sums over many elements are not made in a low precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def soft_cross_entropy(student: Tensor, teacher: Tensor, n_examples: float) -> Tensor:
    """-sum softmax(teacher) * log_softmax(student), over the batch, divided by `n_examples`; temperature 1.

    :param student: logits (batch, n_labels).
    :param teacher: logits (batch, n_labels).

    Source: DynaBERT equation for the logit loss (SCE).
    """
    return -(teacher.softmax(-1) * student.log_softmax(-1)).sum() / n_examples


def kl_divergence(student: Tensor, teacher: Tensor, n_examples: float) -> Tensor:
    """KL(teacher || student) over the batch, divided by `n_examples`: `soft_cross_entropy` less the teacher's entropy.

    :param student: logits (batch, n_labels).
    :param teacher: logits (batch, n_labels).
    """
    pair = student.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(*pair, log_target=True, reduction="sum") / n_examples


def squared_error(student: Tensor, teacher: Tensor, n_examples: float) -> Tensor:
    """Squared error of scores (batch, 1) or (batch,), summed and divided by `n_examples`."""
    return (student.flatten() - teacher.flatten()).square().sum() / n_examples


class _SquaredDistance(torch.autograd.Function):
    """The sum of squared differences of two tensors, with as few passes over them as there can be."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ANN401
        difference = student - teacher
        if mask is not None:
            difference *= mask[..., None]
        ctx.save_for_backward(difference)
        return torch.dot(difference.flatten(), difference.flatten())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (difference,) = ctx.saved_tensors
        return difference * (2 * grad), None, None


def state_error(student: Tensor, teacher: Tensor, attention_mask: Tensor | None, n_tokens: float) -> Tensor:
    """Mean squared error of hidden states: summed over tokens, divided by `n_tokens` and by the hidden size.

    :param student: (batch, seq, hidden).
    :param teacher: (batch, seq, hidden).
    :param attention_mask: (batch, seq), 1 for tokens and 0 for padding; None counts padding in.
    """
    distance: Tensor = _SquaredDistance.apply(_wide(student), _wide(teacher), attention_mask)
    return distance / (n_tokens * student.shape[-1])


def label_loss(logits: Tensor, labels: Tensor, n_examples: float) -> Tensor:
    """Cross-entropy with integer labels, or squared error with float ones, summed and divided by `n_examples`.

    :param logits: (batch, n_labels), or (batch, seq, n_labels) for labels of tokens.
    :param labels: (batch,), or (batch, seq), where -100 asks for nothing.
    """
    if labels.is_floating_point():
        return squared_error(_wide(logits), labels, n_examples)
    return F.cross_entropy(_wide(logits).flatten(0, -2), labels.flatten(), reduction="sum") / n_examples


def loss_terms(
    student: EncoderOutput,
    teacher: EncoderOutput | None,
    *,
    attention_mask: Tensor,
    labels: Tensor | None,
    matched: tuple[int, ...],
    weights: LossWeights,
    reduction: Reduction,
    counts: Counts,
) -> dict[str, Tensor]:
    """The terms of one Subnet's loss, unweighted, each a scalar; a term whose weight is 0 is left out.

    :param student: outputs of the Subnet.
    :param teacher: outputs of its teacher, or None for a stage without one.
    :param attention_mask: (batch, seq).
    :param labels: (batch,), integers for classes and floats for regression; needed where the labels have a weight.
    :param matched: the teacher's state for each of the Subnet's states after the embeddings, see `matched_states`.

    Source: DynaBERT equations 5-6 and section 2.3; `Reduction` names what differs.
    """
    if not counts.tokens:  # a batch of nothing but padding asks for nothing, and 0 / 0 would be NaN
        return {"nothing": torch.zeros((), device=student.logits.device, requires_grad=True)}
    terms: dict[str, Tensor] = {}
    regression = student.logits.shape[-1] == 1
    if teacher is not None and weights.logits > 0 and not (regression and reduction.regression == "none"):
        loss: Callable[..., Tensor] = squared_error if regression else soft_cross_entropy
        terms["logits"] = loss(_wide(student.logits), _wide(teacher.logits), counts.examples)
    mask = attention_mask if reduction.padding == "masked" else None
    if teacher is not None and weights.embeddings > 0:
        terms["embeddings"] = state_error(student.hidden_states[0], teacher.hidden_states[0], mask, counts.tokens)
    if teacher is not None and weights.hidden > 0:
        pairs = zip(student.hidden_states[1:], matched, strict=True)
        errors = [state_error(state, teacher.hidden_states[index], mask, counts.tokens) for state, index in pairs]
        total = torch.stack(errors).sum()
        terms["hidden"] = total / len(errors) if reduction.layers == "mean" else total
    if weights.labels > 0:
        if labels is None:
            raise SettingError("this stage learns from labels but the batches have none; give labels or another stage")
        terms["labels"] = label_loss(student.logits, labels, counts.examples)
    return terms


def weighted_sum(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The loss of one Subnet: its terms, each with its weight.

    :raises SettingError: there is no term at all, as for a regression whose only weight is that of the logits where
        `Reduction.regression` leaves them out.
    """
    if not terms:
        raise SettingError("no loss term is left for this stage; give hidden, embeddings or labels a weight above 0")
    return torch.stack([getattr(weights, name, 1.0) * term for name, term in terms.items()]).sum()
