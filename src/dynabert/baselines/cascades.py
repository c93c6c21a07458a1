"""Cascades of the sizes of one trained network, chosen on held-out rows: what it can do at a mean cost, untrained."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch

from dynabert.baselines.exiting import CascadeMethod
from dynabert.baselines.method import SEQ_LEN, ElasticMethod, Predicted, Trained, known
from dynabert.batches import Batch
from dynabert.errors import SettingError
from dynabert.exits import NEVER, Rule, exits_at, most_careful, n_classes
from dynabert.measure import labels_of, predict
from dynabert.statistics import ROW_METRICS
from dynabert.subnet import Subnet, encoder_flops
from dynabert.tasks import Task

RULE: Rule = "normalised"
VERSION = 2
"""Of `best_cascades`: what was kept of another one is out of date."""


@dataclass(frozen=True, kw_only=True)
class Cascades(Trained):
    """Several cascades of one network, each with thresholds of its own. Its points are theirs.

    :param members: one or more.
    """

    members: tuple[CascadeMethod, ...]

    @property
    def of_layers(self) -> int:
        """Layers of the full network."""
        return self.members[0].of_layers

    @property
    def device(self) -> torch.device:
        """Where they run."""
        return self.members[0].device

    def points(self) -> tuple[str, ...]:
        """Sizes and thresholds, such as ``w0.25-d0.5+w1-d1@s0.3``."""
        return tuple(self._members())

    def _members(self) -> dict[str, CascadeMethod]:
        return {point: member for member in self.members for point in member.points()}

    def predict(self, point: str, batches: Iterable[Batch]) -> Predicted:
        """The answers at one point."""
        return known(self.name, point, self._members()).predict(point, batches)

    def answer(self, point: str, batches: Iterable[Batch]) -> object:
        """The same, with rows that really go on."""
        return known(self.name, point, self._members()).answer(point, batches)

    def n_params(self, point: str) -> int:
        """Of the weights that any of the sizes of a point has."""
        return known(self.name, point, self._members()).n_params(point)

    def loads_with(self, point: str) -> str:
        """Nothing but this library runs it."""
        return known(self.name, point, self._members()).loads_with(point)


def best_cascades(
    method: ElasticMethod, select: Iterable[Batch], task: Task, *, budgets: Sequence[float], name: str
) -> Cascades:
    """For each budget the two sizes, and the threshold between them, that are best on held-out rows.

    Of every pair of sizes only the most careful threshold within the budget is tried. One that lets no row leave makes
    a cascade of its second size alone, at the cost of both, and is taken only where no pair does better.

    :param method: a trained network of several sizes.
    :param select: held-out rows, each once, with labels.
    :param task: a classification; its main metric decides, among equals the lower cost.
    :param budgets: mean FLOPs of a row of 128 tokens on these rows; those below every size are left out.
    :param name: what the method calls itself.
    :raises SettingError: a regression, or no pair of sizes within any budget.
    """
    elastic, rows = method.elastic, tuple(select)
    n_classes(elastic.model.config)
    metric, labels = ROW_METRICS[task.primary_metric], labels_of(rows)
    sizes = [Subnet.parse(point) for point in method.points()]
    flops = {size: encoder_flops(elastic.shape, elastic.slices(size), SEQ_LEN) for size in sizes}
    logits = {size: predict(elastic.at(size), rows) for size in sizes}
    pairs = [pair for pair in permutations(sizes, 2) if flops[pair[0]] < flops[pair[1]]]

    def standing(pair: tuple[Subnet, Subnet], budget: float) -> tuple[bool, float, float, float]:
        """Whether any row may leave at the first size of a pair, metric, saving and threshold, within a budget."""
        both, costs = np.stack([logits[size] for size in pair]), np.cumsum([flops[size] for size in pair])
        threshold = most_careful(both, budget, flops_by_exit=costs, rule=RULE)
        exited = exits_at(both, threshold, RULE)
        saving = -float(costs[exited.n_layers - 1].mean())
        return threshold != NEVER, metric(labels, exited.logits), saving, threshold

    chosen: dict[tuple[Subnet, Subnet], set[float]] = {}
    for budget in budgets:
        affordable = {pair: standing(pair, budget) for pair in pairs if flops[pair[0]] <= budget}
        if affordable:
            pair = max(affordable, key=affordable.__getitem__)
            chosen.setdefault(pair, set()).add(affordable[pair][-1])
    if not chosen:
        raise SettingError(
            f"no two sizes of {method.name} are a cascade of {max(budgets):.4g} FLOPs or less; give a larger budget"
        )
    members = tuple(
        CascadeMethod(
            name=name,
            elastic=elastic,
            rule=RULE,
            thresholds=tuple(sorted(thresholds)),
            sizes=pair,
            spent=method.spent,
        )
        for pair, thresholds in chosen.items()
    )
    return Cascades(name=name, members=members, spent=method.spent)
