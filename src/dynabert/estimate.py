"""What a run will cost, before it starts: a few steps of every part are timed on its real rows. Nothing is written.

The parts run as in `dynabert.run.train`, in the same order and with the same networks in memory; the network is of no
use afterwards. Training steps of different lengths are timed and fitted by ``seconds = a + b * FLOPs``, and the line is
summed over the planned batches of the first epoch with the Subnets that each step draws. Not counted: writing folders
and checkpoints. Times hold for the load of the machine now. Resident memory on a CPU is that of the few steps: over a
run, whose batches of all lengths leave the heap in pieces, it grew by 12 to 26 % in `benchmarks/estimate.py`.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynabert.batches import Batch, Batches
from dynabert.distill import StageRun, teacher_of
from dynabert.distributed import ALONE
from dynabert.elastic import ElasticModel
from dynabert.job import Job, pick_device, prepare
from dynabert.measure import LatencySettings, Progress, latencies, predict, views_of
from dynabert.memory import peak_memory
from dynabert.plan import Plan, Source
from dynabert.recipes import Stage
from dynabert.rewire import MAX_BATCHES, score
from dynabert.run import disk_bytes, with_precision
from dynabert.subnet import Subnet, encoder_flops
from dynabert.sweep import plain_text
from dynabert.workload import step_flops

if TYPE_CHECKING:
    from rich.table import Table

TIMED_STEPS = 8
"""Steps of a stage that are timed, spread over the lengths of its batches; untimed ones go before and after them."""

_ENOUGH_S = 60.0  # where steps take long, three are timed and then as many as fit into this


@dataclass(frozen=True)
class Part:
    """One part of a run.

    :param n_steps: training steps, scored batches, evaluations, predicted batches or timed calls.
    :param step_s: seconds a step: the median of those that were timed.
    :param total_s: estimated seconds of all steps.
    :param peak_bytes: most memory while this part was tried: of the process on a CPU, of the tensors on a GPU.
    """

    name: str
    n_steps: int
    step_s: float
    total_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    :param disk_bytes: of the run folder at its largest, checkpoints included.
    :param free_bytes: that the disk of the run folder has now.
    :param ends: ISO 8601, local time: when a run that starts now will be done.
    :param precision: of the matrix products of its training.
    """

    parts: tuple[Part, ...]
    disk_bytes: int
    free_bytes: int
    device: str
    ends: str
    precision: str

    @property
    def total_s(self) -> float:
        """Seconds of all parts."""
        return sum(part.total_s for part in self.parts)

    @property
    def peak_bytes(self) -> int:
        """Most memory of any part."""
        return max(part.peak_bytes for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"total_s": self.total_s, "peak_bytes": self.peak_bytes}

    def to_table(self) -> "Table":
        """One row for each part, and the total."""
        from rich.table import Table

        title = f"Dry run on {self.device}, training in {self.precision}"
        table = Table("part", title=title, box=None, title_justify="left")
        for name in ("steps", "s/step", "time", "peak MB"):
            table.add_column(name, justify="right")
        for part in self.parts:
            peak = f"{part.peak_bytes / 1e6:.0f}"
            table.add_row(part.name, str(part.n_steps), f"{part.step_s:.3f}", _h_mm_ss(part.total_s), peak)
        table.add_row("total", "", "", _h_mm_ss(self.total_s), f"{self.peak_bytes / 1e6:.0f}")
        return table

    def text(self) -> str:
        """The table and what follows from it, as lines of plain text."""
        ends = datetime.fromisoformat(self.ends).strftime("%a %d %b %H:%M")
        disk = f"disk: {self.disk_bytes / 1e9:.2f} GB needed, {self.free_bytes / 1e9:.1f} GB free"
        memory = "memory: on a CPU a whole run needs up to a third more than its few steps here\n"
        notes = (memory if self.device == "cpu" else "") + disk
        return f"{plain_text(self.to_table())}{notes}\nends about {ends} if it starts now; nothing has been written\n"


