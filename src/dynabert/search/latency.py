"""Latency as a budget: sizes are priced by what was measured of the grid, and what is found is measured in the end."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.latency_model import LatencyModel
from dynabert.measure import Progress
from dynabert.results import measure_run
from dynabert.search.space import Price
from dynabert.subnet import EncoderShape, Subnet
from dynabert.sweep import LatencySettings, Sweep, plain_text

LEAST_SHARE = 0.01
"""Of the full network's time, that its heads and neurons must take: below it no choice of them saves anything."""

DRIFT = 0.1
"""A size of the grid that is slower or faster than before by a larger share shows that the machine has changed."""


@dataclass(frozen=True)
class Timed:
    """Measured latencies of the grid, and what they say of other sizes.

    :param settings: how they were measured, at one batch and length; the number of threads is a number.
    :param ms: by the name of the size.
    :param device: cpu or cuda.
    """

    settings: LatencySettings
    ms: Mapping[str, float]
    model: LatencyModel
    device: str = "cpu"

    @classmethod
    def of(cls, sweep: Sweep, elastic: ElasticModel) -> "Timed":
        """What a Sweep says at the shape that counts, see `dynabert.sweep.Sweep.at`.

        :param elastic: the network that was measured.
        :raises SettingError: no latency, or too few sizes.
        """
        model, latency = LatencyModel.fit(sweep, elastic.described), sweep.context.latency
        assert latency is not None, "the fit has refused it"
        n_threads = latency.n_threads or sweep.context.machine.n_threads
        settings = replace(latency, batch=latency.batch[:1], seq=latency.seq[:1], n_threads=n_threads)
        ms = {row.subnet: float(row.cost.latency_ms or 0) for row in sweep.rows}
        return cls(settings, ms, model, "cpu" if sweep.context.machine.device == "cpu" else "cuda")

    @property
    def form(self) -> str:
        """What was timed; used in the name of a file."""
        (batch, seq), settings = self.settings.shapes[0], self.settings
        return f"{settings.engine}-{settings.dtype}-{batch}x{seq}"

    def price(self, shape: EncoderShape) -> Price:
        """The predicted milliseconds of a size, made of those of its parts.

        :raises SettingError: the measured ones do not grow with heads and neurons.
        """
        price = Price.of(self.model.ms, shape)
        fixed, full = price.base + shape.n_layers * price.layer, self.model.ms(Subnet().slices(shape))
        if full - fixed < LEAST_SHARE * full:
            raise SettingError(
                f"latency of {self.form} does not grow with heads and neurons, so it gives no budget for them: measure "
                f"a larger --batch or --seq, or limit --max-flops-share"
            )
        return price

    def within(self, subnet: Subnet, limit: float) -> bool:
        """Whether a size of the grid was measured to take a number of milliseconds at most."""
        return self.ms.get(subnet.name, math.inf) <= limit


@dataclass(frozen=True)
class TimedSize:
    """A size that a search has chosen, as it is deployed.

    :param how: see `dynabert.search.result.Standing`.
    :param predicted_ms: by the model that the search went by.
    :param measured_ms: median, all sizes by turns.
    :param p95_ms: 95th percentile.
    :param metric: main metric of the deployed form on the validation rows, in hundredths.
    :param swept_ms: median when the grid was measured; None where it was not.
    """

    how: str
    subnet: str
    predicted_ms: float
    measured_ms: float
    p95_ms: float
    metric: float
    swept_ms: float | None = None

    @property
    def drift(self) -> float:
        """By which share it is slower now than when the grid was measured; 0 where it was not."""
        return 0.0 if self.swept_ms is None else self.measured_ms / self.swept_ms - 1


