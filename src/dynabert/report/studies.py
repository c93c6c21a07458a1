"""What the studies of a run have left in its folder: other methods beside it, and its ablations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dynabert.errors import ModelFileError
from dynabert.files import read_json
from dynabert.results import SWEEP_FILE
from dynabert.studies import ablate, compare
from dynabert.studies.ablate import BASE, Effect
from dynabert.studies.study import STUDIES
from dynabert.sweep import Sweep

COMPARED_FILE, ABLATED_FILE = f"{STUDIES}/{compare.RESULT}", f"{STUDIES}/{ablate.RESULT}"
OWN_METHOD, OWN_RUN = "DynaBERT", "DynaBERT, this run"
"""What DynaBERT is called among the methods that it is compared with, and the run itself where that is another one."""

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Trainings:
    """What all trainings of a study have in common.

    :param flops: of each one.
    :param teacher_flops: that methods may spend as well which train without the teacher.
    :param recipe: by which DynaBERT, or the base of an ablation, was trained; empty where the file does not say.
    """

    seeds: tuple[int, ...]
    flops: float
    teacher_flops: float = 0.0
    recipe: str = ""

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.seeds))
        teacher = f" (and the teacher's {self.teacher_flops / 1e12:.3g} where it is not used)"
        spent = f"{self.flops / 1e12:.3g} TFLOPs of training each{teacher if self.teacher_flops else ''}"
        recipe = f", recipe {self.recipe}" if self.recipe else ""
        return f"{spent}{recipe}, seed{'s' if len(self.seeds) > 1 else ''} {numbers}"


@dataclass(frozen=True)
class Gap:
    """DynaBERT minus another method, in points of the main metric, with its interval.

    :param share: of the full network's FLOPs, which both may cost at most.
    :param metric: of the method, in points.
    :param flops: of it, as a share of the full network's.
    :param p_holm: two-sided p value, corrected for all differences of the study.
    :param n_steps: of its training.
    :param alone: time of an input, one by one, as a share of the full network's.
    :param together: likewise, in batches of 32.
    """

    method: str
    share: float
    point: str
    metric: float
    flops: float
    difference: float
    low: float
    high: float
    p_holm: float
    n_steps: int
    alone: float
    together: float


@dataclass(frozen=True)
class Compared:
    """A comparison.

    :param sweeps: of the first seed, by method; DynaBERT's own is the one that took part.
    :param gaps: of each method and share at which it has a point.
    :param unpaired: methods and shares at which there is nothing to compare.
    :param by_cascades: the gaps are those of DynaBERT's cascades, not of its sizes.
    """

    sweeps: dict[str, Sweep]
    gaps: tuple[Gap, ...]
    unpaired: tuple[tuple[str, float], ...]
    trainings: Trainings
    by_cascades: bool = False

    def beside(self, own: Sweep) -> dict[str, Sweep]:
        """The sweeps that stand in one figure, DynaBERT first.

        The run's own is among them by another name, unless it is what took part; it has latencies then.
        """
        compared = next((sweep for name, sweep in self.sweeps.items() if _is_ours(name)), own)
        others = {name: sweep for name, sweep in self.sweeps.items() if not _is_ours(name)}
        measured = _metrics(own)
        if all(measured.get(size) == metric for size, metric in _metrics(compared).items()):  # it may have more sizes
            return {OWN_METHOD: own, **others}
        return {OWN_METHOD: compared, OWN_RUN: own, **others}


@dataclass(frozen=True)
class Ablated:
    """An ablation study."""

    effects: tuple[Effect, ...]
    trainings: Trainings


def _is_ours(method: str) -> bool:
    return method.lower() == OWN_METHOD.lower()


def _metrics(sweep: Sweep) -> dict[str, float]:
    return {row.subnet: row.metric for row in sweep.rows}


def read_compared(out: Path, own: Sweep) -> Compared:
    """What ``dynabert compare`` wrote.

    :param own: the sweep of the run: all must be of the same rows to stand in one figure.
    :raises ModelFileError: a damaged file, or one of other rows.
    """
    path = out / COMPARED_FILE
    saved = _table(read_json(path), path)
    if not isinstance(saved.get("sweeps"), dict):
        raise ModelFileError(f"{path} holds no table of sweeps; {_again(path)}")
    sweeps = {name: Sweep.from_dict(value, what=f"{path}: {name}") for name, value in saved["sweeps"].items()}
    for name, sweep in sweeps.items():
        for field in ("task", "metric", "n_rows"):
            there, here = getattr(sweep.context, field), getattr(own.context, field)
            if there != here:
                raise ModelFileError(f"{path}: {name} has {field} {there}, {SWEEP_FILE} has {here}; {_again(path)}")
    gaps, unpaired = [], []
    for row, what in _rows(saved, path):
        method, share = _typed(row, "method", str, what), _typed(row, "share", float, what)
        if row.get("difference") is not None:
            gaps.append(_gap(row, OWN_METHOD if _is_ours(method) else method, share, what))
        elif method != saved.get("ours", compare.OURS):
            unpaired.append((method, share))
    by_cascades = saved.get("ours") == compare.CASCADE
    return Compared(sweeps, tuple(gaps), tuple(unpaired), _trainings(saved, path), by_cascades)


def _gap(row: Mapping[str, Any], method: str, share: float, what: str) -> Gap:
    difference = row["difference"]
    if not isinstance(difference, list) or len(difference) != 3:
        raise ModelFileError(f"{what}: difference {difference!r} is not a mean and two ends; {_again(what)}")
    mean, low, high = (_typed({"difference": end}, "difference", float, what) for end in difference)
    metric, flops, p_holm = (_typed(row, name, float, what) for name in ("metric", "flops", "p_holm"))
    time = row.get("time")
    if not isinstance(time, list) or len(time) != 2:
        raise ModelFileError(f"{what}: time {time!r} is not one of an input alone and one of many; {_again(what)}")
    alone, together = (_typed({"time": value}, "time", float, what) for value in time)
    return Gap(
        method=method,
        share=share,
        point=_typed(row, "point", str, what),
        metric=metric,
        flops=flops,
        difference=mean,
        low=low,
        high=high,
        p_holm=p_holm,
        n_steps=_typed(row, "n_steps", int, what),
        alone=alone,
        together=together,
    )


def read_ablated(out: Path) -> Ablated:
    """What ``dynabert ablate`` wrote.

    :raises ModelFileError: a damaged file.
    """
    path = out / ABLATED_FILE
    saved = _table(read_json(path), path)
    return Ablated(tuple(_effect(row, what) for row, what in _rows(saved, path)), _trainings(saved, path))


def _effect(row: Mapping[str, Any], what: str) -> Effect:
    factor, variant, where = (_typed(row, name, str, what) for name in ("factor", "variant", "where"))
    difference, low, high, p_holm, metric = (
        _typed(row, name, float, what) for name in ("difference", "low", "high", "p_holm", "metric")
    )
    lr = None if row.get("lr") is None else _typed(row, "lr", float, what)
    against = _typed(row, "against", str, what) if "against" in row else BASE
    at_edge = "at_edge" in row and _typed(row, "at_edge", bool, what)
    return Effect(factor, variant, where, difference, low, high, p_holm, metric, lr, against, at_edge)


def _rows(saved: Mapping[str, Any], path: Path) -> Sequence[tuple[Mapping[str, Any], str]]:
    """The rows of a study, and what each is called in a message."""
    rows = saved.get("rows")
    if not isinstance(rows, list):
        raise ModelFileError(f"{path} holds no list of rows; {_again(path)}")
    named = [(row, f"{path}: row {number}") for number, row in enumerate(rows)]
    return [(_table(row, what), what) for row, what in named]


def _trainings(saved: Mapping[str, Any], path: Path) -> Trainings:
    seeds = saved.get("seeds")
    if not isinstance(seeds, list) or not seeds:
        raise ModelFileError(f"{path} names no seeds; {_again(path)}")
    checked = tuple(_typed({"seeds": seed}, "seeds", int, str(path)) for seed in seeds)
    flops = {name: _typed({name: 0.0, **saved}, name, float, str(path)) for name in ("training_flops", "teacher_flops")}
    recipe = _typed({"recipe": "", **saved}, "recipe", str, str(path))
    return Trainings(checked, flops["training_flops"], flops["teacher_flops"], recipe)


def _table(value: Any, what: str | Path) -> Mapping[str, Any]:  # noqa: ANN401 (whatever the file holds)
    if not isinstance(value, dict):
        raise ModelFileError(f"{what} is not a table; {_again(what)}")
    return value


def _typed(row: Mapping[str, Any], name: str, kind: type[Kind], what: str) -> Kind:
    value = row.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ModelFileError(f"{what}: {name} {value!r} is not of type {kind.__name__}; {_again(what)}")
    return value


def _again(what: str | Path) -> str:
    return "compare again" if COMPARED_FILE in str(what) else "ablate again"