def estimate(
    model: str | Path,
    source: Source,
    out: str | Path,
    *,
    plan: Plan | None = None,
    latency: LatencySettings | None = LatencySettings(),  # noqa: B008 (a frozen value)
    progress: Progress | None = None,
    device: str | None = None,
) -> Estimate:
    """Time a few steps of every part of a run, and say what the whole of it will take. Writes nothing.

    :param model: as for `dynabert.run.train`, and so are the others.
    :param out: where the run will be; only the free space there is looked at.
    :param progress: told how far it is.
    :return: of the whole run from its beginning, whatever `out` holds already.
    :raises SettingError: settings that do not fit.
    :raises DataError: rows that cannot be used.
    :raises ModelFileError: a model that cannot be used.
    """
    device = pick_device(device)
    started = time.perf_counter()
    peak = peak_memory(device)
    plan = with_precision(plan or Plan(), Path(out), replace(ALONE, device=device))
    job = prepare(model, source, plan, latency=latency)
    job.elastic.to(device)
    taken = time.perf_counter() - started
    parts = [Part("load and tokenize", 1, taken, taken, peak())]
    trials = len(job.plan.stages) + (job.plan.order != "as-is") + 1
    for done, tried in enumerate(_Trial(job).parts(latency), start=1):
        parts += tried
        if progress is not None:
            progress("dry run", done, trials)
    total_s = sum(part.total_s for part in parts)
    return Estimate(
        tuple(parts),
        disk_bytes=disk_bytes(Path(out), job.plan, job.elastic),
        free_bytes=shutil.disk_usage(_existing(Path(out))).free,
        device=torch.cuda.get_device_name(device) if device != "cpu" else "cpu",
        ends=(datetime.now().astimezone() + timedelta(seconds=total_s)).isoformat(timespec="seconds"),
        precision=job.plan.training.precision,
    )


