"""Importance of heads and neurons, and rewiring: the permutation that puts the important ones first.

A Subnet keeps the leftmost heads and neurons of every layer, so the order in which they stand decides what a narrow
network starts from. `score` measures how much each one contributes to the loss, `rewire` permutes the weights by it; the
full network stays the same function.

A head's output h is its slice of the input of the attention output projection, and a neuron's activation a is one
feature of the input of the feed-forward output projection. Both are multiplied by a gate that is 1, one gate for each
example; its gradient is h . dL/dh or a * dL/da, summed over positions and features: to first order, the loss that the
example would lose without them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dynabert.elastic import ElasticModel, layers_of, share
from dynabert.errors import DataError, ModelFileError, NonFiniteError, SettingError, one_of
from dynabert.families import Projection, Unit, family_of
from dynabert.files import atomic_write_bytes
from dynabert.losses import label_loss
from dynabert.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dynabert.batches import Batch

MAX_BATCHES = 50
"""Batches that are scored where none are asked for: the order hardly changes after that."""

FORMAT_VERSION = 1


class BatchSource(Protocol):
    """Batches by step: `dynabert.batches.Batches` is one."""

    def __len__(self) -> int:
        """Steps in one epoch."""

    def at(self, step: int) -> "Batch":
        """The batch of a step."""


@dataclass(frozen=True, eq=False)
class Importance:
    """How important each head and neuron is; only the order within a layer has a meaning.

    :param heads: shape (layers, heads).
    :param neurons: shape (layers, neurons).
    :param scores: the name in `SCORES` that made them.
    :raises SettingError: not two tables of finite numbers with a row for each layer.
    """

    heads: Tensor
    neurons: Tensor
    scores: str

    def __post_init__(self) -> None:
        if self.heads.dim() != 2 or self.neurons.dim() != 2 or len(self.heads) != len(self.neurons):
            raise SettingError(
                f"importance of shapes {tuple(self.heads.shape)} and {tuple(self.neurons.shape)} must be "
                "(layers, heads) and (layers, neurons); make it with score()"
            )
        if not (self.heads.isfinite().all() and self.neurons.isfinite().all()):
            raise SettingError("importance holds NaN or infinity, which cannot be ordered; score a sound model")

    def order(self) -> tuple[Tensor, Tensor]:
        """Heads (layers, heads) and neurons (layers, neurons) of each layer by descending score, int64.

        Equal ones keep their order, so the result is the same everywhere.
        """
        heads, neurons = (
            scores.argsort(dim=-1, descending=True, stable=True) for scores in (self.heads, self.neurons)
        )
        return heads, neurons

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all.

        :raises StorageError: it cannot be written.
        """
        tensors = {"heads": self.heads.cpu().contiguous(), "neurons": self.neurons.cpu().contiguous()}
        atomic_write_bytes(path, save(tensors, {"scores": self.scores, "format_version": str(FORMAT_VERSION)}))

    @classmethod
    def load(cls, path: str | Path) -> "Importance":
        """Read what `save` wrote.

        :raises ModelFileError: missing, damaged, or not such a file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                found = file.metadata() or {}
                if found.get("format_version") != str(FORMAT_VERSION):
                    raise SettingError(f"format {found.get('format_version')} instead of {FORMAT_VERSION}")
                return cls(file.get_tensor("heads"), file.get_tensor("neurons"), found["scores"])
        except (OSError, SafetensorError, KeyError, SettingError) as error:
            reason = " ".join(str(error).split())
            raise ModelFileError(f"{path} is no importance that can be read ({reason}); score the model again") from error


Total = Callable[[Iterable[Tensor]], Tensor]
"""Turns the contributions of each batch, (layers, batch, units), into scores (layers, units)."""


@dataclass(frozen=True)
class Scoring:
    """One way to score.

    :param total: how the contributions of examples and batches become one number.
    :param both_sides: add a neuron's contribution before its activation function to the one after it.
    """

    total: Total
    both_sides: bool = False


def _per_example(batches: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, (contributions.abs().sum(1) for contributions in batches))


def _per_batch(batches: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, (contributions.sum(1).abs() for contributions in batches))


def _published(batches: Iterable[Tensor]) -> Tensor:
    running = accumulate((contributions.mean(1) for contributions in batches), torch.add)
    return reduce(torch.add, (total.abs() for total in running))


SCORES: dict[str, Scoring] = {
    "per-batch": Scoring(_per_batch),
    "per-example": Scoring(_per_example),
    "published": Scoring(_published, both_sides=True),
}
"""TODO."""


def score(
    model: "ElasticModel | PreTrainedModel",
    batches: BatchSource,
    *,
    scores: str = "per-batch",
    n_batches: int | None = None,
    targets: Literal["labels", "logits"] = "labels",
    seed: int = 42,
) -> Importance:
    """Score every head and neuron of a fine-tuned model; the model stays as it is, its `.grad` and mode included.

    :param model: elastic, or a Hugging Face model of a known family with a task head.
    :param batches: training batches; the paper uses the development set, which then is no longer held out.
    :param scores: a name in `SCORES`.
    :param n_batches: how many batches to use; by default one epoch, at most `MAX_BATCHES`.
    :param targets: `labels`; or `logits` where there are none: targets are then drawn from what the model itself
        predicts, a class from its probabilities, or for regression its score plus a normal deviate.
    :param seed: of those draws.
    :return: scores on the CPU, fp32.
    :raises SettingError: an unknown name or family, no batches asked for, no labels, or a model without logits.
    :raises DataError: there are no batches.
    :raises NonFiniteError: the model's gradients are NaN or infinite.
    """
    if scores not in SCORES:
        raise SettingError(one_of("scores", scores, SCORES))
    if targets not in ("labels", "logits"):
        raise SettingError(one_of("targets", targets, ("labels", "logits")))
    steps = range(_n_steps(batches, n_batches))
    gated = _GatedModel(model.model if isinstance(model, ElasticModel) else model, both_sides=SCORES[scores].both_sides)
    parts = (
        gated.contributions(batches.at(step), partial(_targets, kind=targets, seed=derive_seed(seed, "targets", step)))
        for step in steps
    )
    heads, neurons = gated.split(SCORES[scores].total(parts).float().cpu())
    if not (heads.isfinite().all() and neurons.isfinite().all()):
        raise NonFiniteError("the scores of heads and neurons are NaN or infinite; check that the model was trained well")
    return Importance(heads, neurons, scores)


def _n_steps(batches: BatchSource, n_batches: int | None) -> int:
    if len(batches) < 1:
        raise DataError("there are no batches to score with; give at least one row")
    if n_batches is not None and n_batches < 1:
        raise SettingError(f"n_batches {n_batches} must be 1 or more")
    return min(len(batches), MAX_BATCHES) if n_batches is None else n_batches


def _targets(logits: Tensor, labels: Tensor | None, *, kind: str, seed: int) -> Tensor:
    """What the loss is measured against, shape (batch,): the labels, or a draw from the model's own prediction."""
    if kind == "labels":
        if labels is None:
            raise SettingError("the batches have no labels to score with; give labels, or targets='logits'")
        return labels
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device draws the same
    predicted = logits.detach().float().cpu()
    if predicted.shape[-1] == 1:
        drawn = predicted.flatten() + torch.randn(len(predicted), generator=generator)
    else:
        drawn = torch.multinomial(predicted.softmax(-1), 1, generator=generator).flatten()
    return drawn.to(logits.device)


