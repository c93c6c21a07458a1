"""What is kept of a trained method: its predictions, in one file.

Predictions are a few hundred kilobytes where weights are a hundred megabytes, and all that is asked of a training
afterwards (metrics, intervals, which point to choose) is computed from them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dynabert.baselines.method import Method, sweep_of
from dynabert.batches import Batch
from dynabert.errors import ModelFileError
from dynabert.files import atomic_write_bytes, storage_errors
from dynabert.job import Prepared
from dynabert.measure import labels_of, predict
from dynabert.statistics import ROW_METRICS
from dynabert.sweep import Sweep
from dynabert.timing import interleaved_ms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT_VERSION = 1

_REPEATS = 3  # timed runs over a sample
_TIMED = {1: 24, 32: 3}  # how many batches of each size are a sample


@dataclass(frozen=True)
class Point:
    """One size, or one threshold, of a trained method.

    :param name: of the Subnet, or of the threshold.
    :param select_metric: main metric on the `select` rows, by which points are chosen.
    :param select_flops: encoder FLOPs of a row at 128 tokens, mean over the `select` rows.
    :param flops: likewise over the validation rows.
    :param n_layers: executed, mean over the validation rows.
    :param time: of an input, as a share of the full network's: one by one, and in batches of 32.
    """

    name: str
    select_metric: float
    select_flops: float
    flops: float
    n_layers: float
    time: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Trial:
    """A finished training: what it cost and what it predicts.

    :param training_flops: see `dynabert.baselines.method.Spent`.
    :param n_steps: of all its stages.
    :param logits: of the validation rows, by point, shape (rows, labels) each.
    :param sweep: of all points on the validation rows, beside the teacher.
    """

    name: str
    training_flops: float
    n_steps: int
    points: tuple[Point, ...]
    logits: Mapping[str, np.ndarray]
    sweep: Sweep

    @property
    def select_score(self) -> float:
        """The mean of the main metric on the `select` rows over all points: by which settings are chosen."""
        return float(np.mean([point.select_metric for point in self.points]))

    def save(self, path: Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        about = {"name": self.name, "training_flops": self.training_flops, "n_steps": self.n_steps}
        about |= {"points": [asdict(point) for point in self.points], "sweep": self.sweep.to_dict()}
        logits = {name: np.ascontiguousarray(rows, dtype=np.float32) for name, rows in self.logits.items()}
        with storage_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, save(logits, {"format_version": str(FORMAT_VERSION), "trial": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path) -> "Trial":
        """Read what `save` wrote.

        :raises ModelFileError: damaged, or something else.
        """
        try:
            with safe_open(path, framework="np") as file:
                saved = file.metadata() or {}
                if saved["format_version"] != str(FORMAT_VERSION):
                    raise ValueError(f"format version {saved['format_version']}, not {FORMAT_VERSION}")
                about = json.loads(saved["trial"])
                points = tuple(Point(**{**point, "time": tuple(point["time"])}) for point in about.pop("points"))
                logits = {point.name: file.get_tensor(point.name) for point in points}
            sweep = Sweep.from_dict(about.pop("sweep"), what=str(path))
            return cls(**about, points=points, logits=logits, sweep=sweep)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} is no sound trial ({error}); delete it, and it is trained again") from error


def trial_of(name: str, method: Method, rows: Prepared, *, full: "PreTrainedModel") -> Trial:
    """What is kept of a trained method.

    :param rows: of its task; those of `select` and of `validation` are predicted.
    :param full: the network that its times and answers are compared with.
    """
    metric, labels = ROW_METRICS[rows.task.primary_metric], labels_of(rows.select)
    selected = {point: method.predict(point, rows.select) for point in method.points()}
    answers = {point: method.predict(point, rows.validation) for point in method.points()}
    times = relative_times(method, full, rows.validation)
    points = tuple(
        Point(
            name=point,
            select_metric=metric(labels, selected[point].logits),
            select_flops=float(selected[point].flops.mean()),
            flops=float(answers[point].flops.mean()),
            n_layers=float(answers[point].n_layers.mean()),
            time=times[point],
        )
        for point in method.points()
    )
    reference = predict(full, rows.validation)
    return Trial(
        name=name,
        training_flops=method.training_flops,
        n_steps=method.n_steps,
        points=points,
        logits={point: answer.logits for point, answer in answers.items()},
        sweep=sweep_of(method, rows.validation, task=rows.task, reference=reference, answers=answers),
    )


def relative_times(method: Method, full: "PreTrainedModel", rows: Iterable[Batch]) -> dict[str, tuple[float, float]]:
    """How long a method takes for an input, as a share of what the full network takes: one by one and 32 together.

    A sample of the rows at their own lengths, all points and the full network taking turns, medians of the repeats.
    """
    batches = list(rows)
    shares: dict[str, list[float]] = {point: [] for point in method.points()}
    for sample in (_sample(batches, n=n, size=size) for size, n in _TIMED.items()):
        calls: dict[str, Callable[[], object]] = {
            point: partial(method.answer, point, sample) for point in method.points()
        }
        calls[""] = partial(predict, full, sample)
        taken = interleaved_ms(calls, _REPEATS)
        for point, found in shares.items():
            found.append(taken[point] / taken[""])
    return {point: (single, together) for point, (single, together) in shares.items()}


def _sample(batches: Sequence[Batch], *, n: int, size: int) -> list[Batch]:
    """Some batches of a size, spread evenly over all rows, which stand in the order of their lengths."""
    starts = np.cumsum([0, *map(len, batches)])
    sample = []
    for row in np.linspace(0, starts[-1] - 1, n).round().astype(int):
        place = int(np.searchsorted(starts, row, side="right")) - 1
        last_whole = max(0, len(batches[place]) - size)
        sample.append(batches[place].part(min(row - starts[place], last_whole), size))
    return sample
