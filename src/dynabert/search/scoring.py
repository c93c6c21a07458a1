"""How good Subnets are on the `select` rows: their main metric, and how far their answers are from a reference's.

Rows are few, so the metric is coarse: many Subnets have the same one. The distance of the logits from those of the full
network tells them apart.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from dynabert.batches import Batch
from dynabert.measure import labels_of, predict
from dynabert.statistics import ROW_METRICS
from dynabert.subnet import Subnet
from dynabert.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HOPELESS = (1.5, 1.2, 1.1)
"""The rows are predicted in parts. A Subnet that after the first is 1.5 times as far from the reference as the best one
is on the same rows is not predicted on the others; after the second 1.2 times is enough, after the third 1.1 times."""


@dataclass(frozen=True)
class Score:
    """How good a Subnet is, plain values.

    :param losses: mean distance from the reference on each part of the rows: see `distances`.
    :param metric: main metric over all rows; None where only some parts were predicted.
    :param seconds: that it took.
    """

    losses: tuple[float, ...]
    metric: float | None
    seconds: float

    @property
    def loss(self) -> float:
        """The mean distance over the parts that were predicted."""
        return float(np.mean(self.losses))

    def beside(self, best: "Score") -> float:
        """The distance as a multiple of the best Subnet's on the same rows: parts differ in how hard they are."""
        return self.loss / max(float(np.mean(best.losses[: len(self.losses)])), 1e-30)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Score":
        """What `to_dict` gave.

        :raises TypeError: something else.
        """
        metric = saved["metric"]
        losses = tuple(float(loss) for loss in saved["losses"])
        if not losses:
            raise TypeError("a score without rows")
        return cls(losses, None if metric is None else float(metric), float(saved["seconds"]))


def distances(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How far answers are from those of a reference, shape (rows,).

    :param logits: shape (rows, classes), or (rows, 1) of a regression.
    :param reference: likewise.
    :return: Kullback-Leibler divergence in nats, from the reference's probabilities; of a regression the squared
        difference.
    """
    ours, theirs = torch.from_numpy(logits).double(), torch.from_numpy(reference).double()
    if ours.shape[1] == 1:
        return ((ours - theirs) ** 2)[:, 0].numpy()
    return F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1).numpy()


class Scorer:
    """Scores Subnets on the same rows; what it has scored, it keeps.

    :param view_of: a network's view of a Subnet, which need not keep it.
    :param batches: held-out rows, each once, with labels.
    :param task: says how predictions are judged.
    :param known: scores of earlier searches on the same network and rows, by the name of the Subnet.
    """

    def __init__(
        self,
        view_of: "Callable[[Subnet], PreTrainedModel]",
        batches: Iterable[Batch],
        *,
        task: Task,
        known: Mapping[str, Score] | None = None,
    ) -> None:
        self.scores = dict(known or {})
        self._view_of, self._metric = view_of, ROW_METRICS[task.primary_metric]
        self._parts = parts_of(batches, len(HOPELESS) + 1)
        self._labels = [labels_of(part) for part in self._parts]
        full = view_of(Subnet())
        self._reference = [predict(full, part) for part in self._parts]

    def __call__(self, subnet: Subnet, best: Score | None = None) -> Score:
        """The score of a Subnet.

        :param best: of the best Subnet so far, scored on all rows; one that is hopeless beside it is scored on fewer.
        """
        known = self.scores.get(subnet.name)
        if known is None or not _holds(known, best):
            self.scores[subnet.name] = self._scored(subnet, best)
        return self.scores[subnet.name]

    def _scored(self, subnet: Subnet, best: Score | None) -> Score:
        started = perf_counter()
        view, logits = self._view_of(subnet), []
        found = Score((), None, 0.0)
        for part, reference, limit in zip(self._parts, self._reference, (*HOPELESS, np.inf), strict=False):
            logits.append(predict(view, part))
            found = replace(found, losses=(*found.losses, float(distances(logits[-1], reference).mean())))
            if best is not None and found.beside(best) > limit:
                break
        if len(logits) == len(self._parts):
            found = replace(found, metric=self._metric(np.concatenate(self._labels), np.concatenate(logits)))
        return replace(found, seconds=perf_counter() - started)


def _holds(known: Score, best: Score | None) -> bool:
    """Whether a score is still enough: of all rows, or of those by which it is hopeless beside this best, too."""
    if known.metric is not None:
        return True
    return best is not None and known.beside(best) > HOPELESS[len(known.losses) - 1]


def parts_of(batches: Iterable[Batch], n_parts: int, *, size: int = 64) -> list[list[Batch]]:
    """The same rows in parts that are alike: each has rows of all lengths, in batches of similar ones.

    :param batches: each row once.
    :param n_parts: how many; fewer where there are fewer rows.
    :param size: rows of a batch.
    """
    rows = [batch.part(place, 1) for batch in batches for place in range(len(batch))]
    rows.sort(key=lambda row: (-row.inputs["input_ids"].shape[1], int(row.ids[0])))
    parts = [rows[first::n_parts] for first in range(min(n_parts, len(rows)))]
    return [[_together(part[start : start + size]) for start in range(0, len(part), size)] for part in parts]


def _together(rows: Sequence[Batch]) -> Batch:
    """Single rows as one batch. What pads them does not matter: the attention mask leaves it out."""
    longest = max(row.inputs["input_ids"].shape[1] for row in rows)
    inputs = {
        name: torch.cat([F.pad(row.inputs[name], (0, longest - row.inputs[name].shape[1])) for row in rows])
        for name in rows[0].inputs
    }
    labels = [row.labels for row in rows if row.labels is not None]
    return Batch(inputs, torch.cat(labels) if labels else None, torch.cat([row.ids for row in rows]))
