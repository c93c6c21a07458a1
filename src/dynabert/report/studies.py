"""What studies and searches have left in a run folder: what was found beside the sizes of the run itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dynabert.baselines import deebert
from dynabert.entries import Entry
from dynabert.results import SWEEP_FILE
from dynabert.search import store
from dynabert.search.result import Standing
from dynabert.statistics import Difference
from dynabert.studies import ablate, attention, compare, patterns, size_exit
from dynabert.studies.ablate import BASE, Effect
from dynabert.studies.patterns import (
    DIFFERENCES,
    SOURCES,
    AttentionStudy,
    Estimate,
    Matching,
    Score,
    SubnetCoverage,
)
from dynabert.studies.size_exit import ExitPoint, SizeExit
from dynabert.studies.standings import OURS, Comparison
from dynabert.studies.study import STUDIES
from dynabert.subnet import Subnet
from dynabert.sweep import Sweep

COMPARED_FILE, ABLATED_FILE = f"{STUDIES}/{compare.RESULT}", f"{STUDIES}/{ablate.RESULT}"
EXITS_FILE, CASCADES_FILE = f"{STUDIES}/{size_exit.RESULT}", f"{STUDIES}/{size_exit.CASCADES}"
COVERAGE_FILE = f"{STUDIES}/{attention.RESULT}"
OWN_METHOD, OWN_RUN = "DynaBERT", "DynaBERT, this run"
"""What DynaBERT is called among the methods that it is compared with, and the run itself where that is another one."""


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

    @classmethod
    def of(cls, compared: Comparison) -> "Trainings":
        """Those of a comparison."""
        return cls(compared.seeds, compared.training_flops, compared.teacher_flops, compared.recipe)

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.seeds))
        teacher = f" (and the teacher's {self.teacher_flops / 1e12:.3g} where it is not used)"
        spent = f"{self.flops / 1e12:.3g} TFLOPs of training each{teacher if self.teacher_flops else ''}"
        recipe = f", recipe {self.recipe}" if self.recipe else ""
        return f"{spent}{recipe}, seed{'s' if len(self.seeds) > 1 else ''} {numbers}"


@dataclass(frozen=True)
class Ablated:
    """An ablation study."""

    effects: tuple[Effect, ...]
    trainings: Trainings


@dataclass(frozen=True)
class Searched:
    """What a search has found.

    :param limit: of the cost, in the unit of the budget.
    :param standings: best of the uniform grid where one of it is within the budget, and what the search has found.
    :param n_tried: Subnets that were scored.
    :param measured_ms: of a budget of latency, which is predicted while searching: what was then measured, by
        `Standing.how`.
    """

    metric: str
    limit: float
    standings: tuple[Standing, ...]
    n_tried: int
    seconds: float
    measured_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Studies:
    """All of them; None for what was not studied, or cannot be used.

    :param exits: of sizes with ramps.
    :param coverage: the patterns of the teacher's attention that remain.
    :param searches: those that were finished, by the names of their files, which are those of their budgets.
    """

    compared: Comparison | None = None
    ablated: Ablated | None = None
    exits: SizeExit | None = None
    cascades: SizeExit | None = None
    coverage: AttentionStudy | None = None
    searches: Mapping[str, Searched] = field(default_factory=dict)


def shown(method: str) -> str:
    """What a method of a comparison is called."""
    return OWN_METHOD if method == OURS else method


def beside(own: Sweep, compared: Comparison) -> dict[str, Sweep]:
    """The sweeps that stand in one figure, DynaBERT first.

    The run's own is among them by another name, unless it is what took part; it has latencies then.
    """
    took_part = compared.sweeps.get(OURS, own)
    others = {name: sweep for name, sweep in compared.sweeps.items() if name != OURS}
    measured = _metrics(own)
    if all(measured.get(size) == metric for size, metric in _metrics(took_part).items()):  # it may have more sizes
        return {OWN_METHOD: own, **others}
    return {OWN_METHOD: took_part, OWN_RUN: own, **others}


def _metrics(sweep: Sweep) -> dict[str, float]:
    return {row.subnet: row.metric for row in sweep.rows}


def read_compared(out: Path, own: Sweep) -> Comparison:
    """What ``dynabert compare`` wrote.

    :param own: the sweep of the run: all must be of the same rows to stand in one figure.
    :raises ModelFileError: a damaged file, or one of other rows.
    """
    saved = Entry.of(out / COMPARED_FILE, "compare again")
    compared = Comparison.read(saved)
    _task_of(saved, own)
    for method, sweep in compared.sweeps.items():
        for name in ("task", "metric", "n_rows"):
            _same_as_own(saved, name, getattr(sweep.context, name), own, of=f"{method} has ")
    return compared


def _same_as_own(saved: Entry, name: str, there: object, own: Sweep, *, of: str = "") -> None:
    """Refuse what is of other rows than the sweep of the run."""
    here = getattr(own.context, name)
    if there != here:
        raise saved.wrong(f"{of}{name} {there}, {SWEEP_FILE} has {here}")


def read_ablated(out: Path) -> Ablated:
    """What ``dynabert ablate`` wrote.

    :raises ModelFileError: a damaged file.
    """
    saved = Entry.of(out / ABLATED_FILE, "ablate again")
    flops, recipe = saved.get("training_flops", float, 0.0), saved.get("recipe", str, "")
    trainings = Trainings(saved.some("seeds", int), flops, recipe=recipe)
    return Ablated(tuple(map(_effect, saved.rows("rows"))), trainings)


def _effect(row: Entry) -> Effect:
    factor, variant, where = row.each(str, "factor", "variant", "where")
    difference, low, high, p_holm, metric = row.each(float, "difference", "low", "high", "p_holm", "metric")
    return Effect(
        factor=factor,
        variant=variant,
        where=where,
        difference=difference,
        low=low,
        high=high,
        p_holm=p_holm,
        metric=metric,
        lr=row.optional("lr", float),
        against=row.get("against", str, BASE),
        at_edge=row.get("at_edge", bool, False),
    )


def read_exits(out: Path, own: Sweep, file: str) -> SizeExit:
    """What ``dynabert exits`` wrote.

    :param own: the sweep of the run.
    :param file: `EXITS_FILE` or `CASCADES_FILE`.
    :raises ModelFileError: a damaged file, or one of another task.
    """
    how = " --cascade" if file == CASCADES_FILE else ""
    saved = Entry.of(out / file, f"run `dynabert exits {out}{how}` again")
    missed = saved.listed("unreached")
    pairs = [missed.listed(place, 2) for place in missed.values]
    files = saved.table_or_none("files")
    return SizeExit(
        **_task_of(saved, own),
        full=saved.get("full", float),
        n_select=saved.get("n_select", int),
        points=tuple(map(_exit_point, saved.rows("points"))),
        unreached=tuple((pair.get("0", str), pair.get("1", float)) for pair in pairs),
        largest=saved.get("largest", str, Subnet().name),
        ramps=saved.get("ramps", str, deebert.NAME if file == EXITS_FILE else ""),  # there were no others
        files={name: files.get(name, str) for name in files.values} if files else {},
    )


def _task_of(saved: Entry, own: Sweep) -> dict[str, str]:
    """Task and metric, which are those of the run."""
    found = {name: saved.get(name, str) for name in ("task", "metric")}
    for name, value in found.items():
        _same_as_own(saved, name, value, own)
    return found


def _exit_point(row: Entry) -> ExitPoint:
    alone, together = row.all("time", float, 2)
    metric, agreement, n_layers, flops = row.each(float, "metric", "agreement", "n_layers", "flops")
    asked, threshold = row.optional("asked", float), row.optional("threshold", float)
    return ExitPoint(row.get("subnet", str), asked, threshold, metric, agreement, n_layers, flops, (alone, together))


def read_coverage(out: Path) -> AttentionStudy:
    """What ``dynabert attention`` kept.

    :raises ModelFileError: a damaged file, or one of another version.
    """
    saved = Entry.of(out / COVERAGE_FILE, f"run `dynabert attention {out}` again")
    if saved.get("format_version", int) != 1:
        _check_version(saved, patterns.FORMAT_VERSION)
    return AttentionStudy(
        tuple(map(_coverage, saved.rows("rows"))),
        n_patterns=saved.get("n_patterns", int),
        n_heads=saved.get("n_heads", int, 0),  # the first version has none
        n_texts=saved.get("n_texts", int),
        threshold=saved.get("threshold", float),
        pair_similarity=saved.get("pair_similarity", float),
        pairs_alike=saved.get("pairs_alike", float),
    )


def _check_version(saved: Entry, version: int) -> None:
    if (found := saved.get("format_version", int)) != version:
        raise saved.wrong(f"format_version {found} is not {version}")


def _coverage(row: Entry) -> SubnetCoverage:
    scores, matching = row.table("scores"), row.table("matching")
    nearest = matching.listed("nearest")
    heads = [nearest.all(place, int, 2) for place in nearest.values]
    return SubnetCoverage(
        row.get("subnet", str),
        n_layers=row.get("n_layers", int),
        n_heads=row.get("n_heads", int),
        scores={name: _score(scores.table(name)) for name in (*SOURCES, *DIFFERENCES)},
        matching=Matching(
            best=matching.all("best", float),
            nearest=tuple((layer, head) for layer, head in heads),
            covers=matching.all("covers", int),
        ),
    )


def _score(entry: Entry) -> Score:
    removed = None if entry.values.get("removed") is None else _estimate(entry, "removed")
    return Score(_estimate(entry, "covered"), _estimate(entry, "similarity"), removed)


def _estimate(entry: Entry, name: str) -> Estimate:
    found = entry.listed(name, 3)
    return Estimate(found.get("0", float), found.optional("1", float), found.optional("2", float))


def search_files(out: Path) -> list[Path]:
    """The files that searches have left."""
    return sorted((out / store.FOLDER).glob("*.json"))


def read_search(path: Path, own: Sweep) -> Searched | None:
    """What a search has found; None where it is not finished.

    :param path: one of `search_files`.
    :param own: the sweep of the run.
    :raises ModelFileError: a damaged file, or one of another task or version.
    """
    saved = Entry.of(path, f"run `dynabert search {path.parent.parent}` with this budget again")
    _check_version(saved, store.FORMAT_VERSION)
    if saved.values.get("result") is None:
        return None
    result = saved.table("result")
    limit, seconds = result.each(float, "limit", "seconds")
    standings, n_tried = tuple(map(_standing, result.rows("standings"))), result.get("n_tried", int)
    latency = result.table_or_none("latency")
    timed = [] if latency is None else latency.rows("sizes")
    measured_ms = {row.get("how", str): row.get("measured_ms", float) for row in timed}
    return Searched(_task_of(result, own)["metric"], limit, standings, n_tried, seconds, measured_ms)


def _standing(row: Entry) -> Standing:
    how, subnet = row.each(str, "how", "subnet")
    cost, share, loss, select, validation = row.each(float, "cost", "share", "loss", "select", "validation")
    found = row.table_or_none("gain")
    gain = None if found is None else Difference(*found.each(float, *Difference._fields))
    return Standing(how, subnet, cost, share, loss, select, validation, gain)
