"""Plain values that a measurement is made of: how, where, how good, at what cost. No torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dynabert.errors import SettingError, one_of

ENGINE_DTYPES: Mapping[str, tuple[str, ...]] = {
    "torch": ("fp32", "bf16"),
    "torch-compile": ("fp32", "bf16"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32", "int8", "int8-static"),
}
"""What can run a model (`dynabert.engines`), and the types of its products."""


@dataclass(frozen=True)
class LatencySettings:
    """How latency is measured: every batch size at every length.

    :param batch: sequences in one call; the first is the one that counts where one is needed.
    :param seq: tokens of each, no padding; FLOPs are counted at the first length too. No number stands twice.
    :param repeats: timed calls, of which the median counts.
    :param dtype: of the products, see `ENGINE_DTYPES`.
    :param engine: what runs the model.
    :param n_threads: of a call; None leaves it at what PyTorch is set to.
    """

    batch: tuple[int, ...] = (1,)
    seq: tuple[int, ...] = (128,)
    repeats: int = 20
    dtype: str = "fp32"
    engine: str = "torch"
    n_threads: int | None = None

    def __post_init__(self) -> None:
        counts = (*self.batch, *self.seq, self.repeats, 1 if self.n_threads is None else self.n_threads)
        if not self.batch or not self.seq or min(counts) < 1:
            raise SettingError(
                f"batch {listed(self.batch)}, seq {listed(self.seq)}, repeats {self.repeats} and threads "
                f"{'as they are' if self.n_threads is None else self.n_threads} must be 1 or more"
            )
        for name, numbers in (("batch", self.batch), ("seq", self.seq)):
            if len(set(numbers)) < len(numbers):
                raise SettingError(f"{name} {listed(numbers)} has a number twice; give each once")
        if self.engine not in ENGINE_DTYPES:
            raise SettingError(one_of("engine", self.engine, ENGINE_DTYPES))
        if self.dtype not in ENGINE_DTYPES[self.engine]:
            raise SettingError(one_of(f"dtype of {self.engine}", self.dtype, ENGINE_DTYPES[self.engine]))

    @property
    def is_int8(self) -> bool:
        """Whether weights are quantised, by ranges of activations that are found before or while it runs."""
        return self.dtype.startswith("int8")

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """All (batch, seq), the one that counts first."""
        return tuple((batch, seq) for batch in self.batch for seq in self.seq)

    def with_shape(self, batch: int, seq: int) -> "LatencySettings":
        """With one more batch size and length, after those that it has."""
        batches, lengths = dict.fromkeys((*self.batch, batch)), dict.fromkeys((*self.seq, seq))
        return replace(self, batch=tuple(batches), seq=tuple(lengths))

    @property
    def options(self) -> str:
        """What `dynabert measure` needs to be told to measure so: as text, empty for the usual settings."""
        named = {"n_threads": "threads"}
        told = []
        for field in fields(self):
            if (value := getattr(self, field.name)) != field.default:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                told.append(f"--{named.get(field.name, field.name)} {text}")
        return " ".join(told)


def options_of(latency: LatencySettings | None) -> str:
    """The same, where latency may be left out."""
    return "--no-latency" if latency is None else latency.options


def listed(numbers: tuple[int, ...]) -> str:
    """Numbers for a message."""
    return ", ".join(map(str, numbers)) or "(none)"


@dataclass(frozen=True)
class Machine:
    """Where it was measured. `device` is ``cpu`` or the name of the GPU; torch, transformers and dynabert are versions.

    :param n_cores: processors that the process could run on; None where that is not known.
    :param engine: name and version of what ran the model, where that was not PyTorch alone.
    :param instructions: of the processor that decide how fast it multiplies, as ``AVX512 vnni bf16 amx``: rented
        machines have processors of one name with and without them. None where that is not known.
    """

    cpu: str
    device: str
    n_threads: int
    torch: str
    transformers: str
    dynabert: str
    n_cores: int | None = None
    engine: str = ""
    instructions: str | None = None

    def differences(self, other: "Machine") -> tuple[str, ...]:
        """In what it differs from another one; dynabert's own version and what is unknown do not count."""
        own, its = asdict(self), asdict(other)
        return tuple(
            f"{name} {own[name]} there, {its[name]} here"
            for name in own
            if name != "dynabert" and None not in (own[name], its[name]) and own[name] != its[name]
        )


CORRELATION = "pearson"
"""The main metric of regressions."""


