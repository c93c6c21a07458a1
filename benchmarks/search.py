"""What heads and neurons chosen per layer gain over the uniform grid at the same FLOPs, on finished runs.

    DYNABERT_DATA=DIR python benchmarks/search.py --runs runs/four/sst2 runs/four/rte --seeds 0,1,2 --json FILE
    DYNABERT_DATA=DIR python benchmarks/search.py --runs runs/four/sst2 runs/four/sst2-43 runs/four/sst2-44

Runs of one task stand together, as its trainings; over the seeds of the search the mean is taken. Nothing is trained,
and every search begins with nothing: what others left in the run folders is not used. Everything is chosen on the
`select` rows: the row of the grid that all gains are over by its metric (`uniform grid`), the others by their distance
from the full network, the grid's `nearest` among them. Gains are on the validation rows, paired by row and seed, in
points. `seconds` are of wall time from the start of a search to its choice, the most of the seeds; `wall` is what all
of it took, measuring included. The result is written after every search.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from common import finish, machine, options, table

from dynabert.errors import SettingError
from dynabert.loading import load_tokenizer
from dynabert.measure import labels_of
from dynabert.saved import Saved
from dynabert.search import (
    ALIKE,
    N_RESAMPLES,
    NEAREST,
    PER_LAYER,
    UNIFORM,
    CostLimit,
    Effort,
    SearchResult,
    search_run,
)
from dynabert.search.store import FOLDER
from dynabert.statistics import ROW_METRICS, Difference, Resampled, mean_difference, resampled_difference

QUICK_TRIALS = 40


def searched(run: Path, limit: CostLimit, effort: Effort, device: str | None) -> SearchResult:
    """A search that knows nothing of earlier ones: in a folder with all that the run has but those."""
    run = run.resolve()
    with TemporaryDirectory() as temporary:
        alike = Path(temporary) / run.name
        alike.mkdir()
        for entry in run.iterdir():
            if entry.name != FOLDER:
                (alike / entry.name).symlink_to(entry)
        return search_run(alike, limit, effort=effort, device=device)


def by_task(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """The runs of each task: they differ in their trainings, and have the same validation rows."""
    found: dict[str, list[Path]] = {}
    for run in runs:
        saved = Saved.of(run)
        others = found.setdefault(saved.roles()[0].name, [])
        if others and Saved.of(others[0]).data != saved.data:
            raise SettingError(f"{run} is of other rows than {others[0]}; give runs of the same ones")
        others.append(run)
    return found


def gain(results: Sequence[SearchResult], how: str, labels: Any, *, n_efforts: int, draw: int) -> Resampled:  # noqa: ANN401 (an array)
    """What a choice gains over the uniform grid, resampled over rows and trainings.

    :param results: of every run with every seed of the search, run by run: searches of one run share its training.
    """
    sides = (
        {str(seed): [result.logits[side] for result in results[seed::n_efforts]] for seed in range(n_efforts)}
        for side in (how, UNIFORM)
    )
    return resampled_difference(ROW_METRICS[results[0].metric], labels, *sides, n=N_RESAMPLES, seed=draw)


def mean_metric(results: Sequence[SearchResult], how: str) -> float:
    """Of a choice on the validation rows, over the seeds."""
    found = [standing.validation for result in results for standing in result.standings if standing.how == how]
    return round(sum(found) / len(found), 2)


def text(difference: Difference) -> str:
    """In points, with its interval."""
    mean, low, high = (100 * value for value in difference)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def main() -> None:
    """Search in every run, at every share; print the table and the means over the runs."""
    chosen = options(
        __doc__,
        runs={"nargs": "+", "type": Path, "required": True, "help": "finished run folders"},
        shares={"default": "0.5,0.25", "help": "of the full network's FLOPs"},
        minutes={"type": float, "default": 10.0, "help": "for each search"},
        trials={"type": int, "default": None, "help": "Subnets of each search at most"},
        seeds={"default": "0", "help": "of the searches, comma-separated"},
    )
    shares = [float(share) for share in chosen.shares.split(",")]
    trials = QUICK_TRIALS if chosen.quick else chosen.trials
    efforts = [Effort(chosen.minutes, trials, int(seed)) for seed in chosen.seeds.split(",")]
    searches: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    gains: dict[tuple[float, str], list[Resampled]] = {}
    for draw, (task, runs) in enumerate(by_task(chosen.runs).items()):
        labels = labels_of(Saved.of(runs[0]).rows(load_tokenizer(runs[0] / "elastic")).validation)
        for share in shares:
            results = []
            for run, effort in product(runs, efforts):
                started = perf_counter()
                results.append(searched(run, CostLimit(share=share), effort, chosen.device))
                wall = round(perf_counter() - started, 1)
                print(f"{run}, seed {effort.seed}\n{results[-1].table()}", flush=True)
                about = {"run": run.name, "share": share, "seed": effort.seed, "wall": wall}
                searches.append({**about, **results[-1].to_dict()})
                finish({"machine": machine(chosen.device), "searches": searches}, chosen.json)
            if UNIFORM not in results[0].logits:
                print(f"no row of the grid is as small as {share:g}: nothing to compare with")
                continue
            for how in (NEAREST, ALIKE, PER_LAYER):
                gains.setdefault((share, how), []).append(gain(results, how, labels, n_efforts=len(efforts), draw=draw))
            rows.append(
                {
                    "task": task,
                    "trainings": len(runs),
                    "share": share,
                    **{how: mean_metric(results, how) for how in (UNIFORM, NEAREST, ALIKE, PER_LAYER)},
                    "gain alike": text(mean_difference(gains[share, ALIKE][-1:])),
                    "gain per layer": text(mean_difference(gains[share, PER_LAYER][-1:])),
                    "tried": " ".join(str(result.n_tried) for result in results),
                    "seconds": round(max(result.seconds for result in results)),
                }
            )
    table(rows)
    means = [
        {"share": share, "choice": how, "mean gain": text(mean_difference(found)), "tasks": len(found)}
        for (share, how), found in gains.items()
    ]
    table(means)
    finish({"machine": machine(chosen.device), "searches": searches, "tasks": rows, "means": means}, chosen.json)


if __name__ == "__main__":
    main()
