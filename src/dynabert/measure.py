"""Measuring Subnets: quality on labelled rows, parameters, FLOPs, and latency on this machine.

The results (`Sweep`, `Measurement`) are plain values from `dynabert.sweep`; they are named here too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers
from torch import nn

from dynabert.batches import Batch, in_row_order
from dynabert.distributed import ALONE, World
from dynabert.elastic import ElasticModel, count_params, longest_input
from dynabert.errors import SettingError
from dynabert.modeling import loads_with
from dynabert.precision import AUTO, PRECISIONS, TrainingViews, check_precision, instructions, precision_on
from dynabert.processor import cpu_name
from dynabert.stack import evaluating
from dynabert.statistics import ROW_METRICS, bootstrap_interval
from dynabert.subnet import Subnet, encoder_flops
from dynabert.sweep import Context, Cost, LatencySettings, Machine, Measurement, Quality, Sweep, Timing
from dynabert.tasks import Task, metric_of
from dynabert.timing import Progress, n_cores, nothing, tell, timings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dynabert.distill import Evaluate
    from dynabert.recipes import Stage

__all__ = [
    "Context",
    "Cost",
    "LatencySettings",
    "Machine",
    "Measurement",
    "Progress",
    "Quality",
    "Sweep",
    "Timing",
    "fingerprint_of",
    "labels_of",
    "latencies",
    "machine_of",
    "main_metric",
    "measure",
    "predict",
    "quality_of",
    "selection_score",
    "views_of",
]

DEFAULT_LATENCY = LatencySettings()
_DTYPES = {name: dtype or torch.float32 for name, dtype in PRECISIONS.items()}


def predict(view: "PreTrainedModel", batches: Iterable[Batch], *, world: World = ALONE) -> np.ndarray:
    """The logits of a model or view on some rows.

    :param view: with a task head. It runs in eval mode, and is left in the mode it was in.
    :param batches: each row once, as `dynabert.batches.Batches` without shuffle gives them; the same on every rank.
    :param world: the ranks that predict together. They take turns by whole batches, so that the logits do not depend on
        how many there are.
    :return: float32, shape (rows, n_labels), in the order of ascending row ids; the same on every rank.
    :raises SettingError: a model without a task head.
    :raises DataError: no rows.
    """
    device = next(view.parameters()).device
    logits: list[torch.Tensor] = []
    ids: list[list[np.ndarray]] = [[] for _ in range(world.size)]
    with evaluating(view), torch.inference_mode():
        for number, batch in enumerate(batches):
            owner = number % world.size
            ids[owner].append(batch.ids.cpu().numpy())
            if owner != world.rank:
                continue
            output = view(**batch.to(device).inputs)
            if "logits" not in output:
                raise SettingError(
                    f"{type(view).__name__} has no task head; load it with one, for instance by n_labels"
                )
            logits.append(output.logits.float().cpu())
    mine = torch.cat(logits) if logits else torch.zeros(0, view.config.num_labels or 0)
    return in_row_order([world.gather_rows(mine).numpy()], [part for parts in ids for part in parts])


def labels_of(batches: Iterable[Batch]) -> np.ndarray:
    """The labels of some rows, in the order of `predict`.

    :return: shape (rows,): int64 class numbers, or float32 scores.
    :raises SettingError: rows without labels.
    :raises DataError: no rows.
    """
    labels: list[np.ndarray] = []
    ids: list[np.ndarray] = []
    for batch in batches:
        if batch.labels is None:
            raise SettingError("these rows have no labels, so nothing can be measured on them; give rows with labels")
        labels.append(batch.labels.cpu().numpy())
        ids.append(batch.ids.cpu().numpy())
    return in_row_order(labels, ids)


def measure(
    elastic: ElasticModel,
    batches: Iterable[Batch],
    *,
    task: Task,
    subnets: Iterable[Subnet] | None = None,
    reference: np.ndarray | None = None,
    latency: LatencySettings | None = DEFAULT_LATENCY,
    precision: str = "fp32",
    fingerprint: str | None = None,
    progress: Progress | None = None,
    world: World = ALONE,
) -> Sweep:
    """Measure Subnets of a network: how good they are, what they cost, how fast they are here.

    :param elastic: the network, with the head of the task.
    :param batches: each row once, with labels.
    :param task: says how predictions are judged.
    :param subnets: which; by default the grid.
    :param reference: logits of the network to compare with, the teacher for instance, shape (rows, n_labels), in the
        order of `predict`; by default those of this network at full size.
    :param latency: how to measure it, see `latencies`; None leaves it out.
    :param precision: of the predictions, see `dynabert.precision`.
    :param fingerprint: says what was measured; by default made from the weights, the layers and the rows.
    :param progress: told how far it is.
    :param world: the ranks that predict together; rank 0 alone measures latency, and its rows alone have one.
    :return: one row for each Subnet, in their order.
    :raises SettingError: rows without labels, no Subnets, a Subnet that the network does not have, a model without a
        task head, an unknown precision, or a latency length that the model cannot take.
    :raises DataError: no rows, or logits that do not fit the task.
    :raises NonFiniteError: NaN or infinity among the logits.
    """
    precision = precision_on(elastic.model.device, precision)
    if latency is not None and (latency.engine != "torch" or latency.dtype not in _DTYPES):
        raise SettingError(
            f"latency of {latency.engine} {latency.dtype} is not that of the network in memory; use measure_deployed, "
            f"or engine torch with {' or '.join(_DTYPES)}"
        )
    chosen = list(elastic.grid if subnets is None else subnets)
    rows = tuple(batches)
    labels = labels_of(rows)
    if latency is not None:
        random_inputs(elastic.model, latency)  # what cannot be measured is said before the predictions are made
    view_of = views_of(elastic, precision)
    compared = predict(view_of(Subnet()), rows, world=world) if reference is None else reference
    reference_metric = main_metric(metric_of(task, labels, compared))
    qualities = []
    for done, subnet in enumerate(chosen):
        tell(progress, "predict", done, len(chosen))
        known = reference is None and subnet == Subnet()
        logits = compared if known else predict(view_of(subnet), rows, world=world)
        qualities.append(quality_of(task, labels, logits, compared, reference_metric))
    tell(progress, "predict", len(chosen), len(chosen))
    times = {}
    if latency is not None and world.is_first:
        times = latencies(elastic, chosen, settings=latency, progress=progress)
    context = context_of(
        task,
        n_rows=len(labels),
        reference=reference_metric,
        precision=precision,
        latency=latency,
        machine=machine_of(elastic.model.device, n_threads=None if latency is None else latency.n_threads),
        fingerprint=fingerprint or fingerprint_of(elastic, chosen, rows),
    )
    return Sweep(
        tuple(
            measurement_of(elastic, subnet, quality, cost_of(elastic, subnet, context.seq_len, times.get(subnet, ())))
            for subnet, quality in zip(chosen, qualities, strict=True)
        ),
        context,
    )


def context_of(
    task: Task,
    *,
    n_rows: int,
    reference: float,
    precision: str,
    latency: LatencySettings | None,
    machine: Machine,
    fingerprint: str,
) -> Context:
    """What the rows of a Sweep that is made now have in common, see `Context`."""
    return Context(
        task=task.name,
        metric=task.primary_metric,
        n_rows=n_rows,
        reference=reference,
        precision=precision,
        latency=latency,
        machine=machine,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=fingerprint,
        seq_len=128 if latency is None else latency.seq[0],
    )


def selection_score(
    batches: Iterable[Batch],
    task: Task,
    *,
    subnets: Sequence[Subnet] | None = None,
    precision: str = AUTO,
    world: World = ALONE,
) -> "Evaluate":
    """The score by which training chooses weights: the mean of the main metric over the Subnets of a stage.

    :param batches: held-out rows, each once, with labels; read once and kept.
    :param task: says how predictions are judged.
    :param subnets: others than those of the stage's grid.
    :param precision: of the matrix products, see `dynabert.precision`.
    :param world: the ranks that predict together.
    :return: a function of an `ElasticModel` and a `Stage`, for `dynabert.distill`.
    :raises SettingError: rows without labels, or an unknown precision.
    """
    check_precision(precision)
    rows = tuple(batches)
    labels = labels_of(rows)

    def evaluate(elastic: ElasticModel, stage: "Stage") -> float:
        view_of = views_of(elastic, precision)
        chosen = stage.grid(elastic.grid) if subnets is None else subnets
        predicted = (predict(view_of(subnet), rows, world=world) for subnet in chosen)
        return float(np.mean([main_metric(metric_of(task, labels, logits)) for logits in predicted]))

    return evaluate


def latencies(
    elastic: ElasticModel,
    subnets: Sequence[Subnet],
    *,
    settings: LatencySettings = DEFAULT_LATENCY,
    progress: Progress | None = None,
) -> dict[Subnet, tuple[Timing, ...]]:
    """How long one call of each Subnet takes on this machine, extracted, with torch's current number of threads.

    Random tokens without padding. The Subnets take turns in every repeat, so that a machine that slows down does so for
    all, and each timed call follows an untimed one of the same model, as it would in a process that serves it. All the
    small models are in memory together; they share one embedding table.

    :param elastic: the network, on the device to measure on.
    :param subnets: which.
    :param settings: batch, length, data type and number of repeats.
    :param progress: told how far it is.
    :return: of each Subnet the times at every shape of the settings, in their order.
    :raises SettingError: a length that the model cannot take.
    """
    inputs = random_inputs(elastic.model, settings)
    models: dict[Subnet, PreTrainedModel] = {}
    shared: nn.Module | None = None
    for subnet in subnets:
        small = elastic.extract(subnet).eval()
        small.to(_DTYPES[settings.dtype])
        if shared is None:
            shared = small.get_input_embeddings()
        small.set_input_embeddings(shared)
        models[subnet] = small
    on_cpu = elastic.model.device.type == "cpu"
    finish = nothing if on_cpu else torch.cuda.synchronize
    with torch.inference_mode(), threads(settings.n_threads):
        return timings(
            {subnet: partial(_call, small) for subnet, small in models.items()},
            inputs,
            repeats=settings.repeats,
            finish=finish,
            on_cpu=on_cpu,
            progress=progress,
        )


def _call(model: "PreTrainedModel", inputs: Mapping[str, torch.Tensor]) -> None:
    model(**inputs)


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Have PyTorch compute with so many threads meanwhile; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_length(model: "PreTrainedModel", settings: LatencySettings) -> None:
    """Refuse to measure at more tokens than the model has positions for.

    :raises SettingError: it has fewer.
    """
    longest = longest_input(model)
    if max(settings.seq) > longest:
        raise SettingError(
            f"latency at {max(settings.seq)} tokens is too long for this model, which takes {longest}; lower seq"
        )


def random_inputs(
    model: "PreTrainedModel", settings: LatencySettings
) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Token ids and attention mask, (batch, seq) each, without the padding token, for every shape of the settings.

    :raises SettingError: a length that the model cannot take.
    """
    config = model.config
    check_length(model, settings)
    found = {}
    for batch, seq in settings.shapes:
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(0, config.vocab_size - 1, (batch, seq), generator=random)
        if config.pad_token_id is not None:
            ids += ids >= config.pad_token_id
        found[batch, seq] = {
            "input_ids": ids.to(model.device),
            "attention_mask": torch.ones_like(ids, device=model.device),
        }
    return found


