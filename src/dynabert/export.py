"""A Subnet as a file that runs fast where it is deployed, and the proof that it computes the same.

The folder holds the engine's files, the tokenizer, ``export.json`` (what it is, how to run it, how far it is from the
network that it was made from) and a ``README.md`` that says the same to a reader. An fp32 file that differs by more
than rounding is not written; a file in int8 or bf16 that costs more of the metric than allowed is refused, or keeps its
most sensitive layers in fp32.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import torch

from dynabert.batches import Batch
from dynabert.card_parts import Origin
from dynabert.deployed import answers, calibration_of, n_bytes, parity_of, random_arrays, write_subnet
from dynabert.elastic import ElasticModel, longest_input
from dynabert.engines import Inputs, Int8, Session, computing_engine, engine_of, input_names
from dynabert.errors import ModelFileError, SettingError, one_of
from dynabert.export_card import Texts, export_card
from dynabert.exported import FULL_BITS, SAFE_BITS, Exported, ExportIndex, Provenance
from dynabert.extraction import check_place
from dynabert.files import atomic_write_text, write_json
from dynabert.folders import CARD, publish_folder
from dynabert.loading import load_tokenizer
from dynabert.measure import check_length, fingerprint_of, labels_of, machine_of, predict
from dynabert.measurement import LatencySettings, listed
from dynabert.model_files import EXPORT_FILE
from dynabert.processor import int8_overflows
from dynabert.results import load_result
from dynabert.run_card import origin_of
from dynabert.saved import Saved
from dynabert.statistics import ROW_METRICS
from dynabert.subnet import Subnet
from dynabert.tasks import Task
from dynabert.timing import Progress, tell, timings

FP32_TOLERANCE = 1e-4
"""Largest difference of a logit between an fp32 file and PyTorch that is taken for rounding."""

_METRIC_ROUNDING = 1e-12  # of two equal metrics that were added up differently

SaveTokenizer = Callable[[Path], object]
"""Writes the files of a tokenizer to a folder."""

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
    save_tokenizer: SaveTokenizer | None = None,
    origin: Origin | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a Subnet to a folder of files that an engine runs; it appears whole and checked, or not at all.

    :param elastic: the network, with the head of the task, on the CPU.
    :param folder: where to; an earlier export is replaced.
    :param save_tokenizer: writes the tokenizer's files to a folder.
    :param origin: what the network was made from, for the folder's card.
    :param progress: told how far it is.
    :raises SettingError: an engine that is not installed.
    :raises ModelFileError: the file is further from the network than allowed; nothing is written.
    """
    settings = settings or ExportSettings()
    making = _Making(elastic, subnet, settings, checks, progress)
    with publish_folder(folder) as temporary:
        written = making.write_within_limits(temporary)
        exported = making.described(temporary, ".", written.unquantised)
        making.check(exported, select_drop=written.drop)
        making.finish(temporary, (exported,), save_tokenizer=save_tokenizer, origin=origin)
    return exported


def export_sharing(
    elastic: ElasticModel,
    subnets: Sequence[Subnet],
    folder: str | Path,
    *,
    checks: Checks,
    settings: ExportSettings | None = None,
    save_tokenizer: SaveTokenizer | None = None,
    origin: Origin | None = None,
    progress: Progress | None = None,
) -> tuple[Exported, ...]:
    """Write several Subnets as ONNX graphs in fp32 that share one file of weights; for the parameters see `export`.

    :return: what is known of each, in their order.
    :raises SettingError: an engine or dtype that cannot share weights, or no Subnets.
    :raises ModelFileError: a file is further from the network than rounding; nothing is written.
    """
    settings = settings or ExportSettings(engine="onnxruntime")
    if (settings.engine, settings.dtype) != ("onnxruntime", "fp32"):
        raise SettingError(
            f"sizes share their weights as onnxruntime fp32 alone, not as {settings.engine} {settings.dtype}; export "
            f"them one by one, or take --engine onnxruntime --dtype fp32"
        )
    if not subnets:
        raise SettingError("no sizes given; name some, for instance w1-d1,w0.5-d0.75")
    engine_of(settings.engine, settings.dtype)
    from dynabert.engines.sharing import WEIGHTS, write_sharing

    with publish_folder(folder) as temporary:
        files = write_sharing(elastic, subnets, temporary)
        sizes = []
        for done, (subnet, file) in enumerate(zip(subnets, files, strict=True)):
            tell(progress, "predict", done, len(subnets))
            making = _Making(elastic, subnet, settings, checks, None)
            sizes.append(making.described(temporary, file, ()))
            making.check(sizes[-1])
        tell(progress, "predict", len(subnets), len(subnets))
        shared = n_bytes(temporary / WEIGHTS)
        making.finish(temporary, tuple(sizes), save_tokenizer=save_tokenizer, origin=origin, shared_bytes=shared)
    return tuple(sizes)


