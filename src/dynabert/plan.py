"""What a run is made of: where its rows come from, and everything that is done with them. Plain values.

Two runs with the same fingerprint have the same result; it is what a run folder is recognised by.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynabert.data import Roles, load_files, load_task
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError, one_of
from dynabert.losses import LossWeights, Reduction
from dynabert.recipes import RECIPES, Recipe, Schedule, Stage, present_name
from dynabert.rewire import ORDERS, Order
from dynabert.subnet import DepthRule, SubnetGrid
from dynabert.tasks import Task, task_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Source:
    """Where the rows come from: a known task, or your own files by column names.

    :param task: a name in `dynabert.tasks.TASKS`; then `folder` says where its files are (None: the hub).
    :param train: a file of your own, with `validation`, `text` (and `text_pair`) and `label`.
    :param limit: train on a random part of that many rows.
    :param metric: of your own rows, a name in `dynabert.tasks.METRICS`; by default that of `load_files`.
    """

    task: str | None = None
    folder: Path | None = None
    train: Path | None = None
    validation: Path | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    limit: int | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        own = {"train": self.train, "validation": self.validation, "text": self.text, "label": self.label}
        missing = [f"--{name}" for name, value in own.items() if value is None]
        if self.task is not None and len(missing) < len(own):
            raise SettingError("give a task, or files of your own (train, validation, text, label), not both")
        if self.task is None and missing:
            raise SettingError(f"own data also needs {', '.join(missing)}; or give a task, for instance --task sst2")
        if self.task is not None and self.metric is not None:
            raise SettingError(f"task {self.task} has a metric of its own; leave out metric {self.metric}")

    def load(self) -> tuple[Task, Roles]:
        """The task and its rows by role."""
        if self.task is not None:
            task = task_of(self.task)
            return task, load_task(task, self.folder, limit=self.limit)
        assert self.train and self.validation and self.text and self.label, "checked on construction"
        return load_files(
            self.train,
            self.validation,
            text=self.text,
            text_pair=self.text_pair,
            label=self.label,
            metric=self.metric,
            limit=self.limit,
        )

    def moved_to(self, folder: Path) -> "Source":
        """The same rows in another folder: the files of a task, or those of one's own by the names that they had.

        :raises SettingError: one's own files have one name.
        """
        if self.task is not None:
            return replace(self, folder=folder)
        assert self.train and self.validation, "checked on construction"
        if self.train.name == self.validation.name:
            raise SettingError(f"both files are called {self.train.name}, so they cannot lie in one folder")
        return replace(self, train=folder / self.train.name, validation=folder / self.validation.name)

    def missing(self) -> Path | None:
        """The first of its files and folders that is not there; None where all are, or on the hub."""
        paths = (self.folder, self.train, self.validation)
        return next((path for path in paths if path is not None and not path.expanduser().exists()), None)

    def to_json(self) -> dict[str, str | int | None]:
        """Plain values, paths absolute, so that the run can be measured from any folder."""
        values = {
            name: str(value.expanduser().absolute()) if isinstance(value, Path) else value
            for name, value in self.__dict__.items()
        }
        if self.metric is None:  # what was kept by these values before there was a choice is still found
            del values["metric"]
        return values

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Source":
        """What `to_json` wrote."""
        paths = ("folder", "train", "validation")
        values: dict[str, Any] = {
            name: Path(value) if value and name in paths else value for name, value in saved.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class Batching:
    """How rows become the batches of a step.

    :param batch_size: rows of one optimizer step, over all processes and micro-batches.
    :param max_tokens: instead of it: as many rows as leave each micro-batch at most this many tokens with padding.
    :param accumulate: micro-batches that each process takes one after the other in a step.
    :param max_length: tokens of a row at most.
    """

    batch_size: int | None = 32
    max_tokens: int | None = None
    accumulate: int = 1
    max_length: int = 128

    def __post_init__(self) -> None:
        if (self.batch_size is None) == (self.max_tokens is None):
            raise SettingError("give batch_size or max_tokens, one of them; batch_size 32 is usual")
        if self.batch_size is not None and self.batch_size < 1:
            raise SettingError(f"batch size {self.batch_size} is below 1; 32 is usual")
        if self.accumulate < 1:
            raise SettingError(f"accumulate {self.accumulate} is below 1; 1 is usual")
        if self.max_length < 1:
            raise SettingError(f"max_length {self.max_length} is below 1; 128 is usual")


@dataclass(frozen=True)
class Plan:
    """Everything that a run does, apart from its data and its encoder.

    :param teacher: how the full network is fine-tuned; None takes the checkpoint as it is. ``auto`` fine-tunes it where
        it has no head for the task yet.
    :param order: in which heads and neurons are put before the recipe; all but ``importance`` are for comparisons.
    """

    recipe: Recipe = RECIPES["default"]
    grid: SubnetGrid = SubnetGrid()
    teacher: Stage | Literal["auto"] | None = "auto"
    training: Training = field(default_factory=Training)
    depth_rule: DepthRule = "paper"
    order: Order = "importance"
    batching: Batching = Batching()

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise SettingError(one_of("order", self.order, ORDERS))
        names = [stage.name for stage in (self.teacher, *self.recipe.stages) if isinstance(stage, Stage)]
        if len(set(names)) < len(names):
            raise SettingError(
                f"stages {', '.join(names)}: two have the same name, under which they are saved; rename one"
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Everything that trains, the fine-tuning of the teacher included where it has been decided on."""
        return (self.teacher, *self.recipe.stages) if isinstance(self.teacher, Stage) else self.recipe.stages


