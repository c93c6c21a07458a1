"""Importance of heads and neurons, and rewiring: the permutation that puts the important ones first.

A Subnet keeps the leftmost heads and neurons of every layer, so the order in which they stand decides what a narrow
network starts from. `score` measures how much each one contributes to the loss, and `rewire` permutes the weights by
it; the full network stays the same function.

A head's output h is its slice of the input of the attention output projection, and a neuron's activation a is one
feature of the input of the feed-forward output projection. Both are multiplied by a gate that is 1, one gate for each
example; its gradient is h . dL/dh or a * dL/da, summed over positions and features: to first order, the loss that the
example would lose without them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, reduce
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dynabert.distributed import ALONE, World
from dynabert.elastic import ElasticModel, layers_of, share
from dynabert.errors import DataError, ModelFileError, NonFiniteError, SettingError, one_of
from dynabert.families import Projection, Unit, family_of
from dynabert.files import atomic_write_bytes
from dynabert.losses import label_loss
from dynabert.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dynabert.batches import Batch, BatchSource

MAX_BATCHES = 50
"""Batches that are scored by default. Of 32 rows each, ten of them already give an order that ten others confirm."""

FORMAT_VERSION = 1

Order = Literal["importance", "reversed", "random", "as-is"]
ORDERS: tuple[Order, ...] = get_args(Order)
"""In which order heads and neurons stand before the distillation; all but the first are for comparisons."""


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
        heads, neurons = (scores.argsort(dim=-1, descending=True, stable=True) for scores in (self.heads, self.neurons))
        return heads, neurons

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all.

        :raises StorageError: it cannot be written.
        """
        tensors = {"heads": self.heads.cpu().contiguous(), "neurons": self.neurons.cpu().contiguous()}
        about = {"scores": self.scores, "format_version": str(FORMAT_VERSION), "sha256": self._digest()}
        atomic_write_bytes(path, save(tensors, about))

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
                importance = cls(file.get_tensor("heads"), file.get_tensor("neurons"), found["scores"])
                if importance._digest() != found["sha256"]:
                    raise SettingError("its sha256 differs")
                return importance
        except (OSError, SafetensorError, KeyError, SettingError) as error:
            reason = " ".join(str(error).split())
            raise ModelFileError(
                f"{path} is no sound file of importance ({reason}); delete it, and the model is scored again"
            ) from error

    def _digest(self) -> str:
        total = sha256(self.scores.encode())
        for scores in (self.heads, self.neurons):
            total.update(scores.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


Total = Callable[[Iterable[Tensor]], Tensor]
"""Turns the contributions of each batch, (layers, batch, units), into scores, (layers, units)."""


@dataclass(frozen=True)
class Scoring:
    """One way to score.

    :param total: how the contributions of examples and batches become one number.
    :param both_sides: add a score of the neuron's input (before its activation function) to that of its output.
    """

    total: Total
    both_sides: bool = False


def _per_example(batches: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, (contributions.abs().sum(1) for contributions in batches))


def _per_batch(batches: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, (contributions.sum(1).abs() for contributions in batches))


def _total(batches: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, (contributions.sum(1) for contributions in batches)).abs()


def _published(batches: Iterable[Tensor]) -> Tensor:
    running = accumulate((contributions.mean(1) for contributions in batches), torch.add)
    return reduce(torch.add, (gradient.abs() for gradient in running))


SCORES: dict[str, Scoring] = {
    "per-example": Scoring(_per_example),
    "per-batch": Scoring(_per_batch),
    "total": Scoring(_total),
    "published": Scoring(_published, both_sides=True),
}
"""Ways to score, by name. With c the contribution h . dL/dh of a head, or a * dL/da of a neuron, for one example:

- ``per-example``, the default: the sum over examples of abs(c). Differs from the paper: one absolute value for each
  example rather than one of the total, and training data rather than the development set. In a trained model the
  contributions of different examples cancel (their total is a derivative by the scale of the outgoing weights, which
  training brings to zero), so that a total is mostly noise while the sizes are not.
- ``per-batch``: the sum over batches of abs(sum of c). Differs from the paper likewise, but depends on the size of the
  batches: with one row in each it is ``per-example``, with all rows in one it is ``total``.
- ``total``: abs(sum of c over all examples). The paper as written (section 2.1 and Algorithm 1).
- ``published``: the official code. Gradients are not zeroed between batches, yet each batch adds the absolute value of
  what has gathered so far, so early batches count many times; and a neuron's score is the sum of two such estimates,
  one for its incoming weights with their bias and one for its outgoing weights.
"""


def score(
    model: "ElasticModel | PreTrainedModel",
    batches: "BatchSource",
    *,
    scores: str = "per-example",
    n_batches: int | None = None,
    targets: Literal["labels", "logits"] = "labels",
    world: World = ALONE,
) -> Importance:
    """Score every head and neuron of a fine-tuned model; the model stays as it is, its `.grad` and mode included.

    :param model: elastic, or a Hugging Face model of a known family with a task head.
    :param batches: training batches; the paper uses the development set, which then is no longer held out.
    :param scores: a name in `SCORES`.
    :param n_batches: how many batches to use, each all rows of a step; by default one epoch, at most `MAX_BATCHES`.
    :param targets: ``labels``; or ``logits``, which needs none: the loss is then measured against the class that the
        model itself predicts, or for regression against its own score plus 1. (Against exactly its own logits the
        gradient of any loss is zero.) The order comes out nearly the same.
    :param world: the ranks that score together, each its rows of every batch.
    :return: scores on the CPU, fp32; the same on every rank.
    :raises SettingError: an unknown name or family, no batches asked for, no labels, or a model without logits.
    :raises DataError: there are no batches.
    :raises NonFiniteError: the model's gradients are NaN or infinite.
    """
    if scores not in SCORES:
        raise SettingError(one_of("scores", scores, SCORES))
    if targets not in ("labels", "logits"):
        raise SettingError(one_of("targets", targets, ("labels", "logits")))
    scoring = SCORES[scores]
    gated = _GatedModel(model.model if isinstance(model, ElasticModel) else model, both_sides=scoring.both_sides)
    contributions = (
        _over_ranks([gated.contributions(batch, targets) for batch in batches.micro_batches(step)], world)
        for step in range(_n_steps(batches, n_batches))
    )
    heads, *neurons = scoring.total(contributions).cpu().split(gated.sizes, -1)
    if not all(part.isfinite().all() for part in (heads, *neurons)):
        raise NonFiniteError("the scores of heads and neurons are NaN or infinite; check how the model was trained")
    return Importance(heads, reduce(torch.add, neurons), scores)


def _over_ranks(parts: list[Tensor], world: World) -> Tensor:
    """The contributions (layers, batch, units) of all examples of a step, from the micro-batches of each rank."""
    mine = torch.cat(parts, 1)
    return world.gather_rows(mine.transpose(0, 1)).transpose(0, 1)


def _n_steps(batches: "BatchSource", n_batches: int | None) -> int:
    if len(batches) < 1:
        raise DataError("there are no batches to score with; give at least one row")
    if n_batches is not None and n_batches < 1:
        raise SettingError(f"n_batches {n_batches} must be 1 or more")
    return min(len(batches), MAX_BATCHES) if n_batches is None else n_batches


def _targets(logits: Tensor, labels: Tensor | None, kind: str) -> Tensor:
    """What the loss is measured against, shape (batch,): the labels, or what the model itself predicts."""
    if kind == "labels":
        if labels is None:
            raise SettingError("the batches have no labels to score with; give labels, or targets='logits'")
        return labels
    predicted = logits.detach()
    return predicted.flatten().float() + 1 if predicted.shape[-1] == 1 else predicted.argmax(-1)


class _GatedModel:
    """A model whose heads and neurons are multiplied by gates of 1. It shares the weights; the hooks are its own."""

    def __init__(self, model: "PreTrainedModel", *, both_sides: bool) -> None:
        family = family_of(model.config.model_type)
        shape = family.shape(model.config)
        self.sizes = [shape.n_heads, shape.n_neurons] + [shape.n_neurons] * both_sides
        self._model = share(model).eval()
        self._gates: tuple[list[Tensor], ...] = tuple([] for _ in self.sizes)
        entering = next(projection for projection in family.projections if projection.rows == "neurons")
        for layer in layers_of(self._model, family):
            for place, unit in enumerate(("heads", "neurons")):
                summing = layer.get_submodule(family.consuming(cast(Unit, unit)).path)
                summing.register_forward_pre_hook(partial(self._gate_input, place=place))
            if both_sides:
                hook = partial(self._gate_output, parts=entering.parts)
                layer.get_submodule(entering.path).register_forward_hook(hook)

    def _gate_input(self, _: nn.Module, args: tuple[Tensor], *, place: int) -> Tensor:
        return self._gate(args[0], place=place)

    def _gate_output(self, _: nn.Module, args: tuple[Tensor], output: Tensor, *, parts: int) -> Tensor:
        return self._gate(output, place=2, parts=parts)

    def _gate(self, features: Tensor, *, place: int, parts: int = 1) -> Tensor:
        """Multiply features (batch, seq, parts * units * size) by new gates (batch, units)."""
        n_units = self.sizes[place]
        gate = torch.ones(len(features), n_units, dtype=features.dtype, device=features.device, requires_grad=True)
        self._gates[place].append(gate)
        return (features.unflatten(-1, (parts, n_units, -1)) * gate[:, None, None, :, None]).flatten(-3)

    def contributions(self, batch: "Batch", targets: str) -> Tensor:
        """Each example's own contributions (layers, batch, units): of heads, neurons and, if asked, neurons' inputs."""
        for gates in self._gates:
            gates.clear()
        batch = batch.to(next(self._model.parameters()).device)
        with torch.enable_grad():
            output = self._model(**batch.inputs)
            if not hasattr(output, "logits"):
                raise SettingError(f"{type(self._model).__name__} has no logits to score; load it with a task head")
            # The sum, not the mean: what reaches an example's gates is then the gradient of its own loss.
            loss = label_loss(output.logits, _targets(output.logits, batch.labels, targets), 1.0)
            gradients = iter(torch.autograd.grad(loss, [gate for gates in self._gates for gate in gates]))
        return torch.cat([torch.stack([next(gradients) for _ in gates]) for gates in self._gates], -1).float()


def reordered(importance: Importance, order: Order, *, seed: int) -> Importance:
    """Scores by which `rewire` puts heads and neurons into another order.

    :param importance: true scores.
    :param order: ``importance`` gives them back, ``reversed`` makes the least important ones the first, ``random``
        draws an order, ``as-is`` keeps the present one.
    :param seed: of the random order.
    """
    heads, neurons = importance.heads, importance.neurons
    if order == "reversed":
        heads, neurons = -heads, -neurons
    elif order == "random":
        generator = torch.Generator().manual_seed(derive_seed(seed, "order"))
        heads, neurons = (torch.rand(scores.shape, generator=generator) for scores in (heads, neurons))
    elif order == "as-is":
        heads, neurons = torch.zeros_like(heads), torch.zeros_like(neurons)  # equal scores keep their order
    return Importance(heads, neurons, importance.scores)


def rewire(elastic: ElasticModel, importance: Importance) -> None:
    """Put the most important heads and neurons of every layer first, in place; the full network computes the same.

    Importance belongs to the order in which heads and neurons stood when it was measured: score again before rewiring
    a second time.

    :param elastic: its weights are permuted; Parameters and views stay the same objects.
    :param importance: of this model.
    :raises SettingError: importance of a model of another shape.

    Source: DynaBERT section 2.1; the order is within a layer.
    """
    shape = elastic.shape
    found = (*importance.heads.shape, importance.neurons.shape[1])
    if found != (shape.n_layers, shape.n_heads, shape.n_neurons):
        raise SettingError(
            f"importance of (layers, heads, neurons) {found} does not fit a model of "
            f"{(shape.n_layers, shape.n_heads, shape.n_neurons)}; score this model"
        )
    permute(elastic, *importance.order())


def permute(elastic: ElasticModel, head_orders: Tensor, neuron_orders: Tensor) -> None:
    """Give the heads and neurons of every layer another order, in place; the full network computes the same.

    :param elastic: its weights are permuted; Parameters and views stay the same objects.
    :param head_orders: int64, shape (layers, heads): which head comes to each place.
    :param neuron_orders: likewise, shape (layers, neurons).
    :raises SettingError: orders of another shape, or that are no permutations; nothing is changed then.
    """
    shape = elastic.shape
    heads = _checked("head_orders", head_orders, shape.n_layers, shape.n_heads)
    neurons = _checked("neuron_orders", neuron_orders, shape.n_layers, shape.n_neurons)
    features = (heads[..., None] * shape.head_dim + torch.arange(shape.head_dim)).flatten(1)
    with torch.no_grad():
        for index, layer in enumerate(layers_of(elastic.model, elastic.family)):
            orders: dict[Unit, Tensor] = {"heads": features[index], "neurons": neurons[index]}
            for projection in elastic.family.projections:
                _permute_linear(cast(nn.Linear, layer.get_submodule(projection.path)), projection, orders)


def _checked(name: str, orders: Tensor, n_layers: int, n_units: int) -> Tensor:
    orders = orders.detach().cpu()
    every = torch.arange(n_units).expand(n_layers, -1)
    if orders.shape != every.shape or not torch.equal(orders.sort(-1).values, every):
        raise SettingError(
            f"{name} of shape {tuple(orders.shape)} must hold, for each of {n_layers} layers, "
            f"every number from 0 to {n_units - 1} once"
        )
    return orders


def _permute_linear(linear: nn.Linear, projection: Projection, orders: dict[Unit, Tensor]) -> None:
    """Permute the rows and columns that are made of heads or neurons; `orders` are of features."""
    device = linear.weight.device
    if projection.rows is not None:
        order = orders[projection.rows].to(device)
        blocks = torch.arange(projection.parts, device=device)[:, None] * len(order)
        rows = (blocks + order).flatten()
        linear.weight.copy_(linear.weight[rows])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias[rows])
    if projection.columns is not None:
        linear.weight.copy_(linear.weight[:, orders[projection.columns].to(device)])
