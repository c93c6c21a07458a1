"""A Subnet as a file that runs fast where it is deployed, and the proof that it computes the same.

The folder holds the engine's files, the tokenizer, and ``export.json``: what it is, how to run it, and how far it is
from the network that it was made from. An fp32 file that differs by more than rounding is not written; a file in int8
or bf16 that costs more of the metric than allowed is refused, or keeps its most sensitive layers in fp32.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import torch

from dynabert.batches import Batch
from dynabert.deployed import answers, calibration_of, n_bytes, write_subnet
from dynabert.elastic import ElasticModel
from dynabert.engines import Engine, Inputs, Session, engine_of
from dynabert.errors import ModelFileError, SettingError, one_of
from dynabert.files import publish_folder, write_json
from dynabert.loading import load_tokenizer
from dynabert.measure import labels_of, main_metric, predict, random_inputs
from dynabert.results import Saved, load_result
from dynabert.statistics import ROW_METRICS
from dynabert.subnet import Subnet
from dynabert.sweep import LatencySettings, Timing
from dynabert.tasks import Task, metric_of
from dynabert.timing import Progress, tell, timings

EXPORT_FILE = "export.json"
FORMAT_VERSION = 1
FP32_TOLERANCE = 1e-4
"""Largest difference of a logit between an fp32 file and PyTorch that is taken for rounding."""

OnDrop = Literal["refuse", "fallback"]


@dataclass(frozen=True)
class ExportSettings:
    """How a Subnet is exported.

    :param engine: a key of `dynabert.sweep.ENGINE_DTYPES`.
    :param dtype: one of its types.
    :param max_metric_drop: of the main metric, in its own unit (0.01 is one point of accuracy): how much less than the
        same Subnet in PyTorch and fp32 the file may reach.
    :param on_drop: what happens beyond that: ``refuse``, or ``fallback`` to fp32 for as few layers as it takes, the
        most sensitive first.
    :param shape: batch and seq at which the file is timed.
    :param n_threads: of a call; None takes what PyTorch is set to.
    """

    engine: str = "openvino"
    dtype: str = "fp32"
    max_metric_drop: float = 0.01
    on_drop: OnDrop = "refuse"
    shape: tuple[int, int] = (1, 128)
    n_threads: int | None = None

    def __post_init__(self) -> None:
        if self.on_drop not in get_args(OnDrop):
            raise SettingError(one_of("on_drop", self.on_drop, get_args(OnDrop)))
        if not self.max_metric_drop >= 0:
            raise SettingError(f"max_metric_drop {self.max_metric_drop} must be 0 or more, for instance 0.01")
        self.latency  # checks the rest  # noqa: B018

    @property
    def latency(self) -> LatencySettings:
        """How the file is timed."""
        batch, seq = self.shape
        return LatencySettings((batch,), (seq,), 20, self.dtype, self.engine, self.n_threads)


@dataclass(frozen=True)
class Parity:
    """How far a file is from PyTorch and fp32, on the validation rows; metrics in their own unit.

    :param max_difference: of a logit, against the same Subnet.
    :param metric: of the file.
    :param torch_metric: of the same Subnet in PyTorch.
    :param full_metric: of the full network in PyTorch.
    :param same_size: share of the rows with the class that the same Subnet says; of a regression, their correlation.
    :param agreement: likewise, with the full network.
    :param negative_flips: share of the rows that the full network has right and the file wrong; None for a regression.
    """

    n_rows: int
    max_difference: float
    metric: float
    torch_metric: float
    full_metric: float
    same_size: float
    agreement: float
    negative_flips: float | None


@dataclass(frozen=True)
class Exported:
    """A file that an engine runs, and what is known of it.

    :param version: of the engine's package.
    :param unquantised: executed layers that int8 left in fp32.
    :param n_layers: executed.
    :param n_fused: attention layers that the engine computes in one kernel; None where it does not say.
    :param timing: on this machine.
    """

    subnet: str
    engine: str
    version: str
    dtype: str
    unquantised: tuple[int, ...]
    n_layers: int
    n_fused: int | None
    file_bytes: int
    timing: Timing
    parity: Parity

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}


@dataclass(frozen=True)
class Checks:
    """Rows that an export is checked on.

    :param select: with labels: on them layers are left unquantised, and from them come the ranges of int8.
    :param validation: with labels: the last check, and what is reported.
    """

    task: Task
    select: Sequence[Batch]
    validation: Sequence[Batch]


def export(
    elastic: ElasticModel,
    subnet: Subnet,
    folder: str | Path,
    *,
    checks: Checks,
    settings: ExportSettings | None = None,
    save_tokenizer: Callable[[Path], object] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a Subnet to a folder of files that an engine runs; it appears whole and checked, or not at all.

    :param elastic: the network, with the head of the task, on the CPU.
    :param folder: where to; an earlier export is replaced.
    :param save_tokenizer: writes the tokenizer's files to a folder.
    :param progress: told how far it is.
    :raises SettingError: an engine that is not installed.
    :raises ModelFileError: the file is further from the network than allowed; nothing is written.
    """
    settings = settings or ExportSettings()
    engine = engine_of(settings.engine, settings.dtype)
    making = _Making(elastic, subnet, engine, settings, checks, progress)
    with publish_folder(folder) as temporary:
        unquantised = making.write_within_limits(temporary)
        if save_tokenizer is not None:
            save_tokenizer(temporary)
        exported = making.described(temporary, unquantised)
        making.check(exported)
        labels = elastic.model.config.id2label
        write_json(temporary / EXPORT_FILE, {**exported.to_dict(), "id2label": labels})
    return exported


