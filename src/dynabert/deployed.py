"""Measuring Subnets as they are deployed: each written and run by an engine, in int8 where that is asked for.

Metric and agreement are those of the written form, never of the network that it was made from.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dynabert.batches import Batch, in_row_order
from dynabert.elastic import ElasticModel
from dynabert.engines import UNCALIBRATED, Engine, Inputs, Int8, Session, computing_engine
from dynabert.engines.footprint import footprint
from dynabert.exported import Parity
from dynabert.measure import (
    context_of,
    cost_of,
    fingerprint_of,
    labels_of,
    machine_of,
    main_metric,
    measurement_of,
    predict,
    quality_of,
    random_inputs,
)
from dynabert.statistics import ROW_METRICS, paired_difference
from dynabert.subnet import Subnet
from dynabert.sweep import LatencySettings, Sweep
from dynabert.tasks import Task, metric_of
from dynabert.timing import Progress, tell, timings

N_CALIBRATION = 256
"""Rows whose activations give the ranges of a static int8."""


def measure_deployed(
    elastic: ElasticModel,
    batches: Iterable[Batch],
    *,
    task: Task,
    settings: LatencySettings,
    subnets: Iterable[Subnet] | None = None,
    reference: np.ndarray | None = None,
    calibration: Iterable[Batch] = (),
    progress: Progress | None = None,
) -> Sweep:
    """Measure Subnets of a network in the form in which an engine runs them on this machine's CPU.

    :param elastic: the network, with the head of the task, on the CPU.
    :param batches: each row once, with labels.
    :param settings: engine, dtype, and the shapes at which latency is measured.
    :param subnets: which; by default the grid.
    :param reference: logits of the network to compare with, as `dynabert.measure.measure` takes them.
    :param calibration: rows of training data, see `calibration_of`; a static int8 needs some.
    :param progress: told how far it is.
    :return: one row for each Subnet, in their order, with file size and memory.
    :raises SettingError: an engine that is not installed, or settings that the model cannot take.
    """
    chosen, rows = list(elastic.grid if subnets is None else subnets), tuple(batches)
    labels, inputs = labels_of(rows), random_arrays(elastic, settings)
    compared = predict(elastic.at(Subnet()), rows) if reference is None else reference
    reference_metric = main_metric(metric_of(task, labels, compared))
    deploying = _Deploying(elastic, settings, calibration_of(calibration) if settings.is_int8 else ())
    with TemporaryDirectory(prefix="dynabert-") as scratch:
        forms: list[_Form] = []
        for done, subnet in enumerate(chosen):
            tell(progress, "predict", done, len(chosen))
            forms.append(deploying.form(subnet, Path(scratch) / str(done)))
        tell(progress, "predict", len(chosen), len(chosen))
        qualities = [
            quality_of(task, labels, answers(form.session, rows), compared, reference_metric) for form in forms
        ]
        sessions = {subnet: form.session for subnet, form in zip(chosen, forms, strict=True)}
        times = timings(sessions, inputs, repeats=settings.repeats, progress=progress)
    context = context_of(
        task,
        n_rows=len(labels),
        reference=reference_metric,
        precision=settings.dtype,
        latency=settings,
        machine=machine_of(elastic.model.device, n_threads=deploying.n_threads, engine=deploying.name),
        fingerprint=fingerprint_of(elastic, chosen, rows),
    )
    found = []
    for subnet, form, quality in zip(chosen, forms, qualities, strict=True):
        sizes = {"file_bytes": form.file_bytes, "peak_bytes": form.peak_bytes}
        cost = cost_of(elastic, subnet, context.seq_len, times[subnet], **sizes)
        found.append(measurement_of(elastic, subnet, quality, cost))
    return Sweep(tuple(found), context)


@dataclass(frozen=True)
class _Form:
    """A size that has been written and opened."""

    session: Session
    file_bytes: int
    peak_bytes: int


class _Deploying:
    """Writing sizes of a network for one engine.

    :param ranges: calibration rows.
    """

    def __init__(self, elastic: ElasticModel, settings: LatencySettings, ranges: Sequence[Inputs]) -> None:
        self.elastic, self.settings, self.ranges = elastic, settings, ranges
        self.engine = computing_engine(settings.engine, settings.dtype)
        self.name = f"{settings.engine} {self.engine.version}"
        self.n_threads = settings.n_threads or torch.get_num_threads()

    def form(self, subnet: Subnet, folder: Path) -> _Form:
        """Write a size to a new folder, open it, and weigh it."""
        engine, dtype = self.settings.engine, self.settings.dtype
        folder.mkdir()
        write_subnet(self.engine, self.elastic, subnet, folder, dtype=dtype, int8=Int8(self.ranges))
        largest = max(self.settings.shapes, key=math.prod)
        return _Form(
            self.engine.open(folder, dtype=dtype, n_threads=self.n_threads),
            n_bytes(folder),
            footprint(folder, engine=engine, dtype=dtype, n_threads=self.n_threads, shape=largest),
        )


def random_arrays(elastic: ElasticModel, settings: LatencySettings) -> dict[tuple[int, int], Inputs]:
    """What `dynabert.measure.random_inputs` gives, as engines take it."""
    inputs = random_inputs(elastic.model, settings)
    return {shape: {name: rows.numpy() for name, rows in given.items()} for shape, given in inputs.items()}


def write_subnet(
    engine: Engine,
    elastic: ElasticModel,
    subnet: Subnet,
    folder: Path,
    *,
    dtype: str,
    int8: Int8 = UNCALIBRATED,
) -> None:
    """Cut a Subnet out and have an engine write it, see `dynabert.engines.Engine.write`."""
    small = elastic.extract(subnet).eval()
    engine.write(small, folder, dtype=dtype, int8=int8)


def answers(session: Session, batches: Iterable[Batch]) -> np.ndarray:
    """Logits of some rows by an engine, shape (rows, n_labels), in the order of `dynabert.measure.predict`."""
    logits, ids = [], []
    for batch in batches:
        logits.append(session({name: rows.numpy() for name, rows in batch.inputs.items()}))
        ids.append(batch.ids.numpy())
    return in_row_order(logits, ids)


def parity_of(elastic: ElasticModel, subnet: Subnet, session: Session, rows: Sequence[Batch], *, task: Task) -> Parity:
    """How far a session is from the Subnet and the full network that it was made from.

    :param rows: with labels.
    :param task: says how predictions are judged.
    """
    labels = labels_of(rows)
    file, same, full = answers(session, rows), predict(elastic.at(subnet), rows), predict(elastic.at(Subnet()), rows)
    metrics = [main_metric(metric_of(task, labels, logits)) for logits in (file, same, full)]
    difference = paired_difference(ROW_METRICS[task.primary_metric], labels, file, same)
    if task.is_regression:
        pearson = ROW_METRICS["pearson"]
        alike, agreement = pearson(same[:, 0], file), pearson(full[:, 0], file)
        flips = None
    else:
        said, own, whole = (logits.argmax(axis=1) for logits in (file, same, full))
        alike, agreement = float(np.mean(said == own)), float(np.mean(said == whole))
        flips = float(np.mean((whole == labels) & (said != labels)))
    return Parity(
        n_rows=len(labels),
        max_difference=float(np.abs(file - same).max()),
        metric=metrics[0],
        torch_metric=metrics[1],
        difference_low=difference.low,
        difference_high=difference.high,
        full_metric=metrics[2],
        same_size=alike,
        agreement=agreement,
        negative_flips=flips,
    )


def calibration_of(batches: Iterable[Batch], n: int = N_CALIBRATION) -> list[Inputs]:
    """Rows to calibrate with, one by one at their own lengths, spread over all batches."""
    rows = [batch.part(place, 1) for batch in batches for place in range(len(batch))]
    n = min(n, len(rows))
    chosen = (rows[number * len(rows) // n] for number in range(n))
    return [{name: part.numpy() for name, part in row.inputs.items()} for row in chosen]


def n_bytes(files: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(path.stat().st_size for path in (files, *files.rglob("*")) if path.is_file())
