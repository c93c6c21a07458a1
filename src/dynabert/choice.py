"""The choice of one measured Subnet: what nothing dominates, and the best within a budget. Plain values, no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

from dynabert.errors import SettingError, one_of
from dynabert.measurement import Measurement

CostName = Literal["n_params", "flops", "latency_ms", "file_bytes", "peak_bytes"]
COSTS: tuple[CostName, ...] = get_args(CostName)

LOADS: Mapping[str, tuple[str, ...]] = {
    "transformers": ("transformers",),
    "dynabert": (),
    "onnx": (),
    "openvino": (),
}
"""What a size may be asked to load with, and which `Measurement.loads_with` that allows; none named allows all."""

_BY_WEIGHT: tuple[CostName, ...] = ("latency_ms", "flops", "n_params", "file_bytes", "peak_bytes")
_LIMITS: Mapping[CostName, str] = {
    "n_params": "max_params",
    "flops": "max_flops",
    "latency_ms": "max_latency_ms",
    "file_bytes": "max_file_mb",
    "peak_bytes": "max_memory_mb",
}


_UNITS: Mapping[CostName, float] = {"file_bytes": 1e6, "peak_bytes": 1e6}
"""Of limits, in the unit of the cost, where that is another one."""


@dataclass(frozen=True)
class Budget:
    """What a Subnet may cost and must do; None leaves a side open.

    :param max_params: parameters at most.
    :param max_flops: FLOPs at most, at `dynabert.sweep.Context.seq_len` tokens.
    :param max_latency_ms: latency at most, in milliseconds.
    :param min_throughput: inputs in a second at least, one call after the other.
    :param max_file_mb: size of the exported files at most, in millions of bytes.
    :param max_memory_mb: memory that running it takes on top of the engine's own at most, likewise.
    :param min_metric: main metric at least, in its own unit (0.9, not 90).
    :param must_load: with what it must load, a key of `LOADS`.
    :raises SettingError: an unknown `must_load`, or a bound that is not a finite number.
    """

    max_params: float | None = None
    max_flops: float | None = None
    max_latency_ms: float | None = None
    min_throughput: float | None = None
    max_file_mb: float | None = None
    max_memory_mb: float | None = None
    min_metric: float | None = None
    must_load: str | None = None

    def __post_init__(self) -> None:
        if self.must_load is not None and self.must_load not in LOADS:
            raise SettingError(one_of("must_load", self.must_load, LOADS))
        for name, value in self.__dict__.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingError(f"{name} {value} is no finite number; leave it out, or give one")

    @property
    def costs(self) -> dict[CostName, float]:
        """The upper bounds that are given, by cost, in the units of the limits."""
        return {cost: bound for cost, option in _LIMITS.items() if (bound := getattr(self, option)) is not None}


def front(rows: Sequence[Measurement], cost: CostName) -> tuple[Measurement, ...]:
    """The rows that no other row beats: better in metric or cost and no worse in the other."""
    on_front = unbeaten([row.metric for row in rows], [_cost(rows, row, cost) for row in rows])
    return tuple(row for row, kept in zip(rows, on_front, strict=True) if kept)


def unbeaten(metrics: Sequence[float], prices: Sequence[float]) -> tuple[bool, ...]:
    """Whether no other point beats a point: better in metric or price and no worse in the other."""
    points = [(-metric, price) for metric, price in zip(metrics, prices, strict=True)]
    return tuple(
        not any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in points)
        for point in points
    )


def choose(rows: Sequence[Measurement], budget: Budget, *, batch: int = 1) -> Measurement:
    """The row with the highest metric within a budget, the cheapest where several have it.

    :param batch: sequences in the call of which the latency is, for the throughput.
    :raises SettingError: nothing fits, or a cost that was not measured; the message names the nearest row.
    """
    has = [_values(rows, row, budget, batch) for row in rows]
    excesses = [_excess(row, values, budget) for row, values in zip(rows, has, strict=True)]
    fitting = [row for row, excess in zip(rows, excesses, strict=True) if not excess]
    if not fitting:
        totals = [sum(excess.values()) for excess in excesses]
        nearest = totals.index(min(totals))
        if totals[nearest] == math.inf:
            raise SettingError(
                f"no Subnet of this Sweep loads with {budget.must_load}; sizes that keep all heads do, as "
                f"h1-n0.5-d0.5: measure some by --subnet, or ask for --must-load dynabert"
            )
        _nothing_fits(rows[nearest], has[nearest], excesses[nearest])
    limited = budget.costs
    by_cost = [*limited, *(cost for cost in _BY_WEIGHT if cost not in limited and _has(rows, cost))]
    cheapest = budget.min_metric is not None and not limited and budget.min_throughput is None

    def rank(row: Measurement) -> tuple[float, ...]:
        prices = tuple(_cost(rows, row, cost) for cost in by_cost)
        return prices if cheapest else (-row.metric, *prices)

    return min(fitting, key=rank)


def _cost(rows: Sequence[Measurement], row: Measurement, cost: CostName) -> float:
    """One cost of a row, which must have been measured of every row."""
    if cost not in COSTS:
        raise SettingError(one_of("cost", cost, COSTS))
    if not _has(rows, cost):
        how = "with latency" if cost == "latency_ms" else "on an engine, for instance --engine openvino"
        raise SettingError(f"this Sweep has no {cost}; measure again {how}, or limit n_params or flops")
    return float(getattr(row.cost, cost))


def _has(rows: Sequence[Measurement], cost: CostName) -> bool:
    return all(getattr(row.cost, cost) is not None for row in rows)


@dataclass(frozen=True)
class _Bound:
    """What a row has of something that is bounded."""

    value: float
    bound: float
    is_lower: bool

    @property
    def excess(self) -> float:
        """By which share of the bound the value is outside it; 0 where it is not."""
        over = self.bound - self.value if self.is_lower else self.value - self.bound
        return 0.0 if over <= 0 else over / (abs(self.bound) or 1.0)


def _values(rows: Sequence[Measurement], row: Measurement, budget: Budget, batch: int) -> dict[str, _Bound]:
    """By option that is given: what the row has of it."""
    found = {
        _LIMITS[cost]: _Bound(_cost(rows, row, cost) / _UNITS.get(cost, 1.0), bound, is_lower=False)
        for cost, bound in budget.costs.items()
    }
    if budget.min_throughput is not None:
        each_second = 1e3 * batch / _cost(rows, row, "latency_ms")
        found["min_throughput"] = _Bound(each_second, budget.min_throughput, is_lower=True)
    if budget.min_metric is not None:
        found["min_metric"] = _Bound(row.metric, budget.min_metric, is_lower=True)
    return found


def _excess(row: Measurement, values: Mapping[str, _Bound], budget: Budget) -> dict[str, float]:
    """By how much of each bound a row is outside it; empty where it fits."""
    found = {option: value.excess for option, value in values.items() if value.excess > 0}
    allowed = () if budget.must_load is None else LOADS[budget.must_load]
    if allowed and row.loads_with not in allowed:
        found["must_load"] = math.inf
    return found


def _nothing_fits(nearest: Measurement, values: Mapping[str, _Bound], excess: Mapping[str, float]) -> NoReturn:
    wanted = " and ".join(f"{option} {_plain(value.bound)}" for option, value in values.items())
    relaxed = " and ".join(f"{option} to {_reached(values[option])}" for option in excess)
    raise SettingError(f"no Subnet fits {wanted}; the nearest is {nearest.subnet}: set {relaxed} for it")


def _plain(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def _reached(bound: _Bound) -> str:
    """The value of a row, rounded to where the row still fits."""
    if float(bound.value).is_integer():
        return f"{bound.value:.0f}"
    toward = math.floor if bound.is_lower else math.ceil
    return f"{toward(bound.value * 1e4) / 1e4:.4f}"
