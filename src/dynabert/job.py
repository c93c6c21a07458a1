"""What a run works with, loaded and checked before anything is written: encoder, rows, batches, teacher."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dynabert.batches import Batches, encode
from dynabert.data import Roles, Rows
from dynabert.distributed import ALONE, World
from dynabert.elastic import ElasticModel, longest_input
from dynabert.errors import SettingError, one_of
from dynabert.loading import load, load_tokenizer
from dynabert.measure import LatencySettings, check_length
from dynabert.model_files import CONFIG, read_object, resolve
from dynabert.plan import Plan, Source
from dynabert.recipes import TEACHER
from dynabert.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVALUATION_BATCH = 64

log = logging.getLogger("dynabert")


@dataclass(frozen=True)
class Prepared:
    """What a run works with: the task, its tokenizer, and the batches of each role.

    Those of the held-out roles are the same on every rank.

    :param make_train: of the training rows, which most that is done with a finished run does without.
    """

    task: Task
    tokenizer: "PreTrainedTokenizerBase"
    make_train: Callable[[], Batches]
    select: Batches
    validation: Batches

    @cached_property
    def train(self) -> Batches:
        """This rank's batches of the training rows, tokenized when they are first asked for."""
        return self.make_train()

    @classmethod
    def of(
        cls, task: Task, roles: Roles, tokenizer: "PreTrainedTokenizerBase", plan: Plan, *, world: World = ALONE
    ) -> "Prepared":
        """Tokenize each role once, the training rows when they are asked for."""
        batching, seed, pad_id = plan.batching, plan.training.seed, tokenizer.pad_token_id

        def held_out(rows: Rows) -> Batches:
            encoded = encode(tokenizer, rows, batching.max_length)
            return Batches(encoded, batch_size=EVALUATION_BATCH, seed=seed, pad_id=pad_id, shuffle=False)

        def train() -> Batches:
            return Batches(
                encode(tokenizer, roles.train, batching.max_length),
                batch_size=batching.batch_size,
                max_tokens=batching.max_tokens,
                seed=seed,
                pad_id=pad_id,
                rank=world.rank,
                world=world.size,
                accumulate=batching.accumulate,
            )

        return cls(task, tokenizer, train, held_out(roles.select), held_out(roles.validation))


@dataclass(frozen=True)
class Job:
    """A run before anything is written.

    :param plan: with the teacher decided on.
    """

    plan: Plan
    elastic: ElasticModel
    roles: Roles
    prepared: Prepared


def prepare(
    model: str | Path, source: Source, plan: Plan, *, latency: LatencySettings | None, world: World = ALONE
) -> Job:
    """Load and check everything that a run needs; the parameters are those of `train`.

    :raises SettingError: settings that do not fit.
    :raises DataError: rows that cannot be used.
    :raises ModelFileError: a model that cannot be used.
    """
    task, roles = source.load()
    if plan.teacher == "auto":
        plan = replace(plan, teacher=None if _is_teacher(model, task) else TEACHER)
    encoder = load_for(task, model, plan)
    if plan.teacher is None:
        _tell_other_names(model, task)
    elastic = ElasticModel(encoder, plan.grid, depth_rule=plan.depth_rule)
    tokenizer = load_tokenizer(model)
    # Saved with the results, so that whoever predicts with them cuts long texts where training did.
    tokenizer.model_max_length = min(tokenizer.model_max_length, plan.batching.max_length)
    _check_lengths(elastic, plan, latency)
    prepared = Prepared.of(task, roles, tokenizer, plan, world=world)
    _ = prepared.train  # rows that make no batches are said before anything is written
    return Job(plan, elastic, roles, prepared)


def _is_teacher(model: str | Path, task: Task) -> bool:
    """Whether a checkpoint says that it was saved with a head for this very task: its classes, in its order."""
    classes = _classes(model)
    if classes is None or task.is_regression:
        return classes is not None and len(classes) == 1
    if classes == [f"LABEL_{number}" for number in range(len(task.labels))] or _lower(classes) == _lower(task.labels):
        return True
    log.warning(
        "%s has a head for %s, and the classes here are %s: it is fine-tuned again%s",
        model,
        ", ".join(classes),
        ", ".join(task.labels),
        "; to take it as it is, class by class in this order: --teacher-epochs 0" if _may_be(classes, task) else "",
    )
    return False


def _may_be(classes: list[str], task: Task) -> bool:
    """Whether the classes of a head can be those of a task by other names: as many, and none in another place."""
    return len(classes) == task.n_labels and set(_lower(classes)).isdisjoint(_lower(task.labels))


def _check_head(model: str | Path, task: Task) -> None:
    """Refuse a teacher that is to be taken as it is and has no head for the task.

    :raises SettingError: no head, or one for other classes.
    """
    classes = _classes(model)
    if task.is_regression:
        if classes is None or len(classes) != 1:
            raise SettingError(f"{model} has no head for a score; let the teacher train for some epochs")
        return
    if classes is None or not (_lower(classes) == _lower(task.labels) or _may_be(classes, task)):
        there = f", it has one for {', '.join(classes)}" if classes else ""
        raise SettingError(
            f"{model} has no head for the classes {', '.join(task.labels)}, in this order{there}; "
            "let the teacher train for some epochs"
        )


def _tell_other_names(model: str | Path, task: Task) -> None:
    """Say which classes of a head that was let through are taken for which of the rows, where their names differ."""
    classes = _classes(model) or []
    if not task.is_regression and _lower(classes) != _lower(task.labels):
        pairs = ", ".join(f"{its} = {ours}" for its, ours in zip(classes, task.labels, strict=True))
        log.warning("the classes of %s are taken for those of the rows in this order: %s", model, pairs)


def _classes(model: str | Path) -> list[str] | None:
    """What the classes of a checkpoint's head are called; None where it has no head for sequences."""
    config = read_object(resolve(model), CONFIG) or {}
    heads = [str(name) for name in config.get("architectures") or []]
    if not any(name.endswith("ForSequenceClassification") for name in heads):
        return None
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [str(named[key]) for key in sorted(named, key=int)]


def _lower(names: Iterable[str]) -> list[str]:
    return [name.lower() for name in names]


def load_for(task: Task, model: str | Path, plan: Plan) -> "PreTrainedModel":
    """The encoder with a head for the task, its classes named.

    :param model: folder or hub name.
    :param plan: says whether the head must be there, and the seed of a new one.
    :raises SettingError: the plan takes the teacher as it is, and the model has no head for the task.
    """
    if plan.teacher is None:
        _check_head(model, task)
    if task.is_regression:
        return load(model, problem="regression", seed=plan.training.seed)
    encoder = load(model, n_labels=task.n_labels, seed=plan.training.seed)
    encoder.config.id2label = dict(enumerate(task.labels))
    encoder.config.label2id = {name: index for index, name in enumerate(task.labels)}
    return encoder


def _check_lengths(elastic: ElasticModel, plan: Plan, latency: LatencySettings | None) -> None:
    longest = longest_input(elastic.model)
    max_length = plan.batching.max_length
    if max_length > longest:
        raise SettingError(f"max_length {max_length} is too long for this model, which takes {longest}; lower it")
    if latency is not None:
        check_length(elastic.model, latency)


def pick_device(name: str | None) -> str:
    """The name of a device, checked; without one the GPU if there is one, else the CPU.

    :raises SettingError: a device that is not there.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise SettingError(one_of("device", name, ("cpu", "cuda", "cuda:0")))
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device {name!r} is not available here; use cpu, or install torch for your GPU")
    return name