class _GatedModel:
    """A model whose heads and neurons are multiplied by gates of 1. It shares the weights; the hooks are its own."""

    def __init__(self, model: "PreTrainedModel", *, both_sides: bool) -> None:
        family = family_of(model.config.model_type)
        self.shape = family.shape(model.config)
        self._model = share(model).eval()
        self._both_sides = both_sides
        self._gates: dict[str, list[Tensor]] = {"heads": [], "neurons": [], "inputs": []}
        entering = next(projection for projection in family.projections if projection.rows == "neurons")
        for layer in layers_of(self._model, family):
            for unit, n_units in (("heads", self.shape.n_heads), ("neurons", self.shape.n_neurons)):
                linear = layer.get_submodule(family.consuming(cast(Unit, unit)).path)
                linear.register_forward_pre_hook(partial(self._gate_input, site=unit, n_units=n_units))
            if both_sides:
                linear = layer.get_submodule(entering.path)
                linear.register_forward_hook(partial(self._gate_output, projection=entering))

    def _gate_input(self, _: nn.Module, args: tuple[Any, ...], *, site: str, n_units: int) -> tuple[Any, ...]:
        return (self._gate(args[0], site=site, n_units=n_units), *args[1:])

    def _gate_output(self, _: nn.Module, args: tuple[Any, ...], output: Tensor, *, projection: Projection) -> Tensor:
        return self._gate(output, site="inputs", n_units=self.shape.n_neurons, parts=projection.parts)

    def _gate(self, features: Tensor, *, site: str, n_units: int, parts: int = 1) -> Tensor:
        """Multiply features (batch, seq, parts * n_units * size) by new gates (batch, n_units)."""
        gate = torch.ones(len(features), n_units, dtype=features.dtype, device=features.device, requires_grad=True)
        self._gates[site].append(gate)
        return (features.unflatten(-1, (parts, n_units, -1)) * gate[:, None, None, :, None]).flatten(-3)

    def contributions(self, batch: "Batch", targets: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """Each example's own contributions (layers, batch, units), the units being heads, then neurons (twice)."""
        for gates in self._gates.values():
            gates.clear()
        batch = batch.to(next(self._model.parameters()).device)
        with torch.enable_grad():
            output = self._model(**batch.inputs)
            if not hasattr(output, "logits"):
                raise SettingError(f"{type(self._model).__name__} has no logits to score; load it with a task head")
            # The sum, not the mean: the gradient of an example's gates is then that of its own loss.
            loss = label_loss(output.logits, targets(output.logits, batch.labels), 1.0)
            sites = [gates for gates in self._gates.values() if gates]
            gradients = torch.autograd.grad(loss, [gate for gates in sites for gate in gates])
        by_site = torch.stack(gradients).unflatten ...
