"""What a search has found, beside the best of the uniform grid. Plain values."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dynabert.errors import SettingError
from dynabert.search.latency import LatencyCheck
from dynabert.statistics import Difference
from dynabert.sweep import plain_text

CostName = Literal["flops", "n_params", "latency_ms"]


@dataclass(frozen=True)
class CostLimit:
    """What a Subnet may cost: a limit, or a share of what the full network costs.

    :param cost: FLOPs of the encoder for one sequence of 128 tokens, all parameters, or milliseconds of one call.
    :param limit: at most.
    :param share: of the full network, in (0, 1], instead.
    :raises SettingError: neither or both of the two, or one out of range.
    """

    cost: CostName = "flops"
    limit: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if (self.limit is None) == (self.share is None):
            raise SettingError(f"limit {self.limit} and share {self.share}: give one of the two")
        if self.share is not None and not 0 < self.share <= 1:
            raise SettingError(f"share {self.share:g} is outside (0, 1]; 0.5 is half of the full network")
        if self.limit is not None and not self.limit > 0:
            raise SettingError(f"a budget of {self.limit:g} leaves nothing; give more than 0")

    @property
    def name(self) -> str:
        """Used as the name of a file."""
        kind = self.cost.removeprefix("n_").replace("_", "-")
        return f"{kind}-share-{self.share:g}" if self.limit is None else f"{kind}-{self.limit:.15g}"

    def resolved(self, full: float) -> float:
        """The limit, given the cost of the full network."""
        return self.limit if self.share is None else self.share * full  # type: ignore[return-value]


def budget_of(
    *,
    max_flops_share: float | None = None,
    max_flops: float | None = None,
    max_params: float | None = None,
    max_latency_ms: float | None = None,
) -> CostLimit:
    """The budget of four options, of which one is given.

    :raises SettingError: none or several of them.
    """
    if sum(given is not None for given in (max_flops_share, max_flops, max_params, max_latency_ms)) != 1:
        raise SettingError(
            "give one budget: --max-flops-share 0.5, --max-flops 1.1e9, --max-params 12e6 or --max-latency-ms 4"
        )
    if max_latency_ms is not None:
        return CostLimit("latency_ms", limit=max_latency_ms)
    if max_params is not None:
        return CostLimit("n_params", limit=max_params)
    return CostLimit("flops", limit=max_flops, share=max_flops_share)


@dataclass(frozen=True)
class Standing:
    """A Subnet that was chosen on the `select` rows, and what the validation rows say of it.

    :param how: it was chosen: ``uniform grid`` (by its metric), ``uniform grid, nearest`` (by its loss), ``alike in all
        layers``, or ``per layer`` (both by their loss).
    :param cost: in the unit of the budget.
    :param share: of the full network's FLOPs.
    :param loss: distance from the full network's answers on the `select` rows.
    :param select: main metric on the `select` rows, in hundredths.
    :param validation: likewise on the validation rows.
    :param gain: over ``uniform grid`` there, in hundredths, with its 95 % interval; None for that itself.
    """

    how: str
    subnet: str
    cost: float
    share: float
    loss: float
    select: float
    validation: float
    gain: Difference | None


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    :param limit: of the cost.
    :param standings: best of the uniform grid, by metric and by loss; best with the same heads and neurons in all
        layers; best of all.
    :param n_tried: Subnets that were scored within the budget.
    :param seconds: of wall time, from the start of the search until the choice was made, all its runs together.
    :param logits: on the validation rows, by `Standing.how`; not saved.
    :param latency: of a budget of latency: what was predicted, and what was then measured.
    """

    task: str
    metric: str
    budget: CostLimit
    limit: float
    standings: tuple[Standing, ...]
    n_tried: int
    seconds: float
    logits: dict[str, np.ndarray] = field(repr=False, compare=False)
    latency: LatencyCheck | None = None

    @property
    def found(self) -> Standing:
        """The best that the search has found."""
        return self.standings[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "task": self.task,
            "metric": self.metric,
            "budget": self.budget.name,
            "limit": self.limit,
            "found": self.found.subnet,
            "standings": [
                {**standing.__dict__, "gain": None if standing.gain is None else standing.gain._asdict()}
                for standing in self.standings
            ],
            "n_tried": self.n_tried,
            "seconds": round(self.seconds, 1),
            "latency": None if self.latency is None else self.latency.to_dict(),
        }

    def table(self) -> str:
        """The choices as lines of plain text, and latency where that was the budget."""
        from rich import box
        from rich.table import Table

        title = f"{self.task}: {self.metric} x 100 within {self.budget.name}"
        caption = (
            f"best of {self.n_tried} Subnets on the select rows, {self.seconds:.0f} s in all; uniform grid: by metric, "
            "others: nearest to the full network; gain over the uniform grid on the validation rows, paired, with its "
            "95 % interval"
        )
        table = Table(title=title, caption=caption, box=box.SIMPLE)
        table.add_column("choice", no_wrap=True)
        for name in ("FLOPs", "select", "validation", "gain"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.standings:
            gain = "" if row.gain is None else f"{row.gain.mean:+.2f} [{row.gain.low:+.2f}, {row.gain.high:+.2f}]"
            table.add_row(row.how, f"{row.share:.1%}", f"{row.select:.2f}", f"{row.validation:.2f}", gain)
        names = "".join(f"{row.how}: {row.subnet}\n" for row in self.standings)
        return plain_text(table) + names + ("" if self.latency is None else self.latency.table())
