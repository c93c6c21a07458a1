"""What all methods that are compared have in common: operating points, predictions, costs; and the Sweep of one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from dynabert.batches import Batch
from dynabert.elastic import ElasticModel, count_params
from dynabert.errors import SettingError, one_of
from dynabert.measure import labels_of, machine_of, main_metric, predict, quality_of
from dynabert.modeling import loads_with
from dynabert.subnet import EncoderShape, LayerSlice, Subnet, encoder_flops
from dynabert.sweep import Context, Cost, Measurement, Sweep
from dynabert.tasks import Task, metric_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Value = TypeVar("Value")

SEQ_LEN = 128
"""Tokens at which FLOPs are counted."""


@dataclass(frozen=True)
class Predicted:
    """The answers of one operating point.

    :param logits: float32, shape (rows, n_labels), in the order of `dynabert.measure.predict`.
    :param n_layers: shape (rows,): layers that each row executed.
    :param flops: shape (rows,): encoder FLOPs of each row at 128 tokens, ramps or student heads included.
    """

    logits: np.ndarray
    n_layers: np.ndarray
    flops: np.ndarray


@dataclass(frozen=True)
class Spent:
    """What a method's training took, counted as in `dynabert.workload`: teachers included, choosing not.

    :param flops: forward and backward passes of the encoder, and of ramps.
    :param n_steps: over all trainings.
    """

    flops: float = 0.0
    n_steps: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.flops + other.flops, self.n_steps + other.n_steps)


class Method(Protocol):
    """A trained method with several operating points."""

    @property
    def name(self) -> str:
        """Its name, as in `dynabert.baselines.METHODS`."""

    @property
    def of_layers(self) -> int:
        """Layers of the full network."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def training_flops(self) -> float:
        """What its training took, see `Spent`."""

    @property
    def n_steps(self) -> int:
        """Training steps, over all of its trainings."""

    def points(self) -> tuple[str, ...]:
        """Operating points by name: Subnet names, or thresholds such as ``s0.1``."""

    def predict(self, point: str, batches: Iterable[Batch]) -> Predicted:
        """The answers at one point, to rows that come once each."""

    def answer(self, point: str, batches: Iterable[Batch]) -> object:
        """The same, run batch by batch as it is served: what takes time is what is timed."""

    def n_params(self, point: str) -> int:
        """Parameters that have to be in memory for one point."""

    def loads_with(self, point: str) -> str:
        """What can run one point, see `dynabert.modeling.loads_with`."""


@dataclass(frozen=True, kw_only=True)
class Trained(ABC):
    """What every trained method says of itself.

    :param name: as in `dynabert.baselines.METHODS`.
    :param spent: in its training.
    """

    name: str
    spent: Spent = Spent()

    @abstractmethod
    def predict(self, point: str, batches: Iterable[Batch]) -> Predicted:
        """The answers at one point."""

    def answer(self, point: str, batches: Iterable[Batch]) -> object:
        """The same, as it is served."""
        return self.predict(point, batches)

    @property
    def training_flops(self) -> float:
        """What its training took; of ramps, without that of the network beneath them, which had been trained before."""
        return self.spent.flops

    @property
    def n_steps(self) -> int:
        """Training steps, over all of its trainings."""
        return self.spent.n_steps


def predicted(
    view: "PreTrainedModel", batches: Iterable[Batch], *, shape: EncoderShape, slices: tuple[LayerSlice, ...]
) -> Predicted:
    """The answers of a view or model in which every row executes the same layers."""
    logits = predict(view, batches)
    flops = encoder_flops(shape, slices, SEQ_LEN)
    return Predicted(logits, np.full(len(logits), len(slices)), np.full(len(logits), flops))


@dataclass(frozen=True, kw_only=True)
class TrainedElastic(Trained):
    """One network of many sizes, however it is run."""

    elastic: ElasticModel

    @property
    def of_layers(self) -> int:
        """Layers of the full network."""
        return self.elastic.shape.n_layers

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.elastic.model.device


