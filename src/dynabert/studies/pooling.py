"""Comparisons of one seed each as one of several seeds: for trainings on machines that share no folder, or long ago.

What `Comparison.to_dict` keeps of each is all that is needed. Trials on one machine want nothing of this: `compare`
with several seeds resamples their predictions together, here the chance of the rows is taken from each interval.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from dynabert.errors import ModelFileError, SettingError
from dynabert.statistics import Difference, Resampled
from dynabert.studies.compare import Comparison, Standing, Stood, mean_standing, mean_standings, over_tasks
from dynabert.studies.tuning import N_RESAMPLES, counted

_WIDTH = 2 * NormalDist().inv_cdf(0.975)  # of a 95 % interval, in standard deviations
_EQUAL = 0.05  # how far training FLOPs of two seeds may differ: batches of other rows cost a little more or less


def pooled(files: Sequence[str | Path]) -> Comparison:
    """One comparison of all seeds, in the mean of the tasks.

    The chance of training is that among the seeds, by Student's t; where a task has one seed it is unknown, and the
    interval holds its rows alone. The chance of the rows, which all seeds share, is the mean of what each has: somewhat
    too large, for seeds do not err on quite the same rows.

    :param files: ``compare.json`` of one run each, with one seed: of a task as many as it has seeds.
    :return: `Comparison.tasks` has that of each task; without sweeps.
    :raises ModelFileError: a file that is not such a comparison.
    :raises SettingError: no files, one of several seeds, a seed that a task has twice, or comparisons of different
        methods, rates, recipes or budgets.
    """
    if not files:
        raise SettingError("no files given; give the compare.json of one run at least")
    by_task: dict[str, list[Comparison]] = {}
    for file in map(Path, files):
        found = _read(file)
        of_task = by_task.setdefault(found.task, [])
        first = next(iter(by_task.values()))[0] if of_task or len(by_task) > 1 else found
        _check(file, found, first, of_task)
        of_task.append(found)
    draws = [_stood(of_task, draw=draw) for draw, of_task in enumerate(by_task.values())]
    tasks = [_over_seeds(of_task, stood) for of_task, stood in zip(by_task.values(), draws, strict=True)]
    if len(tasks) == 1:
        return tasks[0]
    most = max((task.seeds for task in tasks), key=len)
    named = [task if task.seeds == most else replace(task, task=_with_seeds(task)) for task in tasks]
    return replace(over_tasks(named, mean_standings(draws)), seeds=most)


def _read(file: Path) -> Comparison:
    """What `Comparison.to_dict` gave, without sweeps."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        rows = tuple(_standing(row) for row in saved["rows"])
        known = {field.name: saved[field.name] for field in fields(Comparison) if field.name in saved}
        return Comparison(**{**known, "seeds": tuple(saved["seeds"]), "standings": rows, "sweeps": {}})
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{file} is no compare.json ({error}); give what dynabert compare wrote") from error


def _standing(row: dict[str, Any]) -> Standing:
    difference = row["difference"]
    return Standing(**{**row, "difference": None if difference is None else Difference(*difference)})


def _check(file: Path, found: Comparison, first: Comparison, of_task: Sequence[Comparison]) -> None:
    """Refuse what cannot be pooled with what was read before."""
    if len(found.seeds) > 1 or any(found.seeds == other.seeds for other in of_task):
        is_one = len(found.seeds) == 1
        what = f"is seed {found.seeds[0]} of {found.task} again" if is_one else f"has {counted(found.seeds)}"
        raise SettingError(f"{file} {what}; give one file for each seed of a task")
    for what, value, expected in zip(_ASKED, _asked(found), _asked(first), strict=True):
        if value != expected:
            raise SettingError(f"{file} has {what} {value}, and the first file {expected}; pool what was asked alike")
    for other in of_task[:1]:
        if abs(found.training_flops / other.training_flops - 1) > _EQUAL:
            spent = f"{found.training_flops / 1e12:.3g} TFLOPs of training, and seed {other.seeds[0]}"
            raise SettingError(f"{file} has {spent} {other.training_flops / 1e12:.3g}; pool trainings of one budget")


_ASKED = ("ours", "recipe", "rates", "methods")


def _asked(found: Comparison) -> tuple[object, ...]:
    methods = ", ".join(sorted({row.method for row in found.standings}))
    return found.ours, found.recipe, tuple(found.rates), methods


def _with_seeds(task: Comparison) -> str:
    return f"{task.task} ({counted(task.seeds)})"


def _stood(seeds: Sequence[Comparison], *, draw: int) -> list[Stood]:
    """Every method at every share, over the seeds of a task; all with the same draws of its rows."""
    normal = np.random.default_rng(draw).standard_normal(N_RESAMPLES)
    by_place = [{(row.method, row.share): row for row in one.standings} for one in seeds]
    return [_over([rows[place] for rows in by_place], normal) for place in by_place[0]]


def _over(rows: Sequence[Standing], normal: np.ndarray) -> Stood:
    """One method at one share over seeds."""
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


def _over_seeds(seeds: Sequence[Comparison], stood: Iterable[Stood]) -> Comparison:
    """The comparison of one task."""
    return replace(
        seeds[0],
        seeds=tuple(one.seeds[0] for one in seeds),
        full=float(np.mean([one.full for one in seeds])),
        training_flops=float(np.mean([one.training_flops for one in seeds])),
        standings=mean_standings([list(stood)]),
    )
