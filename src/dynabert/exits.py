"""Early exit: each row leaves a stack of layers at the first ramp that is sure enough. Batched, and exact.

A ramp is a small classifier on the output of a layer. After each layer the rows whose ramp is sure leave; the others
are put together again, without the padding that nobody of them needs, and go on. The answers and the exit layers are
those of one row at a time. Thresholds can be swept and calibrated on the logits of all ramps, computed in one pass.

Sources: DeeBERT (Xin et al., ACL 2020) section 3.3, its batch size 1 only; FastBERT (Liu et al., ACL 2020) section 3.4.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, lgamma, log
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dynabert.batches import Batch, in_row_order
from dynabert.errors import DataError, SettingError, one_of
from dynabert.families import Family
from dynabert.stack import Stack, evaluating

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Rule = Literal["entropy", "normalised"]
RULES: tuple[Rule, ...] = get_args(Rule)
"""When a row leaves. `entropy` (DeeBERT): the entropy of the ramp's classes, natural logarithm, is below the threshold.
`normalised` (FastBERT): the entropy as a share of its maximum, log(classes), is not above the threshold ("Speed")."""

NEVER = -1.0
"""A threshold at which no row leaves early, by either rule."""

CONFIDENCE = 0.95
"""With which a calibrated agreement is promised for rows that were not calibrated on."""

_CANDIDATES = 512  # thresholds that calibration tries at most


class Ramp(nn.Module, ABC):
    """A classifier on the output of a layer: called with hidden states (batch, seq, hidden) and mask (batch, seq)."""

    @abstractmethod
    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits (batch, n_labels)."""

    @abstractmethod
    def flops(self, seq_len: int) -> int:
        """Operations on one sequence, counted as in `dynabert.subnet.encoder_flops`."""


@dataclass(frozen=True)
class Exited:
    """Where each row left, and what it was given there.

    :param logits: float32, shape (rows, n_labels), in the order of ascending row ids.
    :param n_layers: int64, shape (rows,): layers that each row executed.
    """

    logits: np.ndarray
    n_layers: np.ndarray