@dataclass(frozen=True, kw_only=True)
class ElasticMethod(TrainedElastic):
    """One network of many sizes: DynaBERT itself, or a network trained with LayerDrop. Its points are Subnets.

    :param subnets: by default the network's grid.
    """

    subnets: tuple[Subnet, ...] | None = None

    def points(self) -> tuple[str, ...]:
        """The names of its Subnets."""
        return tuple(self._subnets())

    def _subnets(self) -> dict[str, Subnet]:
        return {subnet.name: subnet for subnet in self.subnets or self.elastic.grid}

    def _subnet(self, point: str) -> Subnet:
        return known(self.name, point, self._subnets())

    def predict(self, point: str, batches: Iterable[Batch]) -> Predicted:
        """The answers of a Subnet."""
        subnet = self._subnet(point)
        slices = self.elastic.slices(subnet)
        return predicted(self.elastic.at(subnet), batches, shape=self.elastic.shape, slices=slices)

    def n_params(self, point: str) -> int:
        """Of the Subnet alone, extracted."""
        return count_params(self.elastic.at(self._subnet(point)))

    def loads_with(self, point: str) -> str:
        """What loads the Subnet once it is extracted."""
        return loads_with(self.elastic.shape, self.elastic.slices(self._subnet(point)))


@dataclass(frozen=True)
class Small:
    """A small dense model, cut out of a network of this shape."""

    model: "PreTrainedModel"
    shape: EncoderShape
    slices: tuple[LayerSlice, ...]

    @classmethod
    def of(cls, elastic: ElasticModel, subnet: Subnet) -> "Small":
        """A Subnet with weights of its own."""
        return cls(elastic.extract(subnet), elastic.shape, elastic.slices(subnet))


@dataclass(frozen=True, kw_only=True)
class SeparateMethod(Trained):
    """Several networks, one for each size, each trained for itself. Its points are Subnets.

    :param members: by Subnet name.
    """

    members: Mapping[str, Small]

    @property
    def of_layers(self) -> int:
        """Layers of the full network."""
        return self._any().shape.n_layers

    @property
    def device(self) -> torch.device:
        """Where they run."""
        return self._any().model.device

    def _any(self) -> Small:
        return next(iter(self.members.values()))

    def points(self) -> tuple[str, ...]:
        """The names of the Subnets that were trained."""
        return tuple(self.members)

    def predict(self, point: str, batches: Iterable[Batch]) -> Predicted:
        """The answers of the network of one size."""
        small = known(self.name, point, self.members)
        return predicted(small.model, batches, shape=small.shape, slices=small.slices)

    def n_params(self, point: str) -> int:
        """Of the network of one size."""
        return count_params(known(self.name, point, self.members).model)

    def loads_with(self, point: str) -> str:
        """What loads that network."""
        small = known(self.name, point, self.members)
        return loads_with(small.shape, small.slices)


def known(method: str, point: str, points: Mapping[str, Value]) -> Value:
    """What a point stands for.

    :raises SettingError: an unknown one.
    """
    if point not in points:
        raise SettingError(one_of(f"point of {method}", point, points))
    return points[point]


def sweep_of(
    method: Method,
    batches: Iterable[Batch],
    *,
    task: Task,
    reference: np.ndarray,
    points: Sequence[str] | None = None,
    answers: Mapping[str, Predicted] | None = None,
) -> Sweep:
    """Measure the operating points of a method: the same Sweep as of DynaBERT, without latency.

    :param method: trained.
    :param batches: each row once, with labels.
    :param task: says how predictions are judged.
    :param reference: logits of the network to compare with, the teacher for instance, shape (rows, n_labels).
    :param points: which; by default all.
    :param answers: of the method to these rows, by point, where they are known already; by default it is asked.
    :return: a row for each point; layers and FLOPs are means over the rows, FLOPs rounded.
    :raises SettingError: rows without labels, or an unknown point.
    :raises DataError: no rows, or logits that do not fit the task.
    :raises NonFiniteError: NaN or infinity among the logits.
    """
    rows = tuple(batches)
    labels = labels_of(rows)
    reference_metric = main_metric(metric_of(task, labels, reference))
    digest = blake2b(digest_size=8)
    digest.update(method.name.encode() + labels.tobytes())

    measurements = []
    for point in method.points() if points is None else points:
        given = method.predict(point, rows) if answers is None else answers[point]
        digest.update(point.encode() + given.logits.tobytes())
        measurements.append(
            Measurement(
                subnet=point,
                n_layers=float(given.n_layers.mean()),
                of_layers=method.of_layers,
                quality=quality_of(task, labels, given.logits, reference, reference_metric),
                cost=Cost(n_params=method.n_params(point), flops=round(float(given.flops.mean()))),
                loads_with=method.loads_with(point),
            )
        )
    context = Context(
        task=task.name,
        metric=task.primary_metric,
        n_rows=len(labels),
        reference=reference_metric,
        precision="fp32",
        latency=None,
        machine=machine_of(method.device),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=digest.hexdigest(),
    )
    return Sweep(tuple(measurements), context)
