"""Which heads, neurons and layers are kept: pure arithmetic, no torch.

A `Subnet` is a value that you pass, never a switch that you set. `Subnet.slices(shape)` turns it into one `LayerSlice`
for each kept layer, and everything downstream (views, extraction, parameter and FLOP counts) works on those slices, so
uniform and per-layer choices are one code path.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from dynabert.errors import SettingError, one_of

NEURON_STEP = 16
"""Free choices of neurons are multiples of this: fast, and exact across matrix kernels."""

DepthRule = Literal["paper", "text", "prefix"]


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of one encoder. All are counts; `hidden` and `head_dim` are features."""

    n_layers: int
    n_heads: int
    head_dim: int
    hidden: int
    n_neurons: int
    feed_forward: Literal["plain", "gated"] = "plain"


@dataclass(frozen=True, order=True)
class LayerSlice:
    """What a Subnet keeps of one layer (counted from 0): its leftmost heads and neurons."""

    layer: int
    n_heads: int
    n_neurons: int


def _paper_rule(depth: float, n_layers: int) -> tuple[int, ...]:
    n_kept = max(1, round(depth * n_layers))
    return tuple(min(math.floor(i / depth), n_layers - 1) for i in range(n_kept))


def _text_rule(depth: float, n_layers: int) -> tuple[int, ...]:
    return (*(layer - 1 for layer in _paper_rule(depth, n_layers)[1:]), n_layers - 1)


def _prefix_rule(depth: float, n_layers: int) -> tuple[int, ...]:
    return tuple(range(max(1, round(depth * n_layers))))


DEPTH_RULES: dict[str, Callable[[float, int], tuple[int, ...]]] = {
    "paper": _paper_rule,
    "text": _text_rule,
    "prefix": _prefix_rule,
}
"""How a depth becomes layers. `paper`: the published code, floor(i / depth) for round(depth * L) layers. `text`: the
wording of the paper, which keeps the last layer (of 12 layers, 0.75 drops the 3rd, 7th, 11th). `prefix`: the first."""


def kept_layers(depth: float, n_layers: int, rule: DepthRule = "paper") -> tuple[int, ...]:
    """Indices (from 0) of the layers that a depth multiplier keeps.

    :param depth: m_d, in (0, 1].
    :param n_layers: layers of the full encoder.
    :param rule: a name in `DEPTH_RULES`.
    :return: ascending, distinct indices; all of them at depth 1.
    :raises SettingError: an unknown rule, or a depth outside (0, 1].

    Source: DynaBERT section 2.3 and its published code. With 12 layers, 0.75 keeps 0-2, 4-6 and 8-10.
    """
    _check_multiplier("depth", depth)
    if rule not in DEPTH_RULES:
        raise SettingError(one_of("depth rule", rule, DEPTH_RULES))
    return DEPTH_RULES[rule](depth, n_layers)


def matched_states(kept: tuple[int, ...], n_layers: int, rule: DepthRule = "paper") -> tuple[int, ...]:
    """For each hidden state of a Subnet after the embeddings, the teacher's hidden state that it learns from.

    The *input* of every kept layer is matched with the teacher's input of the same layer, by the rule `text` its
    *output* with that layer's output; and the Subnet's final output with the teacher's. Hidden state 0 is the embedding
    output; state l is the output of layer l (from 1).

    :param kept: indices (from 0) of the layers the Subnet executes.
    :param n_layers: layers of the teacher.
    :param rule: by which they were kept, a name in `DEPTH_RULES`.
    :return: as many teacher states as layers are kept; position j belongs to the Subnet's state j + 1.

    Source: DynaBERT's published code; with 12 layers and depth 0.5: 2, 4, 6, 8, 10, 12. By the rule `text` the states
    are the same ones, and other layers learn them.
    """
    before_last = (layer + 1 for layer in kept[:-1]) if rule == "text" else kept[1:]
    return (*before_last, n_layers)