class EarlyExit:
    """A view or model with a ramp after each layer but the last, where its own task head answers.

    :param view: with a sequence classification head; view and ramps are in eval mode while they run.
    :param family: its row of the families table.
    :param ramps: one for each layer but the last, each called as a `Ramp`.
    :param rule: a name in `RULES`.
    :raises SettingError: an unknown rule, a regression, or another number of ramps.
    """

    def __init__(
        self, view: "PreTrainedModel", family: Family, ramps: nn.ModuleList, *, rule: Rule = "entropy"
    ) -> None:
        check_rule(rule)
        self.n_classes = n_classes(view.config)
        self.view, self.stack, self.ramps, self.rule = view, Stack(view, family), ramps, rule
        if len(ramps) != len(self.stack) - 1:
            raise SettingError(
                f"{len(ramps)} ramps do not fit {len(self.stack)} layers; give one for each layer but the last"
            )

    def predict(self, batches: Iterable[Batch], threshold: float) -> Exited:
        """The answer of each row at the first ramp that is sure enough.

        :param batches: each row once.
        :param threshold: of the rule; higher is faster.
        :raises DataError: no rows.
        """
        device = next(self.view.parameters()).device
        with evaluating(self.view, self.ramps), torch.inference_mode():
            return answered(lambda batch: self._exit(batch, threshold), batches, device=device)

    def _exit(self, batch: Batch, threshold: float) -> Exited:
        """One batch through the stack; after each layer it becomes smaller by the rows that leave."""
        attention_mask, last = batch.inputs["attention_mask"], len(self.stack) - 1
        logits = np.zeros((len(batch), self.n_classes), np.float32)
        n_layers = np.full(len(batch), last + 1)
        rows = np.arange(len(batch))  # of the batch, that are still inside
        hidden = self.stack.embed(batch.inputs)
        mask = self.stack.mask(hidden, attention_mask)
        for number, layer in enumerate(self.stack.layers):
            hidden = layer(hidden, mask)
            answers = self._answers(number, hidden, attention_mask)
            leaving = np.ones(len(rows), bool)
            if number < last:
                leaving = leaves(answers, threshold, self.rule)
            logits[rows[leaving]], n_layers[rows[leaving]] = answers[leaving], number + 1
            rows = rows[~leaving]
            if not len(rows):
                break
            if leaving.any():
                hidden, attention_mask = _regrouped(hidden, attention_mask, ~leaving)
                mask = self.stack.mask(hidden, attention_mask)
        return Exited(logits, n_layers)

    def _answers(self, number: int, hidden: Tensor, attention_mask: Tensor) -> np.ndarray:
        """The logits after a layer: of its ramp, or of the task head after the last one."""
        is_last = number == len(self.stack) - 1
        logits = self.stack.head(hidden) if is_last else self.ramps[number](hidden, attention_mask)
        return logits.float().cpu().numpy()

    def all_exits(self, batches: Iterable[Batch]) -> np.ndarray:
        """The logits of every ramp and of the task head for every row, in one pass.

        :param batches: each row once.
        :return: float32, shape (layers, rows, n_labels), rows in the order of ascending ids; for `exits_at`.
        :raises DataError: no rows.
        """
        parts: list[np.ndarray] = []
        ids: list[np.ndarray] = []
        device = next(self.view.parameters()).device
        with evaluating(self.view, self.ramps), torch.inference_mode():
            for batch in batches:
                inputs = batch.to(device).inputs
                states = enumerate(self.stack.states(inputs))
                answers = [self._answers(number, hidden, inputs["attention_mask"]) for number, hidden in states]
                parts.append(np.stack(answers, axis=1))
                ids.append(batch.ids.cpu().numpy())
        return in_row_order(parts, ids).swapaxes(0, 1)


def answered(answer: Callable[[Batch], Exited], batches: Iterable[Batch], *, device: torch.device) -> Exited:
    """The answers to all rows, batch by batch.

    :param answer: to the rows of one batch, in their order.
    :param batches: each row once.
    :param device: where the batches go.
    :raises DataError: no rows.
    """
    parts: list[Exited] = []
    ids: list[np.ndarray] = []
    for batch in batches:
        parts.append(answer(batch.to(device)))
        ids.append(batch.ids.cpu().numpy())
    return Exited(
        in_row_order([part.logits for part in parts], ids), in_row_order([part.n_layers for part in parts], ids)
    )


def _regrouped(hidden: Tensor, attention_mask: Tensor, staying: np.ndarray) -> tuple[Tensor, Tensor]:
    """The rows that stay, without the columns that are padding in all of them."""
    rows = torch.from_numpy(np.flatnonzero(staying)).to(hidden.device)
    attention_mask = attention_mask.index_select(0, rows)
    used = attention_mask.any(dim=0).nonzero()
    length = int(used.max()) + 1 if len(used) else 1
    return hidden.index_select(0, rows)[:, :length], attention_mask[:, :length]


def check_rule(rule: str) -> None:
    """Refuse an unknown rule.

    :raises SettingError: not a name in `RULES`.
    """
    if rule not in RULES:
        raise SettingError(one_of("exit rule", rule, RULES))


def n_classes(config: "PretrainedConfig") -> int:
    """How many classes a model tells apart: what early exit can be sure of.

    :raises SettingError: a regression.
    """
    if config.num_labels is None or config.num_labels < 2:
        raise SettingError("early exit needs classes: a regression has one output and no entropy; run a Subnet instead")
    return config.num_labels


