"""LayerDrop (Fan, Grave and Joulin, ICLR 2020): layers are skipped at random in training, and chosen afterwards.

The authors drop layers from pre-training on, and say that doing so in fine-tuning alone works less well;
`dynabert.baselines.masked` has a short pre-training phase with the same schedule, which `layerdrop-masked` begins with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynabert.baselines.fitting import fit_subnets, steps_within
from dynabert.baselines.method import ElasticMethod
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.hooks import Hooks
from dynabert.measure import labels_of, main_metric, predict, selection_score
from dynabert.recipes import TEACHER
from dynabert.seeds import derive_seed
from dynabert.subnet import EncoderShape, LayerSlice, Subnet, SubnetGrid
from dynabert.tasks import Task, metric_of

if TYPE_CHECKING:
    from dynabert.batches import Batches

NAME = "layerdrop"


@dataclass(frozen=True)
class LayerDrop:
    """Which layers a training step runs: one random Subnet of full width.

    :param shape: of the encoder.
    :param rate: probability with which each layer is skipped, independently. The paper: 0.2, and 0.5 for small
        targets; best for one target is 1 - kept / layers (section 3.2). Should all be skipped, the luckiest one is run.
    """

    shape: EncoderShape
    rate: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise SettingError(f"layerdrop rate {self.rate} is a probability below 1; the paper has 0.2")

    def subnets(self, grid: SubnetGrid, seed: int, step: int) -> tuple[Subnet, ...]:
        """The Subnet of one step: a function of seed and step."""
        luck = [derive_seed(seed, "layerdrop", step, layer) / 2**63 for layer in range(self.shape.n_layers)]
        kept = [layer for layer, chance in enumerate(luck) if chance >= self.rate]
        return (whole_layers(self.shape, kept or [luck.index(max(luck))]),)


def whole_layers(shape: EncoderShape, layers: Sequence[int]) -> Subnet:
    """Some layers with all their heads and neurons."""
    return Subnet.of_layers(*(LayerSlice(layer, shape.n_heads, shape.n_neurons) for layer in layers))


def every_other(n_layers: int, n_kept: int) -> tuple[int, ...]:
    """Layers spread evenly: from 0, floor(i * layers / kept).

    Counted from 1, where ``1 / p`` for ``p = 1 - kept / layers`` is a whole number, that drops the layers d with
    d = 0 modulo 1 / p, as the paper says; for other numbers its rule does not give the number asked for.
    """
    return tuple(place * n_layers // n_kept for place in range(n_kept))


def evenly_spread(shape: EncoderShape) -> tuple[Subnet, ...]:
    """The layers of `every_other`, for every number of them, most layers first."""
    return tuple(whole_layers(shape, every_other(shape.n_layers, kept)) for kept in range(shape.n_layers, 0, -1))


def validated(elastic: ElasticModel, targets: Sequence[int], select: "Batches", task: Task) -> dict[int, Subnet]:
    """The layers to keep, chosen on held-out rows: layers leave one by one, each time the one that is missed least.

    Of equal scores the highest layer leaves. Where `every_other` scores better, it is taken.

    :param targets: numbers of layers.
    :param select: held-out rows, each once, with labels.
    :return: by number of layers.
    """
    rows, n_layers = tuple(select), elastic.shape.n_layers
    labels = labels_of(rows)
    scores: dict[tuple[int, ...], float] = {}

    def score(layers: tuple[int, ...]) -> float:
        if layers not in scores:
            subnet = whole_layers(elastic.shape, layers)
            # Not from `elastic.at`, which keeps every view.
            logits = predict(elastic.make_view(elastic.slices(subnet)), rows)
            scores[layers] = main_metric(metric_of(task, labels, logits))
        return scores[layers]

    kept: tuple[int, ...] = tuple(range(n_layers))
    chosen = {}
    for n_kept in range(n_layers, min(targets) - 1, -1):
        if n_kept < n_layers:
            without = (tuple(layer for layer in kept if layer != left) for left in reversed(kept))
            kept = max(without, key=score)
        if n_kept in targets:
            rivals: tuple[tuple[int, ...], ...] = (kept, every_other(n_layers, n_kept))
            best = max(rivals, key=score)
            chosen[n_kept] = whole_layers(elastic.shape, best)
    return chosen


def train(
    start: ElasticModel,
    batches: "Batches",
    *,
    select: "Batches",
    task: Task,
    training: Training,
    lr: float,
    budget_flops: float,
    rate: float = 0.2,
    name: str = NAME,
    hooks: Hooks | None = None,
) -> ElasticMethod:
    """Fine-tune a pre-trained encoder on labels while its layers are dropped. Its points are all numbers of layers.

    The layers of each are spread evenly; `with_validated_layers` chooses others for the same weights.

    :param start: the pre-trained encoder with a fresh head; it is copied.
    :param batches: rows with labels, by step.
    :param select: held-out rows, for the choice of the best weights: by the mean over all points, as DynaBERT's are.
    :param rate: see `LayerDrop`.
    :param name: what the method calls itself; the training is the same by any name.
    :raises SettingError: a rate that is none, or a budget below one step.
    """
    elastic, subnets = start.copy(), evenly_spread(start.shape)
    stage = replace(TEACHER, name=NAME, schedule=LayerDrop(start.shape, rate), lr=lr)
    spent = fit_subnets(
        elastic,
        stage,
        batches,
        n_steps=steps_within(budget_flops, [stage], elastic, batches, seed=training.seed),
        training=training,
        evaluate=selection_score(select, task, subnets=subnets, precision=training.precision),
        hooks=hooks,
    )
    return ElasticMethod(name=name, elastic=elastic, subnets=subnets, spent=spent)


def with_every_other_layer(method: ElasticMethod, *, name: str) -> ElasticMethod:
    """The same trained network, its layers spread evenly, for every number of them."""
    return replace(method, name=name, subnets=evenly_spread(method.elastic.shape))


def with_validated_layers(method: ElasticMethod, select: "Batches", task: Task, *, name: str) -> ElasticMethod:
    """The same trained network, its layers chosen by `validated` for every number of them."""
    n_layers = method.elastic.shape.n_layers
    found = validated(method.elastic, range(1, n_layers + 1), select, task)
    return replace(method, name=name, subnets=tuple(found[n_kept] for n_kept in range(n_layers, 0, -1)))