@dataclass(frozen=True)
class Agreement:
    """How `Quality.agreement` is written: as a share of the rows, or of a regression as a correlation."""

    is_correlation: bool

    @property
    def name(self) -> str:
        """What a column of it is called."""
        return "correlation" if self.is_correlation else "agreement"

    def text(self, value: float, unit: str = " %") -> str:
        """A value.

        :param unit: after a share.
        """
        return f"{value:.3f}" if self.is_correlation else f"{100 * value:.1f}{unit}"


@dataclass(frozen=True)
class Context:
    """What all rows of a Sweep have in common.

    :param task: its name.
    :param metric: the main metric.
    :param n_rows: rows that were predicted.
    :param reference: main metric of the network that the rows are compared with: the teacher, or the full network.
    :param precision: of the matrix products in the predictions, ``fp32``, ``bf16`` or ``int8``.
    :param latency: settings; None where it was not measured.
    :param date: ISO 8601, UTC.
    :param fingerprint: of what was measured (weights, layers of each Subnet, rows), or as the caller said.
    :param seq_len: tokens at which FLOPs are counted, whatever the shape of the latency that is looked at.
    """

    task: str
    metric: str
    n_rows: int
    reference: float
    precision: str
    latency: LatencySettings | None
    machine: Machine
    date: str
    fingerprint: str
    seq_len: int = 128

    @property
    def agreement(self) -> Agreement:
        """How the agreement of its rows is written."""
        return Agreement(is_correlation=self.metric == CORRELATION)

    def differences(self, other: "Context") -> tuple[str, ...]:
        """In what it differs from another one, so that rows of both are not to be compared.

        The date does not count, nor does the fingerprint, which depends on the Subnets.
        """
        names = ("task", "metric", "n_rows", "precision", "seq_len")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        if not math.isclose(self.reference, other.reference, abs_tol=1e-4):  # it may differ in the last bits
            pairs.append(("reference", self.reference, other.reference))
        own, its = (_threads_aside(context.latency) for context in (self, other))
        pairs.append(("latency", options_of(own) or "as usual", options_of(its) or "as usual"))
        found = tuple(f"{name} {there} there, {here} here" for name, there, here in pairs if there != here)
        return (*found, *self.machine.differences(other.machine))


def _threads_aside(latency: LatencySettings | None) -> LatencySettings | None:
    """Without the threads that were asked for: `Machine` has those that there were."""
    return None if latency is None else replace(latency, n_threads=None)


@dataclass(frozen=True)
class Quality:
    """How good the predictions of a Subnet are.

    :param metrics: the main one first; higher is better.
    :param metric_low: end of the 95 % bootstrap interval of the main one, over rows.
    :param metric_high: likewise.
    :param kept: share of the reference's main metric; None where that is not above 0.
    :param agreement: share of the rows with the class that the reference network says; of a regression, Pearson's
        correlation with the scores of the reference network.
    """

    metrics: dict[str, float]
    metric_low: float
    metric_high: float
    kept: float | None
    agreement: float


@dataclass(frozen=True)
class Timing:
    """What one call took.

    :param batch: sequences in it.
    :param seq: tokens of each.
    :param median_ms: of the repeats, in milliseconds.
    :param p95_ms: their 95th percentile.
    :param spread: interquartile range as a share of the median.
    :param energy_mj: of one call, in millijoules, see `dynabert.energy`; None where the machine does not tell.
    """

    batch: int
    seq: int
    median_ms: float
    p95_ms: float
    spread: float
    energy_mj: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a Subnet costs.

    :param n_params: all parameters, embeddings and task head included.
    :param flops: of the encoder for one sequence of `Context.seq_len` tokens, see `dynabert.subnet.encoder_flops`.
    :param latency_ms: median time of one call on `Context.machine`; None where it was not measured.
    :param timings: of every batch size at every length, the one of `latency_ms` first.
    :param file_bytes: of the files that the engine reads; None where nothing was exported.
    :param peak_bytes: most resident memory of a process that has the engine run it at the largest of the shapes, above
        the same process before the model is there.
    """

    n_params: int
    flops: int
    latency_ms: float | None = None
    timings: tuple[Timing, ...] = ()
    file_bytes: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Measurement:
    """One measured Subnet.

    :param subnet: its name; of another method, the name of the operating point.
    :param n_layers: layers that it really executes; with early exits, the mean over the rows.
    :param of_layers: layers of the full network.
    :param loads_with: what can load it once it is extracted.
    """

    subnet: str
    n_layers: float
    of_layers: int
    quality: Quality
    cost: Cost
    loads_with: str

    @property
    def metric(self) -> float:
        """The main metric."""
        return next(iter(self.quality.metrics.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, flat: the fields of quality and cost beside the others."""
        fields = asdict(self)
        quality, cost = fields.pop("quality"), fields.pop("cost")
        return {**fields, **quality, **cost}