@dataclass(frozen=True)
class Subnet:
    """One size of the network: a point (width, depth) of the grid, or a finer choice.

    `Subnet(0.5, 0.75)` keeps half the heads with their share of the neurons. `Subnet(heads=1, neurons=0.5, depth=0.75)`
    chooses heads and neurons apart. `Subnet.of_layers(...)` chooses for each layer.

    Heads kept are ``max(1, round(width * H))`` (Python's round: a half goes to the even number) and neurons follow in
    whole-head steps, ``n_heads * n_neurons / H``; neurons chosen apart are a multiple of 16.

    :raises SettingError: a multiplier outside (0, 1], or a mixture of the three forms.
    """

    width: float | None = None
    depth: float = 1.0
    heads: float | None = None
    neurons: float | None = None
    layers: tuple[LayerSlice, ...] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:
            self._check_layers()
            return
        if (self.heads is None) != (self.neurons is None):
            raise SettingError("give heads and neurons together, for instance Subnet(heads=1, neurons=0.5)")
        if self.heads is None and self.width is None:
            object.__setattr__(self, "width", 1.0)
        if self.width is not None and self.heads is not None:
            raise SettingError("give width, or heads and neurons, not both")
        for name in ("width", "depth", "heads", "neurons"):
            value = getattr(self, name)
            if value is not None:
                _check_multiplier(name, value)
                object.__setattr__(self, name, float(value))

    def _check_layers(self) -> None:
        if self.width is not None or self.heads is not None or self.neurons is not None or self.depth != 1.0:
            raise SettingError("a Subnet of layers takes no width, depth, heads or neurons")
        indices = [part.layer for part in self.layers or ()]
        if not indices or sorted(set(indices)) != indices:
            raise SettingError(f"layers {indices} must be ascending, distinct and at least one")
        for part in self.layers or ():
            if part.layer < 0 or part.n_heads < 1 or part.n_neurons < 1:
                raise SettingError(f"{part} must keep a layer >= 0, at least 1 head and at least 1 neuron")

    @classmethod
    def of_layers(cls, *slices: LayerSlice) -> "Subnet":
        """A Subnet that says for each kept layer how many heads and neurons it has."""
        return cls(layers=tuple(slices))

    @classmethod
    def parse(cls, name: str) -> "Subnet":
        """The Subnet of a name such as ``w0.5-d0.75``, ``h1-n0.5-d0.75`` or ``l0h12n3072_l2h6n1536``.

        :raises SettingError: not such a name.
        """
        if re.fullmatch(r"l\d+h\d+n\d+(_l\d+h\d+n\d+)*", name):
            parts = (tuple(map(int, re.findall(r"\d+", part))) for part in name.split("_"))
            return cls.of_layers(*(LayerSlice(*part) for part in parts))
        number = r"(\d*\.?\d+(?:e-?\d+)?)"
        if match := re.fullmatch(rf"w{number}-d{number}", name):
            return cls(float(match[1]), float(match[2]))
        if match := re.fullmatch(rf"h{number}-n{number}-d{number}", name):
            return cls(heads=float(match[1]), neurons=float(match[2]), depth=float(match[3]))
        raise SettingError(f"{name!r} is not the name of a Subnet; write it like w0.5-d0.75 or h1-n0.5-d0.75")

    @property
    def name(self) -> str:
        """The shortest exact name, used in files, tables and on the command line."""
        if self.layers is not None:
            return "_".join(f"l{part.layer}h{part.n_heads}n{part.n_neurons}" for part in self.layers)
        sizes = [("w", self.width), ("h", self.heads), ("n", self.neurons), ("d", self.depth)]
        return "-".join(f"{letter}{_short(value)}" for letter, value in sizes if value is not None)

    def slices(self, shape: EncoderShape, rule: DepthRule = "paper") -> tuple[LayerSlice, ...]:
        """What this Subnet keeps of an encoder.

        :param shape: the full encoder.
        :param rule: how a depth becomes layers, see `DEPTH_RULES`.
        :return: one slice for each kept layer, in the order of execution.
        :raises SettingError: a Subnet of layers that the encoder does not have.
        """
        if self.layers is not None:
            for part in self.layers:
                fits = part.layer < shape.n_layers and part.n_heads <= shape.n_heads
                if not (fits and part.n_neurons <= shape.n_neurons):
                    raise SettingError(
                        f"{part} does not fit an encoder of {shape.n_layers} layers, "
                        f"{shape.n_heads} heads and {shape.n_neurons} neurons"
                    )
            return self.layers
        n_heads, n_neurons = self.counts(shape)
        return tuple(LayerSlice(layer, n_heads, n_neurons) for layer in kept_layers(self.depth, shape.n_layers, rule))

    def counts(self, shape: EncoderShape) -> tuple[int, int]:
        """Heads and neurons kept in every layer, of a Subnet that is the same in all layers.

        Source: DynaBERT section 2.1; paper's published code for the rounding.
        """
        if self.width is not None:
            n_heads = max(1, round(self.width * shape.n_heads))
            return n_heads, n_heads * shape.n_neurons // shape.n_heads
        assert self.heads is not None and self.neurons is not None, "per-layer Subnets have no common counts"
        n_heads = max(1, round(self.heads * shape.n_heads))
        if self.neurons == 1.0:
            return n_heads, shape.n_neurons
        steps = max(1, round(self.neurons * shape.n_neurons / NEURON_STEP))
        return n_heads, min(steps * NEURON_STEP, shape.n_neurons)

    def at_full_depth(self) -> "Subnet":
        """The same width with every layer: the teacher assistant of this Subnet (DynaBERT, Algorithm 3).

        :raises SettingError: a Subnet of layers has no such teacher.
        """
        if self.layers is not None:
            raise SettingError(
                f"{self.name} is chosen per layer: it has no full-depth teacher; use teacher_width='full'"
            )
        return Subnet(self.width, 1.0, self.heads, self.neurons)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class SubnetGrid:
    """The set of Subnets that is trained: every width with every depth, largest first, widths outermost.

    :raises SettingError: an empty axis, a value outside (0, 1], or a value given twice.
    """

    widths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    depths: tuple[float, ...] = (1.0, 0.75, 0.5)

    def __post_init__(self) -> None:
        for axis in ("widths", "depths"):
            values = tuple(getattr(self, axis))
            if not values:
                raise SettingError(f"{axis} is empty; give at least one value in (0, 1], for instance 1")
            for value in values:
                _check_multiplier(axis.removesuffix("s"), value)
            if len(set(values)) < len(values):
                raise SettingError(f"{axis} {values} names a value twice; give each once")
            object.__setattr__(self, axis, tuple(sorted((float(value) for value in values), reverse=True)))

    def check(self, shape: EncoderShape, rule: DepthRule = "paper") -> None:
        """Refuse a grid in which two Subnets of this encoder would be the same network.

        :raises SettingError: two widths with the same heads, or two depths with the same layers.
        """
        heads: dict[int, float] = {}
        for width in self.widths:
            n_heads, _ = Subnet(width).counts(shape)
            if n_heads in heads:
                raise SettingError(
                    f"widths {heads[n_heads]:g} and {width:g} both keep {n_heads} of {shape.n_heads} heads; drop one"
                )
            heads[n_heads] = width
        layers: dict[tuple[int, ...], float] = {}
        for depth in self.depths:
            kept = kept_layers(depth, shape.n_layers, rule)
            if kept in layers:
                raise SettingError(
                    f"depths {layers[kept]:g} and {depth:g} both keep {len(kept)} of {shape.n_layers} layers; drop one"
                )
            layers[kept] = depth

    def __iter__(self) -> Iterator[Subnet]:
        return (Subnet(width, depth) for width in self.widths for depth in self.depths)

    def __len__(self) -> int:
        return len(self.widths) * len(self.depths)

    @property
    def largest(self) -> Subnet:
        """The widest and deepest Subnet of the grid."""
        return Subnet(self.widths[0], self.depths[0])

    @property
    def smallest(self) -> Subnet:
        """The narrowest and shallowest Subnet of the grid."""
        return Subnet(self.widths[-1], self.depths[-1])

    def at_full_depth(self) -> "SubnetGrid":
        """The widths alone, each with every layer: what the first stage of the method trains."""
        return SubnetGrid(self.widths, (1.0,))


def encoder_flops(shape: EncoderShape, slices: tuple[LayerSlice, ...], seq_len: int = 128) -> int:
    """Floating-point operations of one forward pass over one sequence.

    Two for each multiply-add of query, key, value, attention output, feed-forward, and the two attention products. No
    biases, embeddings, norms, pooler or task head.

    :param shape: the full encoder.
    :param slices: what is kept of it.
    :param seq_len: tokens in the sequence.
    :return: operations, exact.
    """
    feed_forward_matrices = 3 if shape.feed_forward == "gated" else 2
    total = 0
    for part in slices:
        attended = part.n_heads * shape.head_dim
        projections = 4 * shape.hidden * attended + feed_forward_matrices * shape.hidden * part.n_neurons
        total += 2 * seq_len * (projections + 2 * seq_len * attended)
    return total


def _check_multiplier(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise SettingError(f"{name} {value!r} is outside (0, 1]; 1 keeps everything, 0.5 keeps half")


def _short(value: float) -> str:
    text = repr(float(value))
    return text.removesuffix(".0")
