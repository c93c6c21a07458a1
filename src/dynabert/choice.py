"""The choice of one measured Subnet: what nothing dominates, and the best within a budget. Plain values, no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dynabert.errors import SettingError, one_of

if TYPE_CHECKING:
    from dynabert.sweep import Measurement, Sweep

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
    "file_bytes": "max_file_bytes",
    "peak_bytes": "max_peak_bytes",
}


@dataclass(frozen=True)
class Budget:
    """What a Subnet may cost and must do; None leaves a side open.

    :param max_params: parameters at most.
    :param max_flops: FLOPs at most, at `dynabert.sweep.Context.seq_len` tokens.
    :param max_latency_ms: latency at most, in milliseconds.
    :param min_throughput: inputs in a second at least, one call after the other.
    :param max_file_bytes: size of the exported files at most.
    :param max_peak_bytes: memory of a process that runs it at most.
    :param min_metric: main metric at least, in its own unit (0.9, not 90).
    :param must_load: with what it must load, a key of `LOADS`.
    :raises SettingError: an unknown `must_load`, or a bound that is not a number.
    """

    max_params: float | None = None
    max_flops: float | None = None
    max_latency_ms: float | None = None
    min_throughput: float | None = None
    max_file_bytes: float | None = None
    max_peak_bytes: float | None = None
    min_metric: float | None = None
    must_load: str | None = None

    def __post_init__(self) -> None:
        if self.must_load is not None and self.must_load not in LOADS:
            raise SettingError(one_of("must_load", self.must_load, LOADS))
        for name, value in self.__dict__.items():
            if isinstance(value, float) and math.isnan(value):
                raise SettingError(f"{name} is not a number; leave it out, or give one")

    @property
    def costs(self) -> dict[CostName, float]:
        """The upper bounds that are given, by cost."""
        return {cost: bound for cost, option in _LIMITS.items() if (bound := getattr(self, option)) is not None}


def front(sweep: "Sweep", cost: CostName) -> "tuple[Measurement, ...]":
    """The rows that no other row beats: better in metric or cost and no worse in the other."""
    points = [(row, -row.metric, cost_of(sweep, row, cost)) for row in sweep.rows]
    return tuple(
        row
        for row, loss, price in points
        if not any(
            other_loss <= loss and other_price <= price and (other_loss, other_price) != (loss, price)
            for _, other_loss, other_price in points
        )
    )


def choose(sweep: "Sweep", budget: Budget) -> "Measurement":
    """The row with the highest metric within a budget, the cheapest where several have it.

    :raises SettingError: nothing fits, or a cost that was not measured; the message names the nearest row.
    """
    excesses = [_excess(sweep, row, budget) for row in sweep.rows]
    fitting = [row for row, excess in zip(sweep.rows, excesses, strict=True) if not excess]
    if not fitting:
        _nothing_fits(sweep, excesses, budget)
    limited = budget.costs
    by_cost = [*limited, *(cost for cost in _BY_WEIGHT if cost not in limited and _has(sweep.rows, cost))]
    cheapest = budget.min_metric is not None and not limited and budget.min_throughput is None

    def rank(row: "Measurement") -> tuple[float, ...]:
        prices = tuple(cost_of(sweep, row, cost) for cost in by_cost)
        return prices if cheapest else (-row.metric, *prices)

    return min(fitting, key=rank)


def cost_of(sweep: "Sweep", row: "Measurement", cost: CostName) -> float:
    """One cost of a row.

    :raises SettingError: an unknown one, or one that was not measured of every row.
    """
    if cost not in COSTS:
        raise SettingError(one_of("cost", cost, COSTS))
    if not _has(sweep.rows, cost):
        how = "with latency" if cost == "latency_ms" else "on an engine, for instance --engine openvino"
        raise SettingError(f"this Sweep has no {cost}; measure again {how}, or limit n_params or flops")
    return float(getattr(row.cost, cost))


def _has(rows: "Sequence[Measurement]", cost: CostName) -> bool:
    return all(getattr(row.cost, cost) is not None for row in rows)


def _throughput(sweep: "Sweep", row: "Measurement") -> float:
    """Inputs in a second."""
    latency_ms = cost_of(sweep, row, "latency_ms")
    assert sweep.context.latency is not None
    return 1e3 * sweep.context.latency.batch[0] / latency_ms


def _values(sweep: "Sweep", row: "Measurement", budget: Budget) -> dict[str, tuple[float, float, bool]]:
    """By option that is given: what the row has, the bound, and whether it is a lower one."""
    found = {_LIMITS[cost]: (cost_of(sweep, row, cost), bound, False) for cost, bound in budget.costs.items()}
    if budget.min_throughput is not None:
        found["min_throughput"] = (_throughput(sweep, row), budget.min_throughput, True)
    if budget.min_metric is not None:
        found["min_metric"] = (row.metric, budget.min_metric, True)
    return found


def _excess(sweep: "Sweep", row: "Measurement", budget: Budget) -> dict[str, float]:
    """By how much of each bound a row is outside it; empty where it fits."""
    found = {}
    for option, (value, bound, is_lower) in _values(sweep, row, budget).items():
        over = bound - value if is_lower else value - bound
        if not over <= 0:
            found[option] = over / (abs(bound) or 1.0)
    if budget.must_load is not None and not _loads(row, budget.must_load):
        found["must_load"] = math.inf
    return found


def _loads(row: "Measurement", how: str) -> bool:
    allowed = LOADS[how]
    return not allowed or row.loads_with in allowed


def _nothing_fits(sweep: "Sweep", excesses: Sequence[Mapping[str, float]], budget: Budget) -> None:
    totals = [sum(excess.values()) for excess in excesses]
    if min(totals) == math.inf:
        raise SettingError(
            f"no Subnet of this Sweep loads with {budget.must_load}; sizes that keep all heads do, as h1-n0.5-d0.5: "
            f"measure some by --subnet, or ask for --must-load dynabert"
        )
    place = totals.index(min(totals))
    nearest, excess = sweep.rows[place], excesses[place]
    values = _values(sweep, nearest, budget)
    wanted = " and ".join(f"{option} {_plain(bound)}" for option, (_, bound, _) in values.items())
    relaxed = " and ".join(
        f"{option} to {_rounded(values[option][0], is_lower=values[option][2])}" for option in excess
    )
    raise SettingError(f"no Subnet fits {wanted}; the nearest is {nearest.subnet}: set {relaxed} for it")


def _plain(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def _rounded(value: float, *, is_lower: bool) -> str:
    """A value rounded to where the row that has it still fits."""
    if float(value).is_integer():
        return f"{value:.0f}"
    toward = math.floor if is_lower else math.ceil
    return f"{toward(value * 1e4) / 1e4:.4f}"
