"""Methods whose rows cost what they need: early exit at ramps, and cascades of sizes. Their points are thresholds."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, Self, cast

import numpy as np
from torch import nn

from dynabert.baselines.method import SEQ_LEN, Predicted, TrainedElastic, known
from dynabert.batches import Batch
from dynabert.cascade import Cascade
from dynabert.elastic import count_params
from dynabert.exits import (
    EarlyExit,
    Exited,
    Ramp,
    Rule,
    exit_flops,
    exits_at,
    most_careful,
)
from dynabert.subnet import LayerSlice, Subnet, encoder_flops

EARLY_EXIT = "dynabert (early exit)"
"""What runs a model whose rows leave early."""


class Runner(Protocol):
    """What answers rows at a threshold: `dynabert.exits.EarlyExit` or `dynabert.cascade.Cascade`."""

    def predict(self, batches: Iterable[Batch], threshold: float) -> Exited:
        """The answers at a threshold."""

    def all_exits(self, batches: Iterable[Batch]) -> np.ndarray:
        """The logits of all exits, shape (exits, rows, n_labels)."""


@dataclass(frozen=True, kw_only=True)
class ThresholdMethod(TrainedElastic):
    """A network whose rows leave at the first exit that is sure enough. Its points are thresholds.

    The logits of all exits on the rows last predicted are kept, so that a sweep over thresholds computes them once.

    :param thresholds: ascending: each is faster than the one before.
    """

    rule: Rule
    thresholds: tuple[float, ...]
    _seen: list[tuple[Iterable[Batch], np.ndarray]] = field(default_factory=list, repr=False, compare=False)

    @property
    @abstractmethod
    def last(self) -> Subnet:
        """The size at whose end every row leaves."""

    @property
    @abstractmethod
    def exits(self) -> Runner:
        """The network with its exits, to be run."""

    @property
    @abstractmethod
    def size(self) -> str:
        """What has the exits: the name of its size or sizes; empty for the full network."""

    @abstractmethod
    def n_params(self, point: str) -> int:
        """Parameters that have to be in memory at any threshold."""

    @abstractmethod
    def flops_by_exit(self) -> np.ndarray:
        """What a row of 128 tokens costs by the exit that it leaves at, shape (exits,)."""

    @abstractmethod
    def layers_by_exit(self) -> np.ndarray:
        """How many layers it executes, shape (exits,)."""

    def points(self) -> tuple[str, ...]:
        """``s`` and the threshold, with as many digits as tell it from the others; of another size ``NAME@s``."""
        return tuple(self._thresholds())

    def _thresholds(self) -> dict[str, float]:
        size = f"{self.size}@" if self.size else ""
        short = [f"{threshold:g}" for threshold in self.thresholds]
        names = [
            name if short.count(name) == 1 else repr(float(x)) for name, x in zip(short, self.thresholds, strict=True)
        ]
        return {f"{size}s{name}": threshold for name, threshold in zip(names, self.thresholds, strict=True)}

    def predict(self, point: str, batches: Iterable[Batch]) -> Predicted:
        """The answers at one threshold: those of `Runner.predict`."""
        threshold = known(self.name, point, self._thresholds())
        exited = exits_at(self.all_exits(batches), threshold, self.rule)
        exit = exited.n_layers - 1
        return Predicted(exited.logits, self.layers_by_exit()[exit], self.flops_by_exit()[exit])

    def answer(self, point: str, batches: Iterable[Batch]) -> object:
        """The same, with rows that really leave."""
        return self.exits.predict(batches, known(self.name, point, self._thresholds()))

    def all_exits(self, batches: Iterable[Batch]) -> np.ndarray:
        """The logits of all exits, see `Runner.all_exits`; computed once for rows that are asked for repeatedly."""
        if not self._seen or self._seen[0][0] is not batches:
            self._seen[:] = [(batches, self.exits.all_exits(batches))]
        return self._seen[0][1]

    def loads_with(self, point: str) -> str:
        """Nothing but this library runs it."""
        known(self.name, point, self._thresholds())
        return EARLY_EXIT

    def within(self, select: Iterable[Batch], budgets: Sequence[float]) -> Self:
        """The same with more thresholds: for each budget the most careful one whose mean cost is within it.

        :param select: held-out rows, each once.
        :param budgets: FLOPs of a row of 128 tokens, ramps included; those that no threshold meets are left out.
        """
        logits, costs = self.all_exits(select), self.flops_by_exit()
        found = {
            most_careful(logits, budget, flops_by_exit=costs, rule=self.rule)
            for budget in budgets
            if budget >= costs[0]
        }
        return replace(self, thresholds=tuple(sorted(found | set(self.thresholds))))


@dataclass(frozen=True, kw_only=True)
class ExitMethod(ThresholdMethod):
    """A network with ramps.

    :param ramps: of `dynabert.exits.Ramp`, one for each layer of the Subnet but the last.
    :param subnet: the size that has the ramps; the full network, or any other.
    """

    ramps: nn.ModuleList
    subnet: Subnet = Subnet()

    @property
    def last(self) -> Subnet:
        """That size."""
        return self.subnet

    @property
    def exits(self) -> EarlyExit:
        """The network with its ramps, to be run."""
        return EarlyExit(self.elastic.at(self.subnet), self.elastic.family, self.ramps, rule=self.rule)

    @property
    def size(self) -> str:
        """The name of the Subnet; empty for the full network."""
        return "" if self.subnet == Subnet() else self.subnet.name

    def flops_by_exit(self) -> np.ndarray:
        """What a row of 128 tokens costs by the layer that it leaves after, shape (layers,)."""
        slices = self.elastic.slices(self.subnet)
        layers = [encoder_flops(self.elastic.shape, (part,), SEQ_LEN) for part in slices]
        return exit_flops(layers, [cast(Ramp, ramp).flops(SEQ_LEN) for ramp in self.ramps])

    def layers_by_exit(self) -> np.ndarray:
        """One, two, and so on, shape (layers,)."""
        return np.arange(1, len(self.ramps) + 2)

    def n_params(self, point: str) -> int:
        """Of the whole network and all ramps: a device needs them all at any threshold."""
        known(self.name, point, self._thresholds())
        return count_params(self.elastic.at(self.subnet)) + count_params(self.ramps)


@dataclass(frozen=True, kw_only=True)
class CascadeMethod(ThresholdMethod):
    """Sizes of one network, of which each is asked about the rows that those before it were not sure of.

    :param sizes: two or more, of growing cost, see `dynabert.cascade.Cascade`.
    """

    sizes: tuple[Subnet, ...]

    @property
    def last(self) -> Subnet:
        """The largest of its sizes."""
        return self.sizes[-1]

    @cached_property
    def exits(self) -> Cascade:
        """The cascade, to be run."""
        return Cascade(self.elastic, self.sizes, rule=self.rule)

    @property
    def size(self) -> str:
        """The names of its sizes."""
        return self.exits.name

    def flops_by_exit(self) -> np.ndarray:
        """What a row of 128 tokens costs by the size that answers it, shape (sizes,)."""
        return self.exits.flops

    def layers_by_exit(self) -> np.ndarray:
        """The layers of that size and of those before it, shape (sizes,)."""
        return self.exits.n_layers

    def n_params(self, point: str) -> int:
        """Of the weights that any of the sizes has."""
        known(self.name, point, self._thresholds())
        return count_params(self.elastic.at(_together([self.elastic.slices(size) for size in self.sizes])))


def _together(sizes: Sequence[tuple[LayerSlice, ...]]) -> Subnet:
    """The smallest Subnet that holds several; sizes of one layer are nested."""
    widest: dict[int, LayerSlice] = {}
    for part in (part for size in sizes for part in size):
        one = widest.setdefault(part.layer, part)
        widest[part.layer] = LayerSlice(part.layer, max(one.n_heads, part.n_heads), max(one.n_neurons, part.n_neurons))
    return Subnet.of_layers(*(widest[layer] for layer in sorted(widest)))