def fingerprint(
    plan: Plan,
    task: Task,
    *,
    roles: Roles,
    elastic: ElasticModel,
    tokenizer: "PreTrainedTokenizerBase",
    world_size: int = 1,
) -> dict[str, Any]:
    """What the result of a run depends on, by name: plain values for JSON.

    :param elastic: the encoder that the run starts from; its weights and configuration are hashed.
    :param tokenizer: likewise.
    :param world_size: how many processes train. It says in which order gradients are added up, hence their last bits.
    """
    encoder, head = _encoder_and_head(elastic)
    unimportant = ("transformers_version", "_name_or_path")
    config = {key: value for key, value in elastic.model.config.to_dict().items() if key not in unimportant}
    training = {name: value for name, value in asdict(plan.training).items() if name not in ("saving", "log_every")}
    return {
        "format_version": FORMAT_VERSION,
        "task": task.name,
        "labels": list(task.labels),
        "metric": task.metric,
        "data": roles.fingerprint,
        "model": _digest_of(encoder),
        "head": _digest_of(head),
        "config": _digest(json.dumps(config, sort_keys=True, default=str)),
        "tokenizer": _digest(tokenizer.backend_tokenizer.to_str()),
        "widths": list(plan.grid.widths),
        "depths": list(plan.grid.depths),
        "depth_rule": plan.depth_rule,
        # Until that was written down, networks of this rule learnt other states.
        **({"matched": "own outputs"} if plan.depth_rule == "text" else {}),
        "order": plan.order,
        "teacher": asdict(plan.teacher) if isinstance(plan.teacher, Stage) else None,
        "recipe": asdict(plan.recipe),
        **asdict(plan.batching),
        **training,
        "world_size": world_size,
    }


def encoder_digest(elastic: ElasticModel) -> str:
    """16 hexadecimal digits that differ when a weight of the encoder differs; a task head has no part in them."""
    return _digest_of(_encoder_and_head(elastic)[0])


def _encoder_and_head(elastic: ElasticModel) -> tuple[dict[str, "Tensor"], dict[str, "Tensor"]]:
    """The weights of both; those of a new head depend on the seed."""
    state = elastic.model.state_dict()
    encoder = {name: tensor for name, tensor in state.items() if name.startswith(f"{elastic.model.base_model_prefix}.")}
    return encoder, {name: tensor for name, tensor in state.items() if name not in encoder}


def as_now(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint that may be of some time ago, with the name that its recipe has now: see `present_name`."""
    recipe = saved.get("recipe") or {}
    if "name" not in recipe:
        return dict(saved)
    name = present_name(recipe["name"], [stage["name"] for stage in recipe["stages"]])
    return {**saved, "recipe": {**recipe, "name": name}}


def plan_of(saved: Mapping[str, Any]) -> Plan:
    """The plan of a run, from its fingerprint; how often it saved and logged is not in there.

    :raises KeyError: not a fingerprint of this version, as `TypeError` does.
    """

    def stage(values: Mapping[str, Any]) -> Stage:
        weights, schedule = LossWeights(**values["weights"]), Schedule(**values["schedule"])
        return Stage(**{**values, "weights": weights, "schedule": schedule})

    recipe = as_now(saved)["recipe"]
    stages = tuple(map(stage, recipe["stages"]))
    training = {part.name: saved[part.name] for part in fields(Training) if part.name in saved}
    return Plan(
        recipe=Recipe(**{**recipe, "stages": stages, "reduction": Reduction(**recipe["reduction"])}),
        grid=SubnetGrid(tuple(saved["widths"]), tuple(saved["depths"])),
        teacher=None if saved["teacher"] is None else stage(saved["teacher"]),
        training=Training(**training),
        depth_rule=saved["depth_rule"],
        order=saved["order"],
        batching=Batching(**{part.name: saved[part.name] for part in fields(Batching)}),
    )


def _digest_of(tensors: dict[str, "Tensor"]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode() + tensor.cpu().contiguous().view(-1).numpy().tobytes())
    return total.hexdigest()[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