def uncertainty(logits: np.ndarray, rule: Rule) -> np.ndarray:
    """How unsure each answer is: its entropy, or that as a share of the largest one.

    :param logits: shape (..., classes).
    :return: float64, shape (...); natural logarithm, or from 0 to 1.
    """
    check_rule(rule)
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=-1)
    # entropy = log(sum of e^x) - mean of x under softmax; never below 0 but for rounding
    entropy = np.maximum(np.log(total) - (powers * shifted).sum(axis=-1) / total, 0.0)
    return entropy if rule == "entropy" else np.minimum(entropy / np.log(logits.shape[-1]), 1.0)


def leaves(logits: np.ndarray, threshold: float, rule: Rule) -> np.ndarray:
    """Which answers are sure enough.

    :param logits: shape (..., classes).
    :return: bool, shape (...).
    """
    unsure = uncertainty(logits, rule)
    return unsure < threshold if rule == "entropy" else unsure <= threshold


def exits_at(all_logits: np.ndarray, threshold: float, rule: Rule) -> Exited:
    """What `EarlyExit.predict` gives at a threshold, from the logits of all ramps.

    :param all_logits: shape (layers, rows, n_labels), see `EarlyExit.all_exits`.
    :param threshold: of the rule; higher is faster.
    :param rule: a name in `RULES`.
    """
    rows = np.arange(all_logits.shape[1])
    leaving = np.concatenate([leaves(all_logits[:-1], threshold, rule), np.ones((1, len(rows)), bool)])
    layer = leaving.argmax(axis=0)  # the first
    return Exited(all_logits[layer, rows], layer + 1)


def exit_flops(layer_flops: Sequence[int], ramp_flops: Sequence[int]) -> np.ndarray:
    """FLOPs of a row by where it leaves: the layers up to there, and every ramp that it passed.

    :param layer_flops: of each layer, as many as there are.
    :param ramp_flops: of the ramp after each layer but the last. (The task head is not counted, as in all FLOPs here.)
    :return: int64, shape (layers,): of leaving after the first, second, … layer.
    """
    return np.cumsum(layer_flops) + np.cumsum([*ramp_flops, 0])


def candidates(all_logits: np.ndarray, rule: Rule) -> np.ndarray:
    """Thresholds between which something changes on these rows, from `NEVER` to one at which all leave at once.

    They lie halfway between neighbouring uncertainties, so that a row's exit does not hang on its last digit; where
    there are more than 512, on evenly spaced quantiles of them.

    :return: float64, ascending.
    """
    seen = np.unique(uncertainty(all_logits[:-1], rule))
    between = (seen[1:] + seen[:-1]) / 2
    if len(between) > _CANDIDATES:
        between = between[np.linspace(0, len(between) - 1, _CANDIDATES).round().astype(int)]
    return np.concatenate([[NEVER], between, [1.0 + np.log(all_logits.shape[-1])]])


def fewest_that_show(agreement: float, *, confidence: float = CONFIDENCE) -> int:
    """How many rows, all of which agree, show an agreement below 1: see `rows_that_show`."""
    return 0 if agreement <= 0 else ceil(log(1 - confidence) / log(agreement))


def rows_that_show(agreement: float, n_rows: int, *, confidence: float = CONFIDENCE) -> int | None:
    """How many of some rows have to agree before an agreement may be promised for rows that nobody has seen.

    The lower end of the one-sided interval of Clopper and Pearson (1934) is then at least the agreement: were the true
    share smaller, so many would agree with a chance of at most 1 - confidence.

    :param agreement: to be shown, from 0 to 1.
    :param n_rows: independent ones, drawn as the unseen ones are.
    :return: None where not even all of them show it: 99 % takes 299 rows, all of which agree.
    """
    if agreement <= 0:
        return 0
    if agreement >= 1:
        return None
    agreeing = np.arange(n_rows + 1)
    ways = np.array([lgamma(k + 1) + lgamma(n_rows - k + 1) for k in agreeing])
    log_chances = lgamma(n_rows + 1) - ways + agreeing * np.log(agreement) + (n_rows - agreeing) * np.log1p(-agreement)
    at_least = np.exp(log_chances)[::-1].cumsum()[::-1]
    enough = np.flatnonzero(at_least <= 1 - confidence)
    return int(enough[0]) if len(enough) else None


