"""What a comparison found: every method at every cost, the table of them, and means over tasks and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from dynabert.baselines import METHODS, ramped
from dynabert.entries import Entry
from dynabert.statistics import Difference, Resampled, averaged, holm, mean_difference, p_value
from dynabert.studies.tuning import counted, covering, rate_text
from dynabert.sweep import Sweep, plain_text

OURS, CASCADE = "dynabert", "dynabert-cascade"
OWN = (OURS, CASCADE)
"""DynaBERT itself: at each cost its best size, or its best cascade of two sizes."""
NO_POINT = "no point so cheap"


@dataclass(frozen=True)
class Standing:
    """A method at one cost, beside DynaBERT; metrics in hundredths, means over the seeds.

    Where a method has no point as cheap as that, `point` says so, and what would be measured is None.

    :param share: of the full network's FLOPs, at most.
    :param point: what was chosen with the first seed, or `NO_POINT`.
    :param flops: of an input at that point, as a share of the full network's, on the validation rows.
    :param difference: DynaBERT (`Comparison.ours`) minus the method, with its 95 % interval, see `covering`. None for
        itself, and where it has no such point.
    :param p_holm: two-sided p value, corrected for all differences of the comparison.
    :param time: of an input, as a share of the full network's, one by one and in batches of 32.
    :param lr: that was chosen; None where tasks differ in it.
    :param at_edge: the rate is the lowest or highest that was tried, on one of the tasks at least.
    """

    method: str
    share: float
    point: str
    metric: float | None
    flops: float | None
    difference: Difference | None
    p_holm: float | None
    time: tuple[float, float] | None
    lr: float | None
    n_steps: int
    at_edge: bool = False

    @classmethod
    def read(cls, row: Entry) -> "Standing":
        """What `dataclasses.asdict` made of one, through JSON.

        :raises ModelFileError: something else, or a point or a difference that is not whole.
        """
        method, point = row.each(str, "method", "point")
        has_point, is_paired = point != NO_POINT, row.values.get("difference") is not None
        return cls(
            method=method,
            share=row.get("share", float),
            point=point,
            metric=row.get("metric", float) if has_point else None,
            flops=row.get("flops", float) if has_point else None,
            difference=Difference(*row.all("difference", float, 3)) if is_paired else None,
            p_holm=row.get("p_holm", float) if is_paired else None,
            time=_pair(row, "time") if has_point else None,
            lr=row.optional("lr", float),
            n_steps=row.get("n_steps", int),
            at_edge=row.get("at_edge", bool, False),
        )

    @property
    def told(self) -> tuple[str, str, str, str]:
        """Metric, FLOPs and the two times as tables have them; empty where there is no point."""
        if self.metric is None or self.flops is None or self.time is None:
            return ("", "", "", "")
        alone, together = self.time
        return f"{self.metric:.2f}", f"{self.flops:.0%}", f"{alone:.0%}", f"{together:.0%}"


@dataclass(frozen=True)
class Comparison:
    """All methods of a comparison, and what they have in common.

    :param full: metric of the teachers, in hundredths, mean over the seeds.
    :param seeds: of the first run; each has its own and the ones after it.
    :param training_flops: of every method, beyond the teacher.
    :param sweeps: of every method with the first seed, by name.
    :param teacher_flops: what training the teacher took, which methods that do without it may spend as well.
    :param recipe: by which DynaBERT was trained.
    :param ours: what the others are compared with: a name in `OWN`.
    :param left_out: methods that cannot do one of the tasks, and why.
    :param rates: learning rates that every method chose from, the one beyond an end not counted.
    :param full_flops: of an input in the full network, see `dynabert.baselines.method.SEQ_LEN`.
    :param times: of all points of the sweeps, by method: of an input of the validation rows, as a share of the full
        network's, one by one and in batches of 32.
    :param tasks: of several runs, the comparison of each.
    """

    task: str
    metric: str
    full: float
    seeds: tuple[int, ...]
    training_flops: float
    standings: tuple[Standing, ...]
    sweeps: Mapping[str, Sweep]
    teacher_flops: float = 0.0
    recipe: str = ""
    ours: str = OURS
    left_out: Mapping[str, str] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    full_flops: int = 0
    times: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    tasks: tuple["Comparison", ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of several runs without those of each, which are in its folder."""
        apart = ("standings", "sweeps", "tasks")
        fields = {name: value for name, value in self.__dict__.items() if name not in apart}
        rows = [asdict(standing) for standing in self.standings]
        return {**fields, "rows": rows, "sweeps": {name: sweep.to_dict() for name, sweep in self.sweeps.items()}}

    @classmethod
    def read(cls, saved: Entry) -> "Comparison":
        """What `to_dict` gave, through JSON; what earlier versions did not write has its default, and so has `tasks`.

        :raises ModelFileError: something else, or one that names no seeds.
        """
        task, metric = saved.each(str, "task", "metric")
        by_method = saved.table("sweeps")
        left_out, times = saved.table_or_none("left_out"), saved.table_or_none("times")
        timed = {} if times is None else {method: times.table(method) for method in times.values}
        return cls(
            task=task,
            metric=metric,
            full=saved.get("full", float),
            seeds=saved.some("seeds", int),
            training_flops=saved.get("training_flops", float),
            standings=tuple(map(Standing.read, saved.rows("rows"))),
            sweeps={
                method: Sweep.from_dict(sweep, what=f"{by_method.what}: {method}")
                for method, sweep in by_method.values.items()
            },
            teacher_flops=saved.get("teacher_flops", float, 0.0),
            recipe=saved.get("recipe", str, ""),
            ours=saved.get("ours", str, OURS),
            left_out={} if left_out is None else {name: left_out.get(name, str) for name in left_out.values},
            rates=saved.all("rates", float) if "rates" in saved.values else (),
            full_flops=saved.get("full_flops", int, 0),
            times={method: {point: _pair(found, point) for point in found.values} for method, found in timed.items()},
        )

    @property
    def paired(self) -> tuple[tuple[Standing, Difference], ...]:
        """Those with a difference, and it."""
        return tuple((row, row.difference) for row in self.standings if row.difference is not None)

    @property
    def unpaired(self) -> tuple[Standing, ...]:
        """The other methods where there is none, for want of a point so cheap of theirs or of `ours`."""
        return tuple(row for row in self.standings if row.difference is None and row.method != self.ours)

    def table(self) -> str:
        """The standings as lines of plain text."""
        from rich import box
        from rich.table import Table

        title = f"{self.task}: {self.metric} x 100 at a share of the FLOPs at most; teacher {self.full:.2f}"
        table = Table(
            title=title,
            caption=self._caption(),
            box=box.SIMPLE,
            collapse_padding=True,
            pad_edge=False,
            show_edge=False,
        )
        for name in ("share", "method", "point"):
            table.add_column(name, no_wrap=True)
        for name in ("metric", "FLOPs", "ours - its, 95 %", "p", "x1", "x32", "lr", "steps"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.standings:
            table.add_row(
                f"{row.share:.0%}", row.method, *_cells(row), rate_text(row.lr, at_edge=row.at_edge), str(row.n_steps)
            )
        return plain_text(table)

    def _caption(self) -> str:
        caption = f"ours: {self.ours}" + (f", recipe {self.recipe}; " if self.recipe else "; ")
        caption += f"{counted(self.seeds)}, {self.training_flops / 1e12:.3g} TFLOPs of training each"
        own = ", ".join(name for name in self._methods() if name in METHODS and METHODS[name].from_encoder)
        if self.teacher_flops:
            also = f"; {own} also the {self.teacher_flops / 1e12:.3g} of the teacher, which they do without"
            caption += also if own else ""
        elif own:
            caption += f"; {own} start from the fine-tuned model that the run was made of"
        caption += ". p: by Holm; x1, x32: time of an input, alone and in batches of 32, in the full network's."
        caption += f" 95 %: {covering(self.seeds)}"
        few = [task.task for task in self.tasks if len(task.seeds) == 1 < len(self.seeds)]
        caption += f"; of {', '.join(few)} over rows alone." if few else "."
        if len(self.rates) == 1:
            caption += " One learning rate for all, not tuned: --lrs tunes it."
        caption += ramped(self._methods())
        if self.left_out:
            caption += " Left out: " + "; ".join(f"{name}, for {why}" for name, why in self.left_out.items()) + "."
        return caption + (" *: the lowest or highest rate tried." if any(row.at_edge for row in self.standings) else "")

    def _methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.method for row in self.standings))