@dataclass(frozen=True)
class _Written:
    """A file that keeps the metric of the `select` rows.

    :param unquantised: layers that are in fp32.
    :param drop: what it costs of the metric.
    """

    unquantised: tuple[int, ...] = ()
    drop: float = 0.0


class _Making:
    """One export on its way."""

    def __init__(
        self,
        elastic: ElasticModel,
        subnet: Subnet,
        settings: ExportSettings,
        checks: Checks,
        progress: Progress | None,
    ) -> None:
        check_length(elastic.model, settings.latency)
        self.elastic, self.subnet = elastic, subnet
        self.engine = computing_engine(settings.engine, settings.dtype)
        self.settings, self.checks, self.progress = settings, checks, progress
        self.n_threads = settings.n_threads or torch.get_num_threads()
        self.is_int8 = settings.latency.is_int8
        self.calibration: Sequence[Inputs] = calibration_of(checks.select) if self.is_int8 else ()

    def write(self, folder: Path, unquantised: Sequence[int]) -> Session:
        write_subnet(
            self.engine,
            self.elastic,
            self.subnet,
            folder,
            dtype=self.settings.dtype,
            int8=Int8(self.calibration, unquantised),
        )
        return self.engine.open(folder, dtype=self.settings.dtype, n_threads=self.n_threads)

    def is_within(self, drop: float) -> bool:
        """Whether a file may lose so much of the metric."""
        return drop <= self.settings.max_metric_drop + _METRIC_ROUNDING

    def write_within_limits(self, folder: Path) -> _Written:
        """Write the file, with as few layers in fp32 as it takes to keep the metric of the `select` rows.

        :raises ModelFileError: it cannot be kept, or may not be by those means.
        """
        if self.settings.dtype == "fp32":
            self.write(folder, ())
            return _Written()
        wanted = predict(self.elastic.at(self.subnet), self.checks.select)
        labels, metric = labels_of(self.checks.select), ROW_METRICS[self.checks.task.primary_metric]
        full, n_layers = metric(labels, wanted), len(self.elastic.slices(self.subnet))
        spared: tuple[int, ...] = ()
        order: list[int] | None = None
        while True:
            drop = full - metric(labels, answers(self.write(_emptied(folder), spared), self.checks.select))
            if self.is_within(drop):
                return _Written(tuple(sorted(spared)), drop)
            refuses = self.settings.on_drop == "refuse"
            if refuses or not self.is_int8 or len(spared) == n_layers:
                fallback = ", keep sensitive layers in fp32 by --on-drop fallback" if refuses and self.is_int8 else ""
                raise ModelFileError(
                    f"{self.subnet.name} in {self.settings.dtype} loses {drop:.4f} of the metric on the select rows, "
                    f"more than {self.settings.max_metric_drop:g}; allow more by --max-metric-drop{fallback}, or take "
                    f"fp32"
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

    def described(self, folder: Path, file: str, unquantised: tuple[int, ...]) -> Exported:
        """What is known of the file, which the engine opens by its name in the folder."""
        session = self.engine.open(folder / file, dtype=self.settings.dtype, n_threads=self.n_threads)
        latency = self.settings.latency
        inputs = random_arrays(self.elastic, latency)
        ((timing,),) = timings({"": session}, inputs, repeats=latency.repeats, progress=self.progress).values()
        return Exported(
            subnet=self.subnet.name,
            file=file,
            engine=self.settings.engine,
            version=self.engine.version,
            dtype=self.settings.dtype,
            unquantised=unquantised,
            n_layers=len(self.elastic.slices(self.subnet)),
            n_fused=session.n_fused,
            file_bytes=n_bytes(folder / file),
            timing=timing,
            parity=parity_of(self.elastic, self.subnet, session, self.checks.validation, task=self.checks.task),
        )

    def check(self, exported: Exported, *, select_drop: float = 0.0) -> None:
        """The last word: the whole validation split.

        :param select_drop: what the file loses of the metric on the `select` rows, by which it was made.
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
        if not self.is_within(drop):
            spared = f", layers {listed(exported.unquantised)} in fp32" if exported.unquantised else ""
            raise ModelFileError(
                f"{exported.subnet} in {exported.dtype} loses {drop:.4f} (95 % interval {-parity.difference_high:.4f} "
                f"to {-parity.difference_low:.4f}) of the metric on the validation rows, more than "
                f"{self.settings.max_metric_drop:g}, but {select_drop:.4f} on the select rows by which it was "
                f"made{spared}; what these cannot show is not mended by --on-drop: allow more by --max-metric-drop, or "
                f"take fp32"
            )

    def finish(
        self,
        folder: Path,
        sizes: tuple[Exported, ...],
        *,
        save_tokenizer: SaveTokenizer | None,
        origin: Origin | None,
        shared_bytes: int = 0,
    ) -> None:
        """Write what lies beside the engine's files: tokenizer, index and card."""
        if save_tokenizer is not None:
            save_tokenizer(folder)
        model, task = self.elastic.model, self.checks.task
        names = {} if task.is_regression else model.config.id2label or {}
        labels = {int(number): str(name) for number, name in names.items()}
        index = ExportIndex(sizes, labels, longest_input(model), self.provenance(), shared_bytes)
        write_json(folder / EXPORT_FILE, index.to_dict())
        given = self.checks.validation[0].inputs
        texts = Texts(
            columns={name: name in given for name in input_names(model)},
            pad_id=model.config.pad_token_id or 0,
        )
        card = export_card(index, folder, metric=task.primary_metric, texts=texts, origin=origin)
        atomic_write_text(folder / CARD, card)

    def provenance(self) -> Provenance:
        """Where the files come from."""
        settings = self.settings
        return Provenance(
            machine=machine_of(
                self.elastic.model.device,
                n_threads=self.n_threads,
                engine=f"{settings.engine} {self.engine.version}",
            ),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            fingerprint=fingerprint_of(self.elastic, (), ()),
            options=self.engine.options(dtype=settings.dtype, n_threads=self.n_threads),
            max_metric_drop=None if settings.dtype == "fp32" else settings.max_metric_drop,
            weight_bits=(SAFE_BITS if int8_overflows() else FULL_BITS) if self.is_int8 else None,
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
    subnets: Sequence[Subnet],
    folder: str | Path,
    *,
    settings: ExportSettings | None = None,
    progress: Progress | None = None,
) -> tuple[Exported, ...]:
    """Export Subnets of a finished run, checked on the rows of the run; see `export` and `export_sharing`.

    :param out: the run folder.
    :param subnets: one, or several that share their weights.
    :param folder: where to.
    :raises SettingError: a folder that holds something else than an export, or lies inside the run folder.
    :raises DataError: the rows are not those of the run any more.
    """
    elastic, tokenizer = load_result(out), load_tokenizer(Path(out) / "elastic")
    check_place(Path(folder), kept_by=EXPORT_FILE, outside=Path(out), what="the run folder")
    prepared = Saved.of(out).rows(tokenizer)
    checks = Checks(prepared.task, tuple(prepared.select), tuple(prepared.validation))
    common: dict[str, Any] = {
        "save_tokenizer": tokenizer.save_pretrained,
        "origin": origin_of(Path(out)),
        "settings": settings,
        "progress": progress,
    }
    if len(subnets) == 1:
        return (export(elastic, subnets[0], folder, checks=checks, **common),)
    return export_sharing(elastic, subnets, folder, checks=checks, **common)
