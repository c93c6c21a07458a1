"""The Subnets that a search may try: which layers, and for each of them how many heads and neurons, within a budget.

Pure arithmetic. A `Choice` says what is wanted of each layer; only its proportions count: `Space.fitted` makes every
choice as large as the budget allows, so that no candidate breaks it and none leaves much of it unused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dynabert.errors import SettingError
from dynabert.subnet import NEURON_STEP, EncoderShape, LayerSlice, Subnet

MAX_LEVELS = 32
"""Numbers of neurons of a layer that a search tells apart: finer steps make it slower and not better."""

EXCHANGE_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""What the importance of a head is taken to be worth in that of neurons: the two come from different gradients."""

Slices = tuple[LayerSlice, ...]


@dataclass(frozen=True)
class Price:
    """What a Subnet costs, made of what its parts cost: exact for FLOPs and for parameters.

    :param base: of a network without layers.
    :param layer: of each layer, however narrow.
    :param head: of each head.
    :param neuron: of each neuron.
    """

    base: float
    layer: float
    head: float
    neuron: float

    @classmethod
    def of(cls, cost: Callable[[Slices], float], shape: EncoderShape) -> "Price":
        """Find the prices by asking what some small Subnets cost.

        :param cost: of slices; linear in layers, heads and neurons.
        """

        def ask(n_layers: int, n_heads: int, n_neurons: int) -> float:
            return cost(tuple(LayerSlice(layer, n_heads, n_neurons) for layer in range(n_layers)))

        smallest = ask(1, 1, 1)
        neuron = ask(1, 1, 2) - smallest if shape.n_neurons > 1 else 0.0
        head = ask(1, 2, 1) - smallest if shape.n_heads > 1 else 0.0
        both = ask(2, 1, 1) - smallest if shape.n_layers > 1 else smallest
        return cls(smallest - both, both - head - neuron, head, neuron)

    def __call__(self, slices: Slices) -> float:
        """The cost of a Subnet."""
        n_heads, n_neurons = sum(part.n_heads for part in slices), sum(part.n_neurons for part in slices)
        return self.base + len(slices) * self.layer + n_heads * self.head + n_neurons * self.neuron