def quality_of(
    task: Task, labels: np.ndarray, logits: np.ndarray, compared: np.ndarray, reference_metric: float
) -> Quality:
    """How good predictions are.

    :param task: says how they are judged.
    :param labels: shape (rows,).
    :param logits: the predictions, shape (rows, n_labels).
    :param compared: logits of the network to compare with, likewise.
    :param reference_metric: its main metric.
    """
    metrics = metric_of(task, labels, logits)
    low, high = bootstrap_interval(ROW_METRICS[task.primary_metric], labels, logits)
    if task.is_regression:
        agreement = ROW_METRICS["pearson"](compared.reshape(-1), logits)
    else:
        agreement = float(np.mean(compared.argmax(axis=1) == logits.argmax(axis=1)))
    kept = main_metric(metrics) / reference_metric if reference_metric > 0 else None
    return Quality(metrics=metrics, metric_low=low, metric_high=high, kept=kept, agreement=agreement)


def measurement_of(elastic: ElasticModel, subnet: Subnet, quality: Quality, cost: Cost) -> Measurement:
    """A row of a Sweep.

    :param cost: see `cost_of`.
    """
    slices = elastic.slices(subnet)
    return Measurement(
        subnet=subnet.name,
        n_layers=len(slices),
        of_layers=elastic.shape.n_layers,
        quality=quality,
        cost=cost,
        loads_with=loads_with(elastic.shape, slices),
    )


