"""The methods that DynaBERT is compared with, by one door: the same inputs, the same Sweep out.

Every one is trained on models and batches in memory, for as many steps as a budget of FLOPs pays, and seeded like all
training here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from dynabert.baselines import deebert, fastbert, layerdrop, plain, ramps
from dynabert.baselines.exiting import ExitMethod
from dynabert.baselines.masked import MaskedEncoder, Vocabulary, pretrained_on
from dynabert.baselines.method import ElasticMethod, Method, Predicted, SeparateMethod, Spent, sweep_of
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError, one_of
from dynabert.hooks import Hooks
from dynabert.tasks import Task

if TYPE_CHECKING:
    from dynabert.batches import Batches

__all__ = [
    "METHODS",
    "ElasticMethod",
    "ExitMethod",
    "Inputs",
    "Kind",
    "MaskedEncoder",
    "Method",
    "Predicted",
    "SeparateMethod",
    "Spent",
    "Vocabulary",
    "ramped",
    "relatives",
    "sweep_of",
    "train_method",
]


@dataclass(frozen=True)
class Inputs:
    """What every method may use.

    :param teacher: the fine-tuned network.
    :param start: the pre-trained encoder with a fresh head, for methods that fine-tune it themselves.
    :param rows: training rows, held-out rows for choices, and the task.
    :param budget_flops: what training may spend, see `dynabert.baselines.method.Spent`.
    :param lr: of fine-tuning; ramps and student heads learn at ten times that.
    :param masked: gives the pre-trained encoder for a masked-language-model phase, a new one each time.
    """

    teacher: ElasticModel
    start: ElasticModel
    rows: plain.TaskRows
    budget_flops: float
    training: Training
    lr: float
    masked: Callable[[], MaskedEncoder] | None = None
    hooks: Hooks | None = None


RAMP_LR = 10.0
"""Learning rate of ramps and student heads, in that of fine-tuning, as FastBERT has it: on a network that stays as it
is, new ramps learn little at rates meant for whole networks."""


def _deebert(inputs: Inputs) -> Method:
    return deebert.train(
        inputs.teacher,
        inputs.rows.train,
        training=inputs.training,
        lr=RAMP_LR * inputs.lr,
        budget_flops=inputs.budget_flops,
        pooler_of=inputs.start.model,
        evaluate=ramps.selection_score(inputs.rows.select, inputs.rows.task),
        hooks=inputs.hooks,
    )


def _fastbert(inputs: Inputs) -> Method:
    return fastbert.train(
        inputs.teacher,
        inputs.rows.train,
        training=inputs.training,
        lr=RAMP_LR * inputs.lr,
        budget_flops=inputs.budget_flops,
        evaluate=ramps.selection_score(inputs.rows.select, inputs.rows.task),
        hooks=inputs.hooks,
    )


def _layerdrop(inputs: Inputs, *, name: str = layerdrop.NAME, rate: float = 0.2) -> ElasticMethod:
    return layerdrop.train(
        inputs.start,
        inputs.rows.train,
        select=inputs.rows.select,
        task=inputs.rows.task,
        training=inputs.training,
        lr=inputs.lr,
        budget_flops=inputs.budget_flops,
        rate=rate,
        name=name,
        hooks=inputs.hooks,
    )


MASKED_SHARE = 0.5
"""Of the budget of `layerdrop-masked`, what its masked-language-model phase may spend."""


def _layerdrop_masked(inputs: Inputs) -> Method:
    if inputs.masked is None:
        raise SettingError("layerdrop-masked needs the encoder and its vocabulary; give masked, or take layerdrop")
    start, spent = pretrained_on(
        inputs.rows.train,
        inputs.start,
        masked=inputs.masked(),
        training=inputs.training,
        lr=inputs.lr,
        budget_flops=MASKED_SHARE * inputs.budget_flops,
        hooks=inputs.hooks,
    )
    rest = replace(inputs, start=start, budget_flops=inputs.budget_flops - spent.flops)
    trained = _layerdrop(rest, name="layerdrop-masked")
    return replace(trained, spent=spent + trained.spent)


def _plain(
    inputs: Inputs, *, name: str, train: Callable[..., Method], source: ElasticModel, whole_grid: bool = False
) -> Method:
    return train(
        source,
        inputs.rows,
        subnets=tuple(source.grid) if whole_grid else plain.first_layers(source.shape),
        training=inputs.training,
        lr=inputs.lr,
        budget_flops=inputs.budget_flops,
        name=name,
        hooks=inputs.hooks,
    )


def _first_layers(inputs: Inputs) -> Method:
    return _plain(inputs, name="first-layers", train=plain.fine_tuned, source=inputs.start)


def _first_layers_distilled(inputs: Inputs) -> Method:
    return _plain(inputs, name="first-layers-distilled", train=plain.distilled, source=inputs.teacher)


def _alone(inputs: Inputs) -> Method:
    source = plain.rewired(inputs.teacher, inputs.rows.train)
    return _plain(inputs, name="alone", train=plain.distilled, source=source, whole_grid=True)


def _with_every_other_layer(trained: Method, rows: plain.TaskRows) -> Method:
    method = cast(ElasticMethod, trained)
    return layerdrop.with_every_other_layer(method, name="layerdrop")


def _with_validated_layers(trained: Method, rows: plain.TaskRows) -> Method:
    method = cast(ElasticMethod, trained)
    return layerdrop.with_validated_layers(method, rows.select, rows.task, name="layerdrop-validated")


def _as_trained(trained: Method, rows: plain.TaskRows) -> Method:
    return trained


@dataclass(frozen=True)
class Kind:
    """How a method comes about.

    :param train: the training; methods with the same one differ only in what is chosen afterwards.
    :param choose: that choice, which takes no training; the same for the result of `choose` as for that of `train`.
    :param version: of the training and the choice: what was kept of another one is out of date.
    :param from_encoder: it fine-tunes the pre-trained encoder itself, and the teacher's training is its own to spend.
    :param exits_early: it cannot do regressions, nor encoders of one layer.
    :param needs_mask: it cannot do without a tokenizer that has a mask token.
    """

    train: Callable[[Inputs], Method]
    choose: Callable[[Method, plain.TaskRows], Method] = _as_trained
    version: int = 2
    from_encoder: bool = False
    exits_early: bool = False
    needs_mask: bool = False


METHODS: Mapping[str, Kind] = {
    "deebert": Kind(_deebert, exits_early=True),
    "fastbert": Kind(_fastbert, exits_early=True),
    "layerdrop": Kind(_layerdrop, _with_every_other_layer, from_encoder=True),
    "layerdrop-0.5": Kind(partial(_layerdrop, name="layerdrop-0.5", rate=0.5), from_encoder=True),
    "layerdrop-masked": Kind(_layerdrop_masked, from_encoder=True, needs_mask=True),
    "layerdrop-validated": Kind(_layerdrop, _with_validated_layers, from_encoder=True),
    "first-layers": Kind(_first_layers, version=3, from_encoder=True),
    "first-layers-distilled": Kind(_first_layers_distilled, version=3),
    "alone": Kind(_alone),
}
"""By name. `deebert`, `fastbert`: early exit on the teacher, each input by itself. `layerdrop`: one network of all
depths, trained with a skip rate of 0.2 (or 0.5), layers kept evenly or as validated on the `select` rows; `-masked`:
after a masked-language-model phase on the text of the training rows, with the same skips and half of the budget. The
others train several networks, all for the same number of steps: the `first-layers`, fine-tuned on labels or distilled
from the teacher, and every size of the grid distilled `alone` from the rewired teacher."""


def ramped(names: Iterable[str]) -> str:
    """What is to be said of the rates of those methods that train ramps; empty where none does.

    :param names: of methods, others than those in `METHODS` among them.
    """
    found = ", ".join(name for name in names if name in METHODS and METHODS[name].exits_early)
    return f" Ramps ({found}) learn at {RAMP_LR:g} times the rate shown." if found else ""


def relatives(name: str) -> tuple[str, ...]:
    """The other methods that come of the same training, by their `Kind.choose`.

    :param name: in `METHODS`.
    """
    return tuple(other for other in METHODS if other != name and METHODS[other].train is METHODS[name].train)


def train_method(
    name: str,
    teacher: ElasticModel,
    start: ElasticModel,
    *,
    train: "Batches",
    select: "Batches",
    task: Task,
    budget_flops: float,
    training: Training,
    lr: float,
    masked: Callable[[], MaskedEncoder] | None = None,
    hooks: Hooks | None = None,
) -> Method:
    """Train one of the methods that DynaBERT is compared with.

    :param name: in `METHODS`.
    :param teacher: the fine-tuned network; not changed.
    :param start: the pre-trained encoder with a fresh head; not changed.
    :param train: training rows, by step.
    :param select: held-out rows for choices, each once.
    :param task: says how predictions are judged.
    :param budget_flops: what training may spend: forward and backward passes of the encoder at the mean length of the
        rows, teachers included.
    :param training: settings of the loop.
    :param lr: of fine-tuning.
    :param masked: gives the pre-trained encoder with its head over the vocabulary, for `layerdrop-masked`; a new one
        each time, for it is trained in place.
    :param hooks: told of each step.
    :return: the method, to predict and measure with.
    :raises SettingError: an unknown name, early exit for a regression, a masked phase without `masked`, or a budget
        below one step.
    """
    if name not in METHODS:
        raise SettingError(one_of("method", name, METHODS))
    rows = plain.TaskRows(train, select, task)
    inputs = Inputs(teacher, start, rows, budget_flops, training=training, lr=lr, masked=masked, hooks=hooks)
    return METHODS[name].choose(METHODS[name].train(inputs), rows)