@dataclass(frozen=True)
class LatencyCheck:
    """How the predicted latency of what was found compares with the measured one.

    :param settings: how it was measured.
    :param limit: milliseconds at most.
    :param error: median relative error of the predictor at sizes of the grid left out of its fit.
    :param worst: the largest of them.
    :param sizes: best of the uniform grid, where one is within the limit; then what was found.
    """

    settings: LatencySettings
    limit: float
    error: float
    worst: float
    sizes: tuple[TimedSize, ...]

    @property
    def found(self) -> TimedSize:
        """The best that the search has found."""
        return self.sizes[-1]

    @property
    def holds(self) -> bool:
        """Whether what was found is within the limit, measured."""
        return self.found.measured_ms <= self.limit

    @property
    def ask_for(self) -> float | None:
        """The limit to ask for instead, in milliseconds, if predictions stay as wrong; None where the limit holds."""
        if self.holds:
            return None
        predicted = min(self.found.predicted_ms, self.limit)  # the grid's own sizes are chosen by their measured times
        digits = 2 - math.floor(math.log10(smaller := predicted * self.limit / self.found.measured_ms))
        return math.floor(smaller * 10**digits) / 10**digits

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "holds": self.holds, "ask_for": self.ask_for}

    def table(self) -> str:
        """The sizes as lines of plain text, and what they come to."""
        from rich import box
        from rich.table import Table

        (batch, seq), settings = self.settings.shapes[0], self.settings
        title = f"{settings.engine} {settings.dtype}, {batch} x {seq} tokens, {settings.n_threads} threads"
        caption = (
            f"predicted from the grid, whose sizes are off by {self.error:.1%} (median; at worst {self.worst:.1%}) "
            f"when left out; measured by turns, median of {settings.repeats}"
        )
        table = Table(title=title, caption=caption, box=box.SIMPLE)
        table.add_column("choice", no_wrap=True)
        for name in ("grid ms", "predicted ms", "measured ms", "95 % within", "metric deployed"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.sizes:
            values = (row.swept_ms, row.predicted_ms, row.measured_ms, row.p95_ms)
            times = ("" if ms is None else f"{ms:.3g}" for ms in values)
            table.add_row(row.how, *times, f"{row.metric:.2f}")
        return plain_text(table) + self._verdict()

    def _verdict(self) -> str:
        found, limit = self.found, self.limit
        over = [row for row in self.sizes if row.measured_ms > limit]
        lines = [
            f"OVER THE LIMIT: {row.how} takes {row.measured_ms:.4g} ms, more than {limit:.4g} ms; "
            f"predicted were {row.predicted_ms:.4g} ms"
            for row in over
        ]
        if self.ask_for is None:
            lines.append(f"within the limit: {found.how} takes {found.measured_ms:.4g} ms of {limit:.4g} ms")
        else:
            lines.append(f"ask for less, as predictions go: --max-latency-ms {self.ask_for:g}")
        lines += [
            f"the machine is not as it was when the grid was measured: {row.subnet} took {row.swept_ms:.4g} ms then, "
            f"{row.measured_ms:.4g} ms now; measure the grid again"
            for row in self.sizes[:1]
            if abs(row.drift) > DRIFT
        ]
        return "".join(f"{line}\n" for line in lines)


def check_latency(
    run: Path,
    timed: Timed,
    chosen: Mapping[str, tuple[str, float]],
    *,
    limit: float,
    progress: Progress | None,
) -> LatencyCheck:
    """Measure sizes as they are deployed, by turns, on the device on which the grid was.

    :param run: the run folder.
    :param chosen: by how each was chosen: its name, and its predicted milliseconds. What was found comes last.
    :param limit: milliseconds at most.
    """
    subnets = tuple(dict.fromkeys(Subnet.parse(name) for name, _ in chosen.values()))
    sweep = measure_run(
        run, subnets=subnets, latency=timed.settings, keep=False, progress=progress, device=timed.device
    )
    rows = {row.subnet: row for row in sweep.rows}
    sizes = []
    for how, (name, predicted) in chosen.items():
        row = rows[name]
        (timing,) = row.cost.timings
        times = (predicted, timing.median_ms, timing.p95_ms)
        sizes.append(TimedSize(how, name, *times, 100 * row.metric, timed.ms.get(name)))
    return LatencyCheck(timed.settings, limit, timed.model.error, timed.model.worst, tuple(sizes))