class _Making:
    """One export on its way."""

    def __init__(
        self,
        elastic: ElasticModel,
        subnet: Subnet,
        engine: Engine,
        settings: ExportSettings,
        checks: Checks,
        progress: Progress | None,
    ) -> None:
        self.elastic, self.subnet, self.engine = elastic, subnet, engine
        self.settings, self.checks, self.progress = settings, checks, progress
        self.n_threads = settings.n_threads or torch.get_num_threads()
        self.is_int8 = settings.dtype.startswith("int8")
        self.calibration: Sequence[Inputs] = calibration_of(checks.select) if self.is_int8 else ()

    def write(self, folder: Path, unquantised: Sequence[int]) -> Session:
        write_subnet(
            self.engine,
            self.elastic,
            self.subnet,
            folder,
            dtype=self.settings.dtype,
            calibration=self.calibration,
            unquantised=unquantised,
        )
        return self.engine.open(folder, dtype=self.settings.dtype, n_threads=self.n_threads)

    def write_within_limits(self, folder: Path) -> tuple[int, ...]:
        """Write the file, with as few layers in fp32 as it takes to keep the metric of the `select` rows.

        :return: those layers.
        :raises ModelFileError: it cannot be kept, or may not be by those means.
        """
        if self.settings.dtype == "fp32":
            self.write(folder, ())
            return ()
        wanted = predict(self.elastic.at(self.subnet), self.checks.select)
        labels, metric = labels_of(self.checks.select), ROW_METRICS[self.checks.task.primary_metric]
        lowest = metric(labels, wanted) - self.settings.max_metric_drop
        n_layers = len(self.elastic.slices(self.subnet))
        spared: tuple[int, ...] = ()
        order: list[int] | None = None
        while True:
            reached = metric(labels, answers(self.write(_emptied(folder), spared), self.checks.select))
            if reached >= lowest:
                return tuple(sorted(spared))
            drop = lowest + self.settings.max_metric_drop - reached
            if self.settings.on_drop == "refuse" or not self.is_int8 or len(spared) == n_layers:
                raise ModelFileError(
                    f"{self.subnet.name} in {self.settings.dtype} loses {drop:.4f} of the metric on the select rows, "
                    f"more than {self.settings.max_metric_drop:g}; allow more by --max-metric-drop, keep sensitive "
                    f"layers in fp32 by --on-drop fallback, or take fp32"
                )
            order = order or self._most_sensitive_first(wanted, n_layers)
            spared = (*spared, order[len(spared)])

    def _most_sensitive_first(self, wanted: np.ndarray, n_layers: int) -> list[int]:
        """The layers, that one first without whose quantisation the logits of the `select` rows are nearest."""
        errors = []
        for layer in range(n_layers):
            tell(self.progress, "predict", layer, n_layers)
            with TemporaryDirectory(prefix="dynabert-") as scratch:
                logits = answers(self.write(Path(scratch), (layer,)), self.checks.select)
            errors.append(float(np.square(logits - wanted).mean()))
        tell(self.progress, "predict", n_layers, n_layers)
        return sorted(range(n_layers), key=errors.__getitem__)

    def described(self, folder: Path, unquantised: tuple[int, ...]) -> Exported:
        """What is known of the file."""
        session = self.engine.open(folder, dtype=self.settings.dtype, n_threads=self.n_threads)
        latency = self.settings.latency
        inputs = {
            shape: {name: rows.numpy() for name, rows in given.items()}
            for shape, given in random_inputs(self.elastic.model, latency).items()
        }
        ((timing,),) = timings({"": session}, inputs, repeats=latency.repeats, progress=self.progress).values()
        return Exported(
            subnet=self.subnet.name,
            engine=self.settings.engine,
            version=self.engine.version,
            dtype=self.settings.dtype,
            unquantised=unquantised,
            n_layers=len(self.elastic.slices(self.subnet)),
            n_fused=session.n_fused,
            file_bytes=n_bytes(folder),
            timing=timing,
            parity=parity_of(self.elastic, self.subnet, session, self.checks),
        )

    def check(self, exported: Exported) -> None:
        """The last word: the whole validation split.

        :raises ModelFileError: further from PyTorch than allowed.
        """
        parity = exported.parity
        if self.settings.dtype == "fp32":
            if not parity.max_difference <= FP32_TOLERANCE:
                raise ModelFileError(
                    f"the {exported.engine} file of {exported.subnet} differs from PyTorch by "
                    f"{parity.max_difference:.2g} in a logit, more than {FP32_TOLERANCE:g}: it does not compute the "
                    f"same; choose another --engine"
                )
            return
        drop = parity.torch_metric - parity.metric
        if not drop <= self.settings.max_metric_drop + 1e-12:
            raise ModelFileError(
                f"{exported.subnet} in {exported.dtype} loses {drop:.4f} of the metric on the validation rows, more "
                f"than {self.settings.max_metric_drop:g}; allow more by --max-metric-drop, or take fp32"
            )