def _pair(entry: Entry, name: str) -> tuple[float, float]:
    """Of each of the two: one by one, and in batches of 32."""
    alone, together = entry.all(name, float, 2)
    return alone, together


@dataclass(frozen=True)
class Stood:
    """A standing, and its difference resampled; None for DynaBERT itself."""

    standing: Standing
    resampled: Resampled | None


def _cells(row: Standing) -> tuple[str, ...]:
    """Point, metric, FLOPs, difference, p and times of a row."""
    if row.point == NO_POINT:
        return ("", "", "", row.point, "", "", "")
    better = "" if row.difference is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row.difference)
    metric, flops, *times = row.told
    return (_brief(row.point), metric, flops, better, "" if row.p_holm is None else f"{row.p_holm:.3f}", *times)


def _brief(point: str) -> str:
    """The name of a point, its threshold to three digits; of one that names each of its layers, their number."""
    name, _, threshold = point.partition("@s")
    if threshold:
        return f"{name}@s{float(threshold):.3g}"
    return f"{len(point.split('_'))} layers" if point.startswith("l") else point


def mean_standings(tasks: Sequence[Sequence[Stood]]) -> tuple[Standing, ...]:
    """Standings on one task, or means over several; p values corrected for their number.

    :param tasks: of each the standings, resampled independently of the others'.
    """
    by_place = [{(row.standing.method, row.standing.share): row for row in rows} for rows in tasks]
    merged: list[Standing] = []
    p_values: dict[int, float] = {}
    for place in by_place[0]:
        if not all(place in rows for rows in by_place):
            continue
        rows = [rows[place] for rows in by_place]
        standing = mean_standing([row.standing for row in rows])
        resampled = [row.resampled for row in rows if row.resampled is not None]
        if len(resampled) == len(rows):
            mean = averaged(resampled)
            difference = mean_difference([mean])
            standing = replace(standing, difference=Difference(*(100 * value for value in difference)))
            p_values[len(merged)] = p_value(mean.values)
        merged.append(standing)
    for number, p in zip(p_values, holm(list(p_values.values())), strict=True):
        merged[number] = replace(merged[number], p_holm=p)
    return tuple(merged)


