"""What heads and neurons chosen per layer gain over the uniform grid at the same FLOPs, on finished runs.

    DYNABERT_DATA=DIR python benchmarks/search.py --runs runs/four/sst2 runs/four/trec --shares 0.5,0.25 --json FILE

Nothing is trained. Everything is chosen on the `select` rows: the row of the grid that all gains are over by its metric
(`uniform`), the others by their distance from the full network, the grid's `nearest` among them. Gains are on the
validation rows, paired, in points. `seconds` are of wall time from the start of a search to its choice, earlier runs of
it included; `wall` is what this call took, measuring included. What was tried is kept in the run folders, so that a
second run goes on from there.
"""

from pathlib import Path
from time import perf_counter
from typing import Any

from common import finish, machine, options, table

from dynabert.loading import load_tokenizer
from dynabert.measure import labels_of
from dynabert.results import Saved
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
from dynabert.statistics import ROW_METRICS, Difference, Resampled, mean_difference, resampled_difference

QUICK_TRIALS = 40


def gain(result: SearchResult, how: str, labels: Any, *, seed: int) -> Resampled:  # noqa: ANN401 (an array)
    """What a choice gains over the uniform grid on each resample of the rows."""
    sides = ({"": result.logits[side]} for side in (how, UNIFORM))
    return resampled_difference(ROW_METRICS[result.metric], labels, *sides, n=N_RESAMPLES, seed=seed)


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
        seed={"type": int, "default": 0, "help": "of the searches"},
    )
    shares = [float(share) for share in chosen.shares.split(",")]
    effort = Effort(chosen.minutes, QUICK_TRIALS if chosen.quick else chosen.trials, chosen.seed)
    results: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    gains: dict[tuple[float, str], list[Resampled]] = {}
    for place, run in enumerate(chosen.runs):
        labels = labels_of(Saved.of(run).rows(load_tokenizer(run / "elastic")).validation)
        for share in shares:
            started = perf_counter()
            result = search_run(run, CostLimit(share=share), effort=effort, device=chosen.device)
            wall = perf_counter() - started
            print(f"{run}\n{result.table()}", flush=True)
            results.append({"run": run.name, "share": share, "wall": round(wall, 1), **result.to_dict()})
            if UNIFORM not in result.logits:
                print(f"no row of the grid is as small as {share:g}: nothing to compare with")
                continue
            for how in (NEAREST, ALIKE, PER_LAYER):
                gains.setdefault((share, how), []).append(gain(result, how, labels, seed=place))
            at = {standing.how: standing for standing in result.standings}
            rows.append(
                {
                    "run": run.name,
                    "share": share,
                    "uniform": round(at[UNIFORM].validation, 2),
                    "nearest": round(at[NEAREST].validation, 2),
                    "alike": round(at[ALIKE].validation, 2),
                    "per layer": round(at[PER_LAYER].validation, 2),
                    "gain alike": text(mean_difference(gains[share, ALIKE][-1:])),
                    "gain per layer": text(mean_difference(gains[share, PER_LAYER][-1:])),
                    "tried": result.n_tried,
                    "seconds": round(result.seconds),
                    "wall": round(wall),
                }
            )
    table(rows)
    means = [
        {"share": share, "choice": how, "mean gain": text(mean_difference(found)), "runs": len(found)}
        for (share, how), found in gains.items()
    ]
    table(means)
    finish({"machine": machine(chosen.device), "searches": results, "means": means}, chosen.json)


if __name__ == "__main__":
    main()
