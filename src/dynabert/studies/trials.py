"""Trainings that a study compares, each kept as its predictions, so that a study goes on where it stopped.

    RUN/studies/seeds/43/teacher/   the teacher of another seed than the run's own
    RUN/studies/trials/             one safetensors file for each finished training, named by all that it depends on
    RUN/studies/running/            a training that is not finished yet: a run folder, gone on with exactly

Predictions are a few hundred kilobytes where weights are a hundred megabytes, and all that is asked of a training
afterwards (metrics, intervals, which point to choose) is computed from them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dynabert.errors import ModelFileError
from dynabert.files import atomic_write_bytes, remove_folder
from dynabert.hooks import Hooks
from dynabert.job import Prepared
from dynabert.loading import load_tokenizer
from dynabert.measure import labels_of, predict
from dynabert.plan import Plan
from dynabert.recipes import Recipe
from dynabert.run import Saved, load_result, train, train_teacher
from dynabert.statistics import ROW_METRICS
from dynabert.subnet import encoder_flops
from dynabert.tasks import Task
from dynabert.workload import planned_stages

if TYPE_CHECKING:
    from dynabert.elastic import ElasticModel

FORMAT_VERSION = 1
STUDIES = "studies"


@dataclass(frozen=True)
class Point:
    """One size, or one threshold, of a trained method.

    :param name: of the Subnet, or of the threshold.
    :param select_metric: main metric on the `select` rows, by which points are chosen.
    :param select_flops: encoder FLOPs of a row at 128 tokens, mean over the `select` rows.
    :param flops: likewise over the validation rows.
    :param n_layers: executed, mean over the validation rows.
    """

    name: str
    select_metric: float
    select_flops: float
    flops: float
    n_layers: float


@dataclass(frozen=True, eq=False)
class Trial:
    """A finished training: what it cost and what it predicts.

    :param training_flops: encoder FLOPs of all its steps, on one row of 128 tokens each.
    :param n_steps: of all its stages.
    :param logits: of the validation rows, by point, shape (rows, labels) each.
    """

    name: str
    training_flops: float
    n_steps: int
    points: tuple[Point, ...]
    logits: Mapping[str, np.ndarray]

    @property
    def select_score(self) -> float:
        """The mean of the main metric on the `select` rows over all points: by which settings are chosen."""
        return float(np.mean([point.select_metric for point in self.points]))

    def save(self, path: Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        about = {name: value for name, value in self.__dict__.items() if name != "logits"}
        about["points"] = [asdict(point) for point in self.points]
        logits = {name: np.ascontiguousarray(rows, dtype=np.float32) for name, rows in self.logits.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, save(logits, {"format_version": str(FORMAT_VERSION), "trial": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path) -> "Trial":
        """Read what `save` wrote.

        :raises ModelFileError: damaged, or something else.
        """
        try:
            with safe_open(path, framework="np") as file:
                about = json.loads((file.metadata() or {})["trial"])
                points = tuple(Point(**point) for point in about.pop("points"))
                logits = {point.name: file.get_tensor(point.name) for point in points}
            return cls(**about, points=points, logits=logits)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} is no sound trial ({error}); delete it, and it is trained again") from error


class Study:
    """What all trainings of a study share: the run that it starts from, and the rows.

    :param run: a finished run folder.
    :param budget: training FLOPs that each training may spend, as a share of those of the run's own recipe.
    :param limit: train on a random part of that many rows; by default on those of the run.
    """

    def __init__(self, run: Path, *, budget: float = 1.0, limit: int | None = None, hooks: Hooks | None = None) -> None:
        load_result(run)  # says what is missing before anything else does
        self.run, self.saved, self.hooks = Path(run), Saved.of(run), hooks or Hooks()
        self.source = self.saved.source if limit is None else replace(self.saved.source, limit=limit)
        self.folder = self.run / STUDIES
        self.budget = budget
        self.plan = self.saved.plan
        self._rows: dict[int, Prepared] = {}

    def teacher(self, seed: int) -> Path:
        """The folder of the teacher of a seed; trained as the run trained its own, unless that is the run's seed."""
        if seed == self.plan.training.seed:
            return self.run / "teacher"
        plan = replace(self.plan, training=replace(self.plan.training, seed=seed))
        return train_teacher(
            self.saved.model, self.saved.source, self.folder / "seeds" / str(seed), plan=plan, hooks=self.hooks
        )

    def rows(self, seed: int) -> Prepared:
        """The rows of a study, in the order of a seed."""
        if seed not in self._rows:
            task, roles = self.source.load()
            plan = replace(self.plan, training=replace(self.plan.training, seed=seed))
            self._rows[seed] = Prepared.of(task, roles, load_tokenizer(self.run / "elastic"), plan)
        return self._rows[seed]

    @property
    def task(self) -> Task:
        """The task of the run."""
        return self.rows(self.plan.training.seed).task

    @property
    def labels(self) -> np.ndarray:
        """Labels of the validation rows."""
        return labels_of(self.rows(self.plan.training.seed).validation)

    def budget_flops(self, elastic: "ElasticModel") -> float:
        """Training FLOPs that each training may spend, on one row of 128 tokens a step."""
        return self.budget * _flops(self.plan.recipe, elastic, self.rows(self.plan.training.seed))

    def at_budget(self, recipe: Recipe, elastic: "ElasticModel") -> Recipe:
        """A recipe with all its stages made equally longer or shorter, so that it costs what each training may."""
        factor = self.budget_flops(elastic) / _flops(recipe, elastic, self.rows(self.plan.training.seed))
        return replace(recipe, stages=tuple(replace(stage, epochs=stage.epochs * factor) for stage in recipe.stages))

    def kept(self, name: str, settings: object, make: Callable[[], Trial]) -> Trial:
        """A trial from its file, or made and kept.

        :param name: what it is called.
        :param settings: everything that its result depends on besides the run: plain values.
        :param make: trains it.
        """
        known = json.dumps([settings, self.saved.data, self.source.to_json()], sort_keys=True, default=str)
        digest = hashlib.sha256(known.encode()).hexdigest()[:10]
        path = self.folder / "trials" / f"{name.replace(' ', '-')}-{digest}.safetensors"
        if not path.exists():
            make().save(path)
        return Trial.load(path)

    def trained(self, name: str, plan: Plan, *, seed: int) -> Trial:
        """A training by a plan of its own, from the teacher of a seed.

        :param plan: its recipe costs what it costs: see `at_budget`. Its teacher is that of the seed.
        """
        plan = replace(plan, teacher=None, training=replace(plan.training, seed=seed))
        recipe, grid, batching = asdict(plan.recipe), asdict(plan.grid), asdict(plan.batching)
        settings = (recipe, grid, batching, plan.depth_rule, plan.order, plan.training.precision, seed)
        return self.kept(f"{name}-{seed}", settings, lambda: self._train(name, plan, seed))

    def _train(self, name: str, plan: Plan, seed: int) -> Trial:
        work = self.folder / "running" / f"{name.replace(' ', '-')}-{seed}"
        train(self.teacher(seed), self.source, work, plan=plan, hooks=self.hooks, latency=None)
        elastic, rows = load_result(work), self.rows(seed)
        metric, select = ROW_METRICS[rows.task.primary_metric], labels_of(rows.select)
        points, logits = [], {}
        for subnet in elastic.grid:
            view, slices = elastic.at(subnet), elastic.slices(subnet)
            flops = encoder_flops(elastic.shape, slices)
            scored = metric(select, predict(view, rows.select))
            points.append(Point(subnet.name, scored, flops, flops, len(slices)))
            logits[subnet.name] = predict(view, rows.validation)
        planned = planned_stages(plan.recipe.stages, elastic, steps_per_epoch=len(rows.train), seed=seed)
        trial = Trial(
            name,
            sum(stage.n_steps * stage.flops for stage in planned),
            sum(stage.n_steps for stage in planned),
            tuple(points),
            logits,
        )
        remove_folder(work)
        return trial


def _flops(recipe: Recipe, elastic: "ElasticModel", rows: Prepared) -> float:
    planned = planned_stages(recipe.stages, elastic, steps_per_epoch=len(rows.train), seed=0)
    return sum(stage.n_steps * stage.flops for stage in planned)