def mean_standing(rows: Sequence[Standing]) -> Standing:
    """One row over several tasks or seeds; what differs among them and has no mean is left out."""
    first = rows[0]
    if len(rows) == 1:
        return first
    mean = replace(
        first,
        point=NO_POINT,
        metric=None,
        flops=None,
        time=None,
        lr=first.lr if len({row.lr for row in rows}) == 1 else None,
        n_steps=round(np.mean([row.n_steps for row in rows])),
        at_edge=any(row.at_edge for row in rows),
    )
    metrics = [row.metric for row in rows if row.metric is not None]
    if len(metrics) < len(rows):  # a mean over the other tasks would be one of another thing
        return mean
    return replace(
        mean,
        point=first.point if len({row.point for row in rows}) == 1 else "by task",
        metric=float(np.mean(metrics)),
        flops=float(np.mean([row.flops for row in rows if row.flops is not None])),
        time=mean_time([row.time for row in rows if row.time is not None]),
    )


def mean_time(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of each of the two: one by one, and in batches of 32."""
    alone, together = np.mean(times, axis=0)
    return float(alone), float(together)


def over_tasks(summaries: Sequence[Comparison], standings: tuple[Standing, ...]) -> Comparison:
    """One comparison in the mean of several tasks.

    :param standings: from `mean_standings`.
    """
    return Comparison(
        task=", ".join(summary.task for summary in summaries),
        metric=", ".join(dict.fromkeys(summary.metric for summary in summaries)),
        full=float(np.mean([summary.full for summary in summaries])),
        seeds=summaries[0].seeds,
        training_flops=float(np.mean([summary.training_flops for summary in summaries])),
        standings=standings,
        sweeps={},
        teacher_flops=float(np.mean([summary.teacher_flops for summary in summaries])),
        recipe=summaries[0].recipe,
        ours=summaries[0].ours,
        left_out=summaries[0].left_out,
        rates=summaries[0].rates,
        full_flops=round(np.mean([summary.full_flops for summary in summaries])),
        tasks=tuple(summaries),
    )
