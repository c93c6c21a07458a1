"""What was measured of several Subnets, and the choice of one: plain values and a JSON file. No torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from io import StringIO
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from dynabert.errors import ModelFileError, SettingError, one_of
from dynabert.files import StrPath, read_json, write_json

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1

CostName = Literal["n_params", "flops", "latency_ms"]
COSTS: tuple[CostName, ...] = get_args(CostName)


@dataclass(frozen=True)
class LatencySettings:
    """How latency is measured.

    :param batch: sequences in one call.
    :param seq: tokens of each, no padding; FLOPs are counted at this length too.
    :param repeats: timed calls, of which the median counts.
    :param dtype: of the weights, ``fp32`` or ``bf16``.
    :param engine: what runs the model.
    """

    batch: int = 1
    seq: int = 128
    repeats: int = 20
    dtype: str = "fp32"
    engine: str = "torch"

    def __post_init__(self) -> None:
        if self.batch < 1 or self.seq < 1 or self.repeats < 1:
            raise SettingError(f"batch {self.batch}, seq {self.seq} and repeats {self.repeats} must be 1 or more")
        if self.dtype not in ("fp32", "bf16"):
            raise SettingError(one_of("dtype", self.dtype, ("fp32", "bf16")))
        if self.engine != "torch":
            raise SettingError(one_of("engine", self.engine, ("torch",)))


@dataclass(frozen=True)
class Machine:
    """Where it was measured. `device` is ``cpu`` or the name of the GPU; the last three are versions."""

    cpu: str
    device: str
    n_threads: int
    torch: str
    transformers: str
    dynabert: str


@dataclass(frozen=True)
class Context:
    """What all rows of a Sweep have in common.

    :param task: its name.
    :param metric: the main metric.
    :param n_rows: rows that were predicted.
    :param reference: main metric of the network that the rows are compared with: the teacher, or the full network.
    :param precision: of the matrix products in the predictions, ``fp32`` or ``bf16``.
    :param latency: settings; None where it was not measured.
    :param date: ISO 8601, UTC.
    :param fingerprint: of what was measured (weights, layers of each Subnet, rows), or as the caller said.
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

    @property
    def seq_len(self) -> int:
        """Tokens at which FLOPs are counted: those of the latency, or 128."""
        return 128 if self.latency is None else self.latency.seq


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
class Cost:
    """What a Subnet costs.

    :param n_params: all parameters, embeddings and task head included.
    :param flops: of the encoder for one sequence of `Context.seq_len` tokens, see `dynabert.subnet.encoder_flops`.
    :param latency_ms: median time of one call on `Context.machine`; None where it was not measured.
    """

    n_params: int
    flops: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One measured Subnet.

    :param subnet: its name.
    :param n_layers: layers that it really executes.
    :param of_layers: layers of the full network.
    :param loads_with: what can load it once it is extracted.
    """

    subnet: str
    n_layers: int
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


@dataclass(frozen=True)
class Sweep:
    """Measured Subnets, and what they have in common.

    :raises SettingError: no rows.
    """

    rows: tuple[Measurement, ...]
    context: Context

    def __post_init__(self) -> None:
        if not self.rows:
            raise SettingError("a Sweep needs at least one row; measure at least one Subnet")

    def front(self, cost: CostName = "n_params") -> "Sweep":
        """The rows that nothing dominates, in their order: no other row is better in one and no worse in the other.

        :param cost: what is weighed against the main metric.
        :raises SettingError: an unknown cost, or a latency that was not measured.
        """
        points = [(row, -row.metric, self._cost(row, cost)) for row in self.rows]
        kept = [
            row
            for row, loss, price in points
            if not any(
                other_loss <= loss and other_price <= price and (other_loss, other_price) != (loss, price)
                for _, other_loss, other_price in points
            )
        ]
        return replace(self, rows=tuple(kept))

    def pick(
        self,
        *,
        max_params: float | None = None,
        max_flops: float | None = None,
        max_latency_ms: float | None = None,
        min_metric: float | None = None,
    ) -> Measurement:
        """The best Subnet within some limits: the highest main metric, and the cheapest where several have it.

        With `min_metric` alone it is the cheapest Subnet that reaches it.

        :param max_params: parameters at most.
        :param max_flops: FLOPs at most, at `Context.seq_len` tokens.
        :param max_latency_ms: latency at most, in milliseconds.
        :param min_metric: main metric at least, in its own unit (0.9, not 90).
        :raises SettingError: nothing fits, or a latency that was not measured; the message names the nearest row.
        """
        given = {"n_params": max_params, "flops": max_flops, "latency_ms": max_latency_ms}
        limits = {name: limit for name in COSTS if (limit := given[name]) is not None}
        excesses = [self._excess(row, limits, min_metric) for row in self.rows]
        fitting = [row for row, excess in zip(self.rows, excesses, strict=True) if not excess]
        if not fitting:
            nearest = min(range(len(self.rows)), key=lambda i: sum(excesses[i].values()))
            raise SettingError(self._nothing_fits(self.rows[nearest], excesses[nearest], limits, min_metric))
        by_cost = [name for name in (*limits, *reversed(COSTS)) if name in limits or self._has(name)]

        def rank(row: Measurement) -> tuple[float, ...]:
            prices = tuple(self._cost(row, name) for name in by_cost)
            return prices if min_metric is not None and not limits else (-row.metric, *prices)

        return min(fitting, key=rank)

    def _has(self, cost: CostName) -> bool:
        return all(getattr(row.cost, cost) is not None for row in self.rows)

    def _cost(self, row: Measurement, cost: CostName) -> float:
        if cost not in COSTS:
            raise SettingError(one_of("cost", cost, COSTS))
        if not self._has(cost):
            raise SettingError(f"this Sweep has no {cost}; measure again with latency, or limit n_params or flops")
        return float(getattr(row.cost, cost))

    def _excess(self, row: Measurement, limits: Mapping[CostName, float], min_metric: float | None) -> dict[str, float]:
        """By how much of each limit a row is outside it; empty where it fits."""
        over = {name: self._cost(row, name) - limit for name, limit in limits.items()}
        scale = {name: abs(limit) or 1.0 for name, limit in limits.items()}
        found = {_LIMITS[name]: over[name] / scale[name] for name in limits if not over[name] <= 0}
        if min_metric is not None and not row.metric >= min_metric:
            found["min_metric"] = (min_metric - row.metric) / (abs(min_metric) or 1.0)
        return found

    def _nothing_fits(
        self,
        nearest: Measurement,
        excess: Mapping[str, float],
        limits: Mapping[CostName, float],
        min_metric: float | None,
    ) -> str:
        asked = {_LIMITS[name]: limit for name, limit in limits.items()}
        has = {_LIMITS[name]: self._cost(nearest, name) for name in limits}
        if min_metric is not None:
            asked["min_metric"], has["min_metric"] = min_metric, nearest.metric
        wanted = " and ".join(f"{name} {_plain(limit)}" for name, limit in asked.items())
        relaxed = " and ".join(f"{name} to {_rounded(name, has[name])}" for name in excess)
        return f"no Subnet fits {wanted}; the nearest is {nearest.subnet}: set {relaxed} for it"

    def to_json(self, path: StrPath) -> None:
        """Write to a JSON file, atomically.

        :raises StorageError: disk full, no permission, or an I/O error.
        """
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds: plain values, rows flat."""
        rows = [row.to_dict() for row in self.rows]
        return {"format_version": FORMAT_VERSION, "context": asdict(self.context), "rows": rows}

    @classmethod
    def from_json(cls, path: StrPath) -> "Sweep":
        """Read what `to_json` wrote.

        :raises ModelFileError: a file that is missing, damaged, of a later version, or something else.
        """
        return cls.from_dict(read_json(path), path)

    @classmethod
    def from_dict(cls, saved: Any, path: StrPath) -> "Sweep":  # noqa: ANN401 (whatever a file holds)
        """Read what `to_dict` gave.

        :param path: the file that holds it, for the message.
        :raises ModelFileError: damaged, of a later version, or something else.
        """
        version = saved.get("format_version") if isinstance(saved, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ModelFileError(f"{path} has format {version}, newer than {FORMAT_VERSION}: update dynabert")
        try:
            _check_keys(saved, {"format_version", "context", "rows"}, "the file")
            if version != FORMAT_VERSION or not isinstance(saved["rows"], list):
                raise TypeError("no format_version and list of rows")
            context = Context(**_fields(_hints(Context), saved["context"], "context"))
            rows = tuple(_parse_row(row, i) for i, row in enumerate(saved["rows"]))
            if any(next(iter(row.quality.metrics), None) != context.metric for row in rows):
                raise TypeError(f"a row whose main metric is not {context.metric}")
            return cls(rows, context)
        except (TypeError, SettingError) as error:
            raise ModelFileError(f"{path} is not a Sweep ({error}); measure again") from error

    def to_table(self) -> "Table":
        """The rows as a table of rich, metrics as fractions."""
        from rich import box
        from rich.table import Table

        context, latency, machine = self.context, self.context.latency, self.context.machine
        title = f"{context.task}: {context.metric} on {context.n_rows} rows, reference {context.reference:.4f}"
        caption = f"FLOPs at {context.seq_len} tokens; {machine.cpu}, torch {machine.torch}"
        if latency is not None:
            caption += f"; latency: {latency.engine} {latency.dtype}, {latency.batch} x {latency.seq} tokens"
            caption += f", {machine.n_threads} threads, median of {latency.repeats}"
        table = Table(title=title, caption=caption, box=box.SIMPLE)
        table.add_column("Subnet")
        headers = ("layers", context.metric, "95 %", "kept %", "agreement %", "params M", "GFLOPs", "latency ms")
        for header in headers:
            table.add_column(header, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*_cells(row))
        return table

    def table(self) -> str:
        """The rows as lines of plain text."""
        return plain_text(self.to_table())


def plain_text(table: "Table") -> str:
    """A table as lines of plain text, 120 columns wide."""
    from rich.console import Console

    console = Console(file=StringIO(), width=120, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


_LIMITS: dict[CostName, str] = {"n_params": "max_params", "flops": "max_flops", "latency_ms": "max_latency_ms"}


def _plain(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def _rounded(limit: str, value: float) -> str:
    """A value rounded to where the row that has it still fits: a cost up, a metric down."""
    if float(value).is_integer():
        return f"{value:.0f}"
    toward = math.floor if limit == "min_metric" else math.ceil
    return f"{toward(value * 1e4) / 1e4:.4f}"


def _cells(row: Measurement) -> tuple[str, ...]:
    quality, cost = row.quality, row.cost
    return (
        row.subnet,
        f"{row.n_layers}/{row.of_layers}",
        f"{row.metric:.4f}",
        f"{quality.metric_low:.3f} to {quality.metric_high:.3f}",
        "-" if quality.kept is None else f"{100 * quality.kept:.1f}",
        f"{100 * quality.agreement:.1f}",
        f"{cost.n_params / 1e6:.1f}",
        f"{cost.flops / 1e9:.2f}",
        "-" if cost.latency_ms is None else f"{cost.latency_ms:.2f}",
    )


def _parse_row(saved: Any, place: int) -> Measurement:  # noqa: ANN401 (whatever the file holds)
    """A row of the file: the fields of `Measurement` with those of its two groups in their stead."""
    kinds = {**_hints(Measurement), **_hints(Quality), **_hints(Cost)}
    del kinds["quality"], kinds["cost"]
    values = _fields(kinds, saved, f"row {place}")
    quality = Quality(**{name: values.pop(name) for name in _hints(Quality)})
    cost = Cost(**{name: values.pop(name) for name in _hints(Cost)})
    return Measurement(**values, quality=quality, cost=cost)


def _fields(kinds: Mapping[str, Any], saved: Any, what: str) -> dict[str, Any]:  # noqa: ANN401 (whatever the file holds)
    """The values of a dictionary, which has exactly these names, each of exactly its type."""
    _check_keys(saved, set(kinds), what)
    return {name: _value(saved[name], kind, f"{what}: {name}") for name, kind in kinds.items()}


def _value(saved: Any, kind: Any, what: str) -> Any:  # noqa: ANN401 (a value of `kind`)
    if get_origin(kind) is UnionType:
        if saved is None:
            return None
        kind = get_args(kind)[0]
    if hasattr(kind, "__dataclass_fields__"):
        return kind(**_fields(_hints(kind), saved, what))
    if get_origin(kind) is dict:
        if not isinstance(saved, dict) or not saved:
            raise TypeError(f"{what} is not a table of numbers")
        return {name: _value(number, float, what) for name, number in saved.items()}
    if kind is float and type(saved) is int:
        saved = float(saved)
    if type(saved) is not kind or (kind is float and not math.isfinite(saved)):
        raise TypeError(f"{what} is not of type {kind.__name__}")
    return saved


def _check_keys(saved: Any, names: set[str], what: str) -> None:  # noqa: ANN401 (whatever the file holds)
    if not isinstance(saved, dict):
        raise TypeError(f"{what} is not a table")
    if different := sorted(names ^ set(saved)):
        raise TypeError(f"{what} lacks or should not have {', '.join(different)}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)
