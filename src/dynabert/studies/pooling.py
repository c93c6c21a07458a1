"""Comparisons of one seed each as one of several seeds: for trainings on machines that share no folder, or long ago.

What ``compare.json`` keeps of each is all that is needed. Trials on one machine want nothing of this: `compare` with
several seeds resamples their predictions together, here the chance of the rows is taken from each interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from dynabert.entries import Entry
from dynabert.errors import SettingError
from dynabert.statistics import Resampled
from dynabert.studies.standings import Comparison, Standing, Stood, mean_standing, mean_standings, over_tasks
from dynabert.studies.tuning import N_RESAMPLES, counted

_WIDTH = 2 * NormalDist().inv_cdf(0.975)  # of a 95 % interval, in standard deviations
_EQUAL = 0.1  # how far training FLOPs of two seeds may differ: of short rows the mean length is rounded to whole tokens


@dataclass(frozen=True)
class _Seed:
    """One task with one seed.

    :param rows: which validation rows; None in files that do not say.
    :param budget: of its trainings, as a share of what the run's recipe costs.
    :param limit: training rows, where not all of the run.
    """

    file: Path
    found: Comparison
    rows: str | None
    budget: float
    limit: int | None

    @property
    def seed(self) -> int:
        return self.found.seeds[0]

    @property
    def n_rows(self) -> int:
        """How many validation rows."""
        return next(iter(self.found.sweeps.values())).context.n_rows

    @property
    def asked(self) -> dict[str, object]:
        """What all tasks and seeds have in common, by how messages call it."""
        asked: dict[str, object] = {name: getattr(self.found, name) for name in ("ours", "recipe", "rates")}
        return {**asked, "budget": self.budget, "full network of": f"{self.found.full_flops} FLOPs"}

    @property
    def methods(self) -> set[str]:
        """Of which it has a row."""
        return {row.method for row in self.found.standings}


def pooled(files: Sequence[str | Path], *, same_rows: bool = False) -> Comparison:
    """One comparison of all seeds, in the mean of the tasks.

    The chance of training is that among the seeds, by Student's t; where a task has one seed it is unknown, and the
    interval holds its rows alone. The chance of the rows, which all seeds share, is the mean of what each has: somewhat
    too large, for seeds do not err on quite the same rows. Where rates are tuned, each seed has its own.

    Methods that not every file has are left out, which `Comparison.left_out` says.

    :param files: ``compare.json`` of one run each, with one seed: of a task as many as it has seeds.
    :param same_rows: files of before they said which rows they are of are taken to be of those of their task, where
        the other files know one such set alone and as many rows.
    :return: `Comparison.tasks` has that of each task, with the sweeps of its first seed.
    :raises ModelFileError: a file that is not such a comparison.
    :raises SettingError: no files, one of several seeds or tasks, a seed that a task has twice, comparisons of
        different rates, recipes, budgets, networks or rows, or no method that all have.
    """
    if not files:
        raise SettingError("no files given; give the compare.json of one run at least")
    read = _common([_read(Path(file)) for file in files])
    if same_rows:
        read = _with_rows(read)
    by_task: dict[tuple[str, str | None], list[_Seed]] = {}
    for one in read:
        seeds = by_task.setdefault((one.found.task, one.rows), [])
        _check(one, read[0], seeds)
        _check_rows(one, next(other for other in read if other.found.task == one.found.task))
        seeds.append(one)
    groups = [sorted(seeds, key=lambda one: one.seed) for seeds in by_task.values()]
    stood = [_stood([one.found for one in seeds], draw=draw) for draw, seeds in enumerate(groups)]
    tasks = [_of_task([one.found for one in seeds], own) for seeds, own in zip(groups, stood, strict=True)]
    if len(tasks) == 1:
        return tasks[0]
    most = max((task.seeds for task in tasks), key=len)
    named = [
        task if len(task.seeds) == len(most) else replace(task, task=f"{task.task} ({counted(task.seeds)})")
        for task in tasks
    ]
    return replace(over_tasks(named, mean_standings(stood)), seeds=most)


def _read(file: Path) -> _Seed:
    """A file.

    :raises ModelFileError: something else, or of before comparisons said all that is needed.
    :raises SettingError: of several seeds or tasks.
    """
    saved = Entry.of(file, "compare again")
    found = Comparison.read(saved)
    if not found.sweeps or len(found.seeds) > 1:
        what = f"of {len(found.seeds)} seeds" if found.sweeps else "a mean over tasks or seeds"
        raise SettingError(f"{file} is {what}; give the compare.json of each run, with one seed")
    made = saved.table("made")
    for what, is_said in (
        ("learning rates", bool(found.rates)),
        ("FLOPs of the full network", found.full_flops > 0),
        ("limit of training rows", "limit" in made.values),
    ):
        if not is_said:
            raise saved.wrong(f"it does not say the {what}")
    rows, limit = made.optional("validation", str), made.optional("limit", int)
    return _Seed(file, found, rows, made.get("budget", float), limit)


def _common(read: Sequence[_Seed]) -> list[_Seed]:
    """The files with the methods that all of them have.

    :raises SettingError: none but DynaBERT itself.
    """
    common = set.intersection(*(one.methods for one in read))
    if len(common) < 2:
        raise SettingError(f"the {len(read)} files have no method in common but {', '.join(common) or 'none'}")
    missing = sorted(set.union(*(one.methods for one in read)) - common)
    left_out = {method: "it is not in every file" for method in missing}
    return [
        replace(
            one,
            found=replace(
                one.found,
                standings=tuple(row for row in one.found.standings if row.method in common),
                sweeps={method: sweep for method, sweep in one.found.sweeps.items() if method in common},
                times={method: times for method, times in one.found.times.items() if method in common},
                left_out={**one.found.left_out, **left_out},
            ),
        )
        for one in read
    ]


def _with_rows(read: Sequence[_Seed]) -> list[_Seed]:
    """The files, those that do not say which rows they are of with those of the others of their task."""
    known: dict[tuple[str, int], set[str]] = {}
    for one in read:
        if one.rows is not None:
            known.setdefault((one.found.task, one.n_rows), set()).add(one.rows)
    guessed = {place: next(iter(rows)) for place, rows in known.items() if len(rows) == 1}
    return [replace(one, rows=one.rows or guessed.get((one.found.task, one.n_rows))) for one in read]


def _check(one: _Seed, first: _Seed, before: Sequence[_Seed]) -> None:
    """Refuse what cannot be pooled with what was read before.

    :param before: of the same task.
    """
    for what, value in one.asked.items():
        if value != first.asked[what]:
            raise SettingError(f"{one.file} has {what} {value}, {first.file} {first.asked[what]}; pool what is alike")
    for other in before:
        if one.seed == other.seed:
            raise SettingError(
                f"{one.file} is seed {one.seed} of {one.found.task} as {other.file} is; give one of them"
            )
        if one.limit != other.limit:
            raise SettingError(f"{one.file} has limit {one.limit}, {other.file} {other.limit}; pool what is alike")
        for what in ("training_flops", "teacher_flops"):
            mine, its = getattr(one.found, what), getattr(other.found, what)
            if abs(mine - its) > _EQUAL * max(mine, its):
                name = what.replace("_flops", "").replace("training", "each method")
                raise SettingError(
                    f"{one.file} spent {mine / 1e12:.3g} TFLOPs on {name}, {other.file} {its / 1e12:.3g}; "
                    "pool trainings of one cost"
                )


def _check_rows(one: _Seed, first: _Seed) -> None:
    """Refuse two of one task of which only one says which rows it is of: they may be others."""
    if (one.rows is None) != (first.rows is None):
        unknown, known = (one, first) if one.rows is None else (first, one)
        raise SettingError(
            f"{unknown.file} does not say which rows it is of, {known.file} does; "
            "compare anew, or pool with same_rows (--same-rows)"
        )


def _stood(seeds: Sequence[Comparison], *, draw: int) -> list[Stood]:
    """Every method at every share, over the seeds of a task; all with the same draws of its rows."""
    normal = np.random.default_rng(draw).standard_normal(N_RESAMPLES)
    by_place = [{(row.method, row.share): row for row in one.standings} for one in seeds]
    return [_over_seeds([rows[place] for rows in by_place], normal) for place in by_place[0]]


def _over_seeds(rows: Sequence[Standing], normal: np.ndarray) -> Stood:
    """One method at one share.

    :param normal: the chance of the rows, standard normal numbers.
    """
    mean = replace(mean_standing(rows), difference=None, p_holm=None)
    if mean.metric is None:
        return Stood(mean, None)
    mean = replace(mean, point=rows[0].point)
    known = [row.difference for row in rows if row.difference is not None]
    if len(known) < len(rows):
        return Stood(mean, None)
    own = np.array([difference.mean for difference in known]) / 100
    by_rows = np.mean([(difference.high - difference.low) / _WIDTH for difference in known]) / 100
    resampled = Resampled(float(own.mean()), own.mean() + by_rows * normal)
    if len(own) > 1:
        resampled = resampled._replace(variance=float(own.var(ddof=1)) / len(own), freedom=len(own) - 1)
    return Stood(mean, resampled)


def _of_task(seeds: Sequence[Comparison], stood: list[Stood]) -> Comparison:
    """The comparison of one task."""
    return replace(
        seeds[0],
        seeds=tuple(one.seeds[0] for one in seeds),
        full=float(np.mean([one.full for one in seeds])),
        training_flops=float(np.mean([one.training_flops for one in seeds])),
        teacher_flops=float(np.mean([one.teacher_flops for one in seeds])),
        standings=mean_standings([stood]),
    )