class _Trial:
    """A run that takes only some steps of each part."""

    def __init__(self, job: Job) -> None:
        self.job, self.elastic, self.training = job, job.elastic, job.plan.training
        self.device = job.elastic.model.device

    def parts(self, latency: LatencySettings | None) -> Iterator[list[Part]]:
        """All parts, in the order of the run, each tried once."""
        plan = self.job.plan
        if isinstance(plan.teacher, Stage):
            yield self.stage(plan.teacher, None)
        if plan.order != "as-is":
            yield [self.scoring()]
        original = self.elastic.copy()
        for stage in plan.recipe.stages:
            yield self.stage(stage, teacher_of(stage, self.elastic, original))
        # As when the run loads its result and its teacher again, beside those that it holds.
        yield self.sweep(self.elastic.copy(), original.copy(), latency)

    def stage(self, stage: Stage, teacher: ElasticModel | None) -> list[Part]:
        """Training steps and evaluations of one stage."""
        batches, seed = self.job.prepared.train, self.training.seed
        peak = peak_memory(self.device)
        run = StageRun(
            self.elastic,
            stage,
            batches,
            teacher=teacher,
            reduction=self.job.plan.recipe.reduction,
            training=self.training,
        )
        shapes = [batches.shape(step) for step in range(min(run.n_steps, len(batches)))]
        work = [
            rows * step_flops(stage, self.elastic, seed=seed, step=step, seq=seq)
            for step, (rows, seq) in enumerate(shapes)
        ]

        def take(step: int) -> None:
            run.progress.step = step
            run.step()

        line = _Line.through(self._times(take, work), work)
        total_s = line.total(work) * run.n_steps / len(work)
        evaluation_s = self._prediction_s(self.elastic, self.job.prepared.select, stage.grid(self.elastic.grid))
        run.best.keep()  # as after the first evaluation
        take(int(np.argmax(work)))  # last: memory left in pieces by shorter batches has no room for the longest
        n_evaluations = sum(self.training.evaluates_after(done, run.n_steps) for done in range(1, run.n_steps + 1))
        run.gradients.release()
        return [
            Part(stage.name, run.n_steps, line.median_s, total_s, peak()),
            Part(f"{stage.name}: select", n_evaluations, evaluation_s, n_evaluations * evaluation_s, peak()),
        ]

    def scoring(self) -> Part:
        """Importance scores."""
        batches = self.job.prepared.train
        n_batches = min(len(batches), MAX_BATCHES)
        shapes = [batches.shape(step) for step in range(n_batches)]
        work = [(1 + 2) * rows * _flops(self.elastic, Subnet(), seq) for rows, seq in shapes]
        chosen = _Chosen(batches, [int(np.argmax(work)), *_spread(work, TIMED_STEPS)])
        peak = peak_memory(self.device)
        score(self.elastic, chosen, scores=self.job.plan.recipe.scores, n_batches=len(chosen))
        line = _Line.through(list(zip(chosen.steps, chosen.seconds(), strict=True))[1:], work)
        return Part("rewiring scores", n_batches, line.median_s, line.total(work), peak())

    def sweep(self, elastic: ElasticModel, teacher: ElasticModel, latency: LatencySettings | None) -> list[Part]:
        """The predictions of every size and of the teacher, and their latency."""
        subnets, rows = list(elastic.grid), self.job.prepared.validation
        peak = peak_memory(self.device)
        predictions_s = self._prediction_s(elastic, rows, subnets, precision="fp32")
        predictions_s += self._prediction_s(teacher, rows, [Subnet()], precision="fp32")
        n_predictions = (len(subnets) + 1) * len(rows)
        parts = [Part("sweep", n_predictions, predictions_s / n_predictions, predictions_s, peak())]
        if latency is not None:
            started = time.perf_counter()
            once = latencies(elastic, subnets, settings=replace(latency, repeats=1))
            once_s = sum(timing.median_ms for timings in once.values() for timing in timings) / 1e3
            taken = time.perf_counter() - started + 2 * (latency.repeats - 1) * once_s
            n_timed = len(subnets) * len(latency.shapes)
            parts.append(Part("sweep: latency", (2 * latency.repeats + 1) * n_timed, once_s / n_timed, taken, peak()))
        return parts

    def _prediction_s(
        self, elastic: ElasticModel, batches: Batches, subnets: Iterable[Subnet], *, precision: str | None = None
    ) -> float:
        """Seconds to predict all batches with all Subnets, from some batches with the first, a middle and the last."""
        started = time.perf_counter()
        view_of = views_of(elastic, precision or self.training.precision)
        made_s = time.perf_counter() - started
        subnets = list(subnets)
        pairs = [(subnet, step) for subnet in subnets for step in range(len(batches))]
        work = []
        for subnet, step in pairs:
            rows, seq = batches.shape(step)
            work.append(rows * _flops(elastic, subnet, seq))
        tried = dict.fromkeys((subnets[0], subnets[len(subnets) // 2], subnets[-1]))
        steps = _spread([batches.shape(step)[1] for step in range(len(batches))], 3)
        chosen = [place for place, (subnet, step) in enumerate(pairs) if subnet in tried and step in steps]
        predict(view_of(subnets[0]), [batches.at(0)])  # the longest rows

        def call(place: int) -> None:
            subnet, step = pairs[place]
            predict(view_of(subnet), [batches.at(step)])

        for subnet in tried:  # makes the views
            call(pairs.index((subnet, steps[0])))
        return made_s + _Line.through([(place, self._seconds(call, place)) for place in chosen], work).total(work)

    def _times(self, take: Callable[[int], None], work: Sequence[float]) -> list[tuple[int, float]]:
        """Steps and how long each took: some of all lengths, after an untimed one."""
        take(0)
        started = time.perf_counter()
        times: list[tuple[int, float]] = []
        for step in _spread(work, TIMED_STEPS):
            if len(times) >= 3 and time.perf_counter() - started > _ENOUGH_S:
                break
            times.append((step, self._seconds(take, step)))
        return times

    def _seconds(self, call: Callable[[int], None], argument: int) -> float:
        _finish(self.device)
        started = time.perf_counter()
        call(argument)
        _finish(self.device)
        return time.perf_counter() - started


@dataclass(frozen=True)
class _Line:
    """Seconds as a line of the work: ``fixed_s + work * each_s``."""

    fixed_s: float
    each_s: float
    median_s: float

    @classmethod
    def through(cls, times: Sequence[tuple[int, float]], work: Sequence[float]) -> "_Line":
        """Least squares, neither number below 0.

        :param times: places in `work`, and the seconds that each of them took.
        """
        x, y = np.array([float(work[place]) for place, _ in times]), np.array([seconds for _, seconds in times])
        spread = x - x.mean()
        slope = float(spread @ y / (spread @ spread)) if spread.any() else 0.0
        fixed = float(y.mean() - slope * x.mean())
        if slope <= 0:
            slope, fixed = 0.0, float(y.mean())
        elif fixed < 0:
            slope, fixed = float(y.sum() / x.sum()), 0.0
        return cls(fixed, slope, float(np.median(y)))

    def total(self, work: Sequence[float]) -> float:
        """Seconds of all of some work."""
        return len(work) * self.fixed_s + sum(work) * self.each_s


class _Chosen:
    """Some batches as a source of their own, which keeps the time at which each was asked for."""

    def __init__(self, batches: Batches, steps: list[int]) -> None:
        self.batches, self.steps = batches, steps
        self._asked: list[float] = []

    def __len__(self) -> int:
        return len(self.steps)

    def micro_batches(self, step: int) -> tuple[Batch, ...]:
        """Those of a chosen step."""
        self._asked.append(time.perf_counter())
        return self.batches.micro_batches(self.steps[step])

    def seconds(self) -> list[float]:
        """From asking for each batch to asking for the next; for the last, to now."""
        return [float(passed) for passed in np.diff([*self._asked, time.perf_counter()])]


def _spread(work: Sequence[float], n_chosen: int) -> list[int]:
    """Distinct places whose work is spread evenly over the sorted work, small and large in turn."""
    order = np.argsort(work, kind="stable")
    n_chosen = min(n_chosen, len(order))
    places = [int(order[int((rank + 0.5) * len(order) / n_chosen)]) for rank in range(n_chosen)]
    return places[::2] + places[1::2][::-1]


def _flops(elastic: ElasticModel, subnet: Subnet, seq: int) -> int:
    return encoder_flops(elastic.shape, elastic.slices(subnet), seq)


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _h_mm_ss(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