def cost_of(
    elastic: ElasticModel,
    subnet: Subnet,
    seq_len: int,
    timings: tuple[Timing, ...] = (),
    *,
    file_bytes: int | None = None,
    peak_bytes: int | None = None,
) -> Cost:
    """What a Subnet costs: parameters and FLOPs counted, the rest as it was measured."""
    return Cost(
        n_params=count_params(elastic.at(subnet)),
        flops=encoder_flops(elastic.shape, elastic.slices(subnet), seq_len),
        latency_ms=timings[0].median_ms if timings else None,
        timings=timings,
        file_bytes=file_bytes,
        peak_bytes=peak_bytes,
    )


def views_of(elastic: ElasticModel, precision: str) -> "Callable[[Subnet], PreTrainedModel]":
    """Views by Subnet. In bf16 the weights are copied here: it costs less than a batch, and the copy is never stale."""
    chosen = precision_on(elastic.model.device, precision)
    return elastic.at if chosen == "fp32" else TrainingViews(elastic, precision=chosen).at


def main_metric(metrics: Mapping[str, float]) -> float:
    """The first of some metrics, by which is chosen."""
    return next(iter(metrics.values()))


def machine_of(device: torch.device, *, n_threads: int | None = None, engine: str = "") -> Machine:
    """This machine, with a device of it.

    :param n_threads: other ones than PyTorch is set to.
    :param engine: name and version of what ran the model, where that was not PyTorch alone.
    """
    return Machine(
        cpu=cpu_name(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        n_threads=n_threads or torch.get_num_threads(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        dynabert=version("dynabert"),
        n_cores=n_cores(),
        engine=engine,
        instructions=instructions(),
    )


def fingerprint_of(elastic: ElasticModel, subnets: Sequence[Subnet], rows: Sequence[Batch]) -> str:
    """16 hexadecimal digits that differ when a weight, a kept layer, an input or a label differs."""
    digest = blake2b(digest_size=8)
    for name, tensor in elastic.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(_bytes(tensor))
    digest.update(repr([(subnet.name, elastic.slices(subnet)) for subnet in subnets]).encode())
    for batch in rows:
        for tensor in (*batch.inputs.values(), batch.ids, batch.labels):
            if tensor is not None:
                digest.update(f"{tuple(tensor.shape)} ".encode())
                digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