def parity_of(elastic: ElasticModel, subnet: Subnet, session: Session, checks: Checks) -> Parity:
    """How far a session is from the Subnet and the full network that it was made from, on the validation rows."""
    rows, task = checks.validation, checks.task
    labels = labels_of(rows)
    file, same, full = answers(session, rows), predict(elastic.at(subnet), rows), predict(elastic.at(Subnet()), rows)
    metrics = [main_metric(metric_of(task, labels, logits)) for logits in (file, same, full)]
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
        full_metric=metrics[2],
        same_size=alike,
        agreement=agreement,
        negative_flips=flips,
    )


def _emptied(folder: Path) -> Path:
    """A folder without the files of an earlier try."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return folder


def export_run(
    out: str | Path,
    subnet: Subnet,
    folder: str | Path,
    *,
    settings: ExportSettings | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Export a Subnet of a finished run, checked on the rows of the run; see `export`.

    :param out: the run folder.
    :param folder: where to.
    :raises DataError: the rows are not those of the run any more.
    """
    elastic, tokenizer = load_result(out), load_tokenizer(Path(out) / "elastic")
    checked_target(Path(folder), Path(out), kept_by=EXPORT_FILE)
    prepared = Saved.of(out).rows(tokenizer)
    return export(
        elastic,
        subnet,
        folder,
        checks=Checks(prepared.task, tuple(prepared.select), tuple(prepared.validation)),
        settings=settings,
        save_tokenizer=tokenizer.save_pretrained,
        progress=progress,
    )


def checked_target(folder: Path, out: Path, *, kept_by: str) -> None:
    """Refuse to write where something else lies.

    :param kept_by: the file that a folder has which may be replaced.
    :raises SettingError: a file, a folder inside the run, or one that holds something else.
    """
    if folder.is_file():
        raise SettingError(f"{folder} is a file; give the name of a folder")
    if folder.resolve().is_relative_to(out.resolve()):
        raise SettingError(f"{folder} lies inside the run folder {out}; give an --out of its own")
    if folder.exists() and any(folder.iterdir()) and not (folder / kept_by).exists():
        raise SettingError(f"{folder} is not empty and holds no {kept_by}; give another --out")