def fastest_agreeing(
    all_logits: np.ndarray,
    agreement: float,
    *,
    rule: Rule,
    reference: np.ndarray | None = None,
    thresholds: Iterable[float] | None = None,
) -> float | None:
    """The fastest threshold shown to give rows, at this share at least, the class that a whole network says.

    Thresholds are tried from the slowest on, up to the first one whose rows do not show the agreement with a confidence
    of 95 %, see `rows_that_show`. The best of hundreds would be one that was lucky on these rows; this way the promise
    holds for new rows of the same kind with that confidence, however many are tried (the fixed-sequence testing of
    Angelopoulos et al. 2021, "Learn then Test").

    :param all_logits: of held-out rows that are not reported on, shape (layers, rows, n_labels).
    :param agreement: from 0 to 1.
    :param rule: a name in `RULES`.
    :param reference: logits of the network to agree with, shape (rows, n_labels); by default the whole stack's own,
        with which it agrees without being tried.
    :param thresholds: those to choose from; by default `candidates`. `NEVER` is always among them.
    :return: None where not even the whole stack is shown to agree so far with the reference.
    :raises SettingError: an agreement outside [0, 1].
    :raises DataError: no rows, or a stack of one layer, which has no ramps.
    """
    if not 0 <= agreement <= 1:
        raise SettingError(f"agreement {agreement} is a share of the rows; give a number from 0 to 1")
    offered = _offered(all_logits, rule, thresholds)
    said = (all_logits[-1] if reference is None else reference).argmax(axis=-1)
    needed = rows_that_show(agreement, len(said))
    found = NEVER if reference is None else None
    if needed is None:
        return found
    for threshold in offered:
        answers = exits_at(all_logits, threshold, rule).logits.argmax(axis=-1)
        if np.sum(answers == said) < needed:
            break
        found = threshold
    return found


def most_careful(
    all_logits: np.ndarray,
    flops: float,
    *,
    flops_by_exit: np.ndarray,
    rule: Rule,
    thresholds: Iterable[float] | None = None,
) -> float:
    """The lowest threshold at which a row costs, in the mean, no more than a budget.

    That mean is of these rows, and others may cost more or less: nothing is held back for that. The cost falls with the
    threshold, so none of them is chosen for its luck.

    :param all_logits: as in `fastest_agreeing`.
    :param flops: the budget.
    :param flops_by_exit: see `exit_flops`.
    :param rule: a name in `RULES`.
    :param thresholds: as in `fastest_agreeing`.
    :raises SettingError: none of the thresholds is so cheap.
    :raises DataError: no rows, or a stack of one layer, which has no ramps.
    """

    def cost(threshold: float) -> float:
        return float(flops_by_exit[exits_at(all_logits, threshold, rule).n_layers - 1].mean())

    offered = _offered(all_logits, rule, thresholds)
    first = bisect_left(offered, -flops, key=lambda threshold: -cost(threshold))
    if first == len(offered):
        raise SettingError(
            f"{flops:.4g} FLOPs are below the {cost(offered[-1]):.4g} of the fastest threshold; give a larger budget"
        )
    return offered[first]


def _offered(all_logits: np.ndarray, rule: Rule, thresholds: Iterable[float] | None) -> list[float]:
    if all_logits.ndim != 3 or len(all_logits) < 2 or not all_logits.shape[1]:
        raise DataError(
            f"logits of shape {all_logits.shape} have no exits to calibrate; give (layers, rows, labels), 2 layers or "
            f"more and 1 row or more"
        )
    offered = candidates(all_logits, rule) if thresholds is None else thresholds
    return sorted({NEVER, *(float(threshold) for threshold in offered)})