@dataclass(frozen=True)
class Choice:
    """What is wanted of the layers, before it is fitted to a budget.

    :param pattern: place of the kept layers in `Space.patterns`.
    :param heads: wanted of every layer of the full encoder, also of those that the pattern leaves out.
    :param levels: of neurons, likewise, in `Space.step`.
    """

    pattern: int
    heads: tuple[int, ...]
    levels: tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """Everything that fits a budget.

    :param shape: of the full encoder.
    :param patterns: the layers that may be kept together.
    :param price: what a Subnet costs.
    :param budget: what it may cost.
    :raises SettingError: a budget that not even the smallest Subnet fits.
    """

    shape: EncoderShape
    patterns: tuple[tuple[int, ...], ...]
    price: Price
    budget: float

    def __post_init__(self) -> None:
        fitting = tuple(layers for layers in self.patterns if self._cost_of_smallest(layers) <= self.budget)
        if not fitting:
            least = min(self._cost_of_smallest(layers) for layers in self.patterns)
            raise SettingError(
                f"a budget of {self.budget:.4g} is too small: the smallest Subnet costs {least:.4g}; raise it"
            )
        object.__setattr__(self, "patterns", fitting)

    @property
    def step(self) -> int:
        """Neurons of one level: a multiple of 16."""
        levels = -(-self.shape.n_neurons // NEURON_STEP)
        return NEURON_STEP * -(-levels // MAX_LEVELS)

    @property
    def n_levels(self) -> int:
        """Levels of neurons of a layer; the highest is all of them."""
        return -(-self.shape.n_neurons // self.step)

    def _cost_of_smallest(self, layers: tuple[int, ...]) -> float:
        return self._cost(layers, np.ones(len(layers), int), np.ones(len(layers), int))

    def _cost(self, layers: tuple[int, ...], heads: np.ndarray, levels: np.ndarray) -> float:
        return self.price(self._slices(layers, heads, levels))

    def _slices(self, layers: tuple[int, ...], heads: np.ndarray, levels: np.ndarray) -> Slices:
        neurons = np.minimum(levels * self.step, self.shape.n_neurons)
        return tuple(LayerSlice(*map(int, part)) for part in zip(layers, heads, neurons, strict=True))

    def fitted(self, choice: Choice) -> Subnet:
        """The largest Subnet of a choice's proportions within the budget.

        All wishes are multiplied by the largest factor that fits. What is left then buys neurons, one level at a time,
        for the layer that is furthest below its wish.
        """
        layers = self.patterns[choice.pattern]
        heads, levels = (np.array(wish, float)[list(layers)] for wish in (choice.heads, choice.levels))
        low, high = 0.0, float(max(self.shape.n_heads, self.n_levels))
        for _ in range(40):
            middle = (low + high) / 2
            fits = self._cost(layers, *self._scaled(heads, levels, middle)) <= self.budget
            low, high = (middle, high) if fits else (low, middle)
        kept_heads, kept_levels = self._scaled(heads, levels, low)
        kept_levels = self._filled(layers, kept_heads, kept_levels, levels)
        return Subnet.of_layers(*self._slices(layers, kept_heads, kept_levels))

    def _scaled(self, heads: np.ndarray, levels: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
        return (
            np.clip(np.rint(heads * factor), 1, self.shape.n_heads).astype(int),
            np.clip(np.rint(levels * factor), 1, self.n_levels).astype(int),
        )

    def _filled(self, layers: tuple[int, ...], heads: np.ndarray, levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        levels = levels.copy()
        left = self.budget - self._cost(layers, heads, levels)
        while left >= self.step * self.price.neuron and (levels < self.n_levels).any():
            share = np.where(levels < self.n_levels, levels / wanted, np.inf)
            levels[int(share.argmin())] += 1
            left = self.budget - self._cost(layers, heads, levels)
        return levels

    def choice_of(self, slices: Slices) -> Choice | None:
        """The wish that is exactly some slices, of the grid for instance; None where the layers are not a pattern."""
        layers = tuple(part.layer for part in slices)
        if layers not in self.patterns:
            return None
        heads, levels = np.ones(self.shape.n_layers, int), np.ones(self.shape.n_layers, int)
        for part in slices:
            heads[part.layer], levels[part.layer] = part.n_heads, max(1, round(part.n_neurons / self.step))
        return Choice(self.patterns.index(layers), _ints(heads), _ints(levels))

    def even_choices(self) -> Iterator[Choice]:
        """Heads against neurons, alike in all layers: any number of heads, and the neurons that the budget leaves."""
        for pattern, layers in enumerate(self.patterns):
            for n_heads in range(1, self.shape.n_heads + 1):
                heads = np.full(len(layers), n_heads)
                each = (self.budget - self._cost(layers, heads, np.zeros(len(layers), int))) / len(layers)
                level = int(each / (self.step * self.price.neuron))
                if level >= 1:
                    yield self._even(pattern, n_heads, min(level, self.n_levels))

    def _even(self, pattern: int, n_heads: int, level: int) -> Choice:
        n_layers = self.shape.n_layers
        return Choice(pattern, (n_heads,) * n_layers, (level,) * n_layers)

    def guided_choices(self, heads: np.ndarray, neurons: np.ndarray) -> Iterator[Choice]:
        """Seeds by importance: the budget goes to the units with the highest score for their price.

        :param heads: scores in the order in which the heads stand, shape (layers, heads).
        :param neurons: likewise, shape (layers, neurons).
        :return: for every pattern and exchange rate, with the scores as they are, and as shares of their layer's.
        """
        for scale in (_overall, _by_layer):
            by_head, by_level = scale(heads), scale(self._by_level(neurons))
            for rate in EXCHANGE_RATES:
                for pattern in range(len(self.patterns)):
                    yield self._greedy(pattern, by_head * rate, by_level)

    def _by_level(self, neurons: np.ndarray) -> np.ndarray:
        return np.add.reduceat(neurons, np.arange(0, self.shape.n_neurons, self.step), axis=1)

    def _greedy(self, pattern: int, by_head: np.ndarray, by_level: np.ndarray) -> Choice:
        layers = list(self.patterns[pattern])
        worth = [by_head / self.price.head if self.price.head else by_head, by_level / (self.step * self.price.neuron)]
        kept = [np.ones(self.shape.n_layers, int), np.ones(self.shape.n_layers, int)]
        prices = (self.price.head, self.step * self.price.neuron)
        left = self.budget - self._cost_of_smallest(tuple(layers))
        units = [
            (-float(scores[layer, place]), kind, layer, place)
            for kind, scores in enumerate(worth)
            for layer in layers
            for place in range(1, scores.shape[1])
        ]
        for _, kind, layer, _place in sorted(units):
            if prices[kind] <= left:
                kept[kind][layer] += 1
                left -= prices[kind]
        return Choice(pattern, _ints(kept[0]), _ints(kept[1]))


def _overall(scores: np.ndarray) -> np.ndarray:
    return scores / max(scores.sum(), 1e-30)


def _by_layer(scores: np.ndarray) -> np.ndarray:
    return scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-30) / len(scores)


def _ints(values: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
