"""Trainings that a study compares, each kept as its predictions, so that a study goes on where it stopped.

    RUN/studies/seeds/43/teacher/   the teacher of another seed than the run's own
    RUN/studies/trials/             one safetensors file for each finished training, named by all that it depends on
    RUN/studies/running/            a training that is not finished yet: a run folder, gone on with exactly

Predictions are a few hundred kilobytes where weights are a hundred megabytes, and all that is asked of a training
afterwards (metrics, intervals, which point to choose) is computed from them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dynabert.baselines.masked import MaskedEncoder, Vocabulary
from dynabert.baselines.method import ElasticMethod, Method, Spent, sweep_of
from dynabert.batches import Batch
from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError, SettingError
from dynabert.files import atomic_write_bytes, storage_errors, write_json
from dynabert.folders import remove_folder
from dynabert.hooks import Hooks
from dynabert.job import Prepared, load_for, pick_device
from dynabert.loading import has_head, load, load_tokenizer
from dynabert.measure import labels_of, machine_of, predict
from dynabert.plan import Plan
from dynabert.precision import warn_if_emulated
from dynabert.recipes import Recipe, Stage, recipe_of
from dynabert.results import Saved, load_result
from dynabert.run import train, train_teacher
from dynabert.statistics import ROW_METRICS
from dynabert.subnet import Subnet
from dynabert.sweep import Sweep
from dynabert.timing import interleaved_ms
from dynabert.workload import StepRows, mean_step_flops

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT_VERSION = 1
STUDIES = "studies"
N_RESAMPLES = 20_000
"""Of rows and seeds, in every interval of a study: so many that a p value can pass correction for a hundred tests."""

MASKED_HEAD = "ForMaskedLM"

_REPEATS = 3  # timed runs over a sample
_TIMED = {1: 24, 32: 3}  # how many batches of each size are a sample


@dataclass(frozen=True)
class Point:
    """One size, or one threshold, of a trained method.

    :param name: of the Subnet, or of the threshold.
    :param select_metric: main metric on the `select` rows, by which points are chosen.
    :param select_flops: encoder FLOPs of a row at 128 tokens, mean over the `select` rows.
    :param flops: likewise over the validation rows.
    :param n_layers: executed, mean over the validation rows.
    :param time: of an input, as a share of the full network's: one by one, and in batches of 32.
    """

    name: str
    select_metric: float
    select_flops: float
    flops: float
    n_layers: float
    time: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Trial:
    """A finished training: what it cost and what it predicts.

    :param training_flops: see `dynabert.baselines.method.Spent`.
    :param n_steps: of all its stages.
    :param logits: of the validation rows, by point, shape (rows, labels) each.
    :param sweep: of all points on the validation rows, beside the teacher.
    """

    name: str
    training_flops: float
    n_steps: int
    points: tuple[Point, ...]
    logits: Mapping[str, np.ndarray]
    sweep: Sweep

    @property
    def select_score(self) -> float:
        """The mean of the main metric on the `select` rows over all points: by which settings are chosen."""
        return float(np.mean([point.select_metric for point in self.points]))

    def save(self, path: Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        about = {"name": self.name, "training_flops": self.training_flops, "n_steps": self.n_steps}
        about |= {"points": [asdict(point) for point in self.points], "sweep": self.sweep.to_dict()}
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
                saved = file.metadata() or {}
                if saved["format_version"] != str(FORMAT_VERSION):
                    raise ValueError(f"format version {saved['format_version']}, not {FORMAT_VERSION}")
                about = json.loads(saved["trial"])
                points = tuple(Point(**{**point, "time": tuple(point["time"])}) for point in about.pop("points"))
                logits = {point.name: file.get_tensor(point.name) for point in points}
            sweep = Sweep.from_dict(about.pop("sweep"), what=str(path))
            return cls(**about, points=points, logits=logits, sweep=sweep)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} is no sound trial ({error}); delete it, and it is trained again") from error


@dataclass(frozen=True)
class Derived:
    """Another method that is made of a trained network, without training.

    :param name: what its trial is called.
    :param settings: all that its result depends on besides the network and its rows: plain values.
    :param make: makes it.
    :param spare: it is not asked for: made where the network is at hand, and left out where that would be trained.
    """

    name: str
    settings: object
    make: Callable[[ElasticMethod, Prepared], Method]
    spare: bool = False


class Study:
    """What all trainings of a study share: the run that it starts from, and the rows.

    :param run: a finished run folder.
    :param budget: training FLOPs that each training may spend, as a share of those of the run's own recipe.
    :param limit: train on a random part of that many rows; by default on those of the run.
    :param recipe: name of the recipe that is studied, at the training cost of the run's; by default the run's own.
    :param device: cpu or cuda; by default the GPU if there is one.
    """

    def __init__(
        self,
        run: Path,
        *,
        budget: float = 1.0,
        limit: int | None = None,
        recipe: str | None = None,
        device: str | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.elastic = load_result(run)
        self.run, self.saved, self.hooks = Path(run), Saved.of(run), hooks or Hooks()
        self.source = self.saved.source if limit is None else replace(self.saved.source, limit=limit)
        self.folder = self.run / STUDIES
        self.budget, self.device = budget, pick_device(device)
        self.plan = self.saved.plan
        warn_if_emulated(self.plan.training.precision, self.device)
        self.recipe = self.plan.recipe if recipe is None else recipe_of(recipe)
        self.task, self._roles = self.saved.roles()
        self._n_teacher_rows = len(self._roles.train)
        if limit is not None:
            _, self._roles = self.source.load()
        self._rows: dict[int, Prepared] = {}

    def seeds(self, n: int) -> tuple[int, ...]:
        """The run's own seed and the ones after it."""
        return tuple(range(self.plan.training.seed, self.plan.training.seed + n))

    def teacher(self, seed: int) -> Path:
        """The folder of the teacher of a seed; trained as the run trained its own, unless that is the run's seed."""
        if seed == self.plan.training.seed:
            return self.run / "teacher"
        plan = replace(self.plan, training=replace(self.plan.training, seed=seed))
        return train_teacher(
            self.saved.model,
            self.saved.source,
            self.folder / "seeds" / str(seed),
            plan=plan,
            hooks=self.hooks,
            device=self.device,
        )

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """That of the run."""
        return load_tokenizer(self.run / "elastic")

    def rows(self, seed: int) -> Prepared:
        """The rows of a study, in the order of a seed."""
        if seed not in self._rows:
            plan = replace(self.plan, training=replace(self.plan.training, seed=seed))
            self._rows[seed] = Prepared.of(self.task, self._roles, self.tokenizer, plan)
        return self._rows[seed]

    @property
    def labels(self) -> np.ndarray:
        """Labels of the validation rows."""
        return labels_of(self.rows(self.plan.training.seed).validation)

    def cost(self, recipe: Recipe) -> float:
        """Training FLOPs of a recipe on the rows of the study, see `dynabert.baselines.method.Spent`."""
        train, seed = self.rows(self.plan.training.seed).train, self.plan.training.seed
        rows = StepRows.of(train)
        return sum(
            stage.n_steps(len(train)) * mean_step_flops(stage, self.elastic, rows, seed=seed) for stage in recipe.stages
        )

    @property
    def budget_flops(self) -> float:
        """Training FLOPs that each training may spend."""
        return self.budget * self.cost(self.plan.recipe)

    @property
    def teacher_flops(self) -> float:
        """Training FLOPs of the teacher; 0 where the run took a fine-tuned model as it is: `start` is that model then.

        The teacher learns from all rows of the run, whatever the study is limited to.
        """
        stage, seed = self.plan.teacher, self.plan.training.seed
        if not isinstance(stage, Stage):
            return 0.0
        train = self.rows(seed).train
        n_steps = stage.n_steps(round(len(train) * self._n_teacher_rows / len(self._roles.train)))
        return n_steps * mean_step_flops(stage, self.elastic, StepRows.of(train), seed=seed)

    def at_budget(self, recipe: Recipe) -> Recipe:
        """A recipe with all its stages made equally longer or shorter, so that it costs what each training may."""
        factor = self.budget_flops / self.cost(recipe)
        return replace(recipe, stages=tuple(replace(stage, epochs=stage.epochs * factor) for stage in recipe.stages))

    def write(self, name: str, result: dict[str, Any]) -> None:
        """Write what a study found to its folder, with what it was made by."""
        made = {
            "budget": self.budget,
            "limit": self.source.limit,
            "n_train": len(self._roles.train.ids),
            "machine": asdict(machine_of(torch.device(self.device))),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with storage_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
        write_json(self.folder / name, {**result, "made": made})

    def kept(self, name: str, settings: object, make: Callable[[], Trial]) -> Trial:
        """A trial from its file, or made and kept; one training serves all studies, whatever they call it.

        :param name: what it is called.
        :param settings: everything that its result depends on besides the run: plain values.
        :param make: trains it.
        """
        digest, trials = self._digest(settings), self.folder / "trials"
        known = sorted(trials.glob(f"*-{digest}.safetensors"))
        path = known[0] if known else trials / f"{name.replace(' ', '-')}-{digest}.safetensors"
        if not known:
            make().save(path)
        return Trial.load(path)

    def _digest(self, settings: object) -> str:
        """Of all that a trial depends on; times are in it, so that those of another kind of device are not taken."""
        device = torch.device(self.device).type
        known = [settings, self.saved.data, self.source.to_json(), *([] if device == "cpu" else [device])]
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:10]

    def network(self, seed: int) -> ElasticModel:
        """The teacher of a seed."""
        return self._elastic(load(self.teacher(seed)))

    def start(self, seed: int) -> ElasticModel:
        """What the teacher was fine-tuned from, with a new task head; or the fine-tuned model that was taken for it."""
        plan = replace(self.plan, training=replace(self.plan.training, seed=seed))
        return self._elastic(load_for(self.task, self.saved.model, plan))

    def no_masked_phase(self) -> str | None:
        """Why `masked` gives nothing to train with; None where it does."""
        if self.tokenizer.mask_token_id is None:
            return f"its masked phase needs a mask token, and the tokenizer of {self.run} has none"
        if not has_head(self.saved.model, MASKED_HEAD):
            return f"its masked phase needs the encoder's own head over the vocabulary, and {self.saved.model} has none"
        return None

    def masked(self) -> MaskedEncoder:
        """What the teacher was fine-tuned from, for a masked-language-model phase; a new one each time.

        Where it has no head over the vocabulary, see `no_masked_phase`, one of random numbers stands in.
        """
        return MaskedEncoder(load(self.saved.model, head=MASKED_HEAD), Vocabulary.of(self.tokenizer))

    def _elastic(self, model: "PreTrainedModel") -> ElasticModel:
        elastic = ElasticModel(model, self.plan.grid, depth_rule=self.plan.depth_rule)
        elastic.to(self.device)
        return elastic

    def teacher_logits(self, seed: int) -> np.ndarray:
        """What the teacher of a seed says of the validation rows."""
        return predict(self.network(seed).at(Subnet()), self.rows(seed).validation)

    def trained(self, name: str, plan: Plan, *, seed: int) -> Trial:
        """A training by a plan of its own, from the teacher of a seed.

        :param plan: its recipe costs what it costs: see `at_budget`. Its teacher is that of the seed.
        """
        return self.trained_and(name, plan, seed=seed, also=())[name]

    def trained_and(self, name: str, plan: Plan, *, seed: int, also: Sequence[Derived]) -> dict[str, Trial]:
        """Likewise, and the trials of what else is made of the trained network, by name.

        One training serves all of them; where one that was asked for was not kept, it is done once more.

        :return: without those to spare that had no network at hand.
        """
        plan = replace(plan, teacher=None, training=replace(plan.training, seed=seed))
        unnamed = replace(plan, recipe=replace(plan.recipe, name=""))
        recipe, grid, batching = asdict(unnamed.recipe), asdict(plan.grid), asdict(plan.batching)
        settings = (recipe, grid, batching, plan.depth_rule, plan.order, plan.training.precision, seed)
        work = self.folder / "running" / self._digest(settings)
        made: list[ElasticMethod] = []

        def network() -> ElasticMethod:
            if not made:
                made.append(self._trained(name, unnamed, seed, work))
            return made[0]

        trials = {name: self.kept(f"{name}-{seed}", settings, lambda: self.trial(name, network(), seed))}
        for other in also:
            if made or not other.spare:
                make = partial(self._derived, other, network, seed)
                trials[other.name] = self.kept(f"{other.name}-{seed}", (*settings, other.settings), make)
        if work.exists():
            remove_folder(work)
        return trials

    def _derived(self, other: Derived, network: Callable[[], ElasticMethod], seed: int) -> Trial:
        return self.trial(other.name, other.make(network(), self.rows(seed)), seed)

    def _trained(self, name: str, plan: Plan, seed: int, work: Path) -> ElasticMethod:
        """The network of a plan; that of the run, where that is its plan."""
        n_steps = sum(stage.n_steps(len(self.rows(seed).train)) for stage in plan.recipe.stages)
        spent = Spent(self.cost(plan.recipe), n_steps)
        own = replace(self.plan, teacher=None, recipe=replace(self.plan.recipe, name=""))
        folder = self.run if plan == own and self.source == self.saved.source else work
        if folder == work:
            train(self.teacher(seed), self.source, work, plan=plan, hooks=self.hooks, latency=None, device=self.device)
        elastic = load_result(folder)
        elastic.to(self.device)
        return ElasticMethod(name=name, elastic=elastic, spent=spent)

    def trial(self, name: str, method: Method, seed: int) -> Trial:
        """What is kept of a trained method."""
        rows = self.rows(seed)
        metric, labels = ROW_METRICS[rows.task.primary_metric], labels_of(rows.select)
        teacher = self.network(seed).at(Subnet())
        selected = {point: method.predict(point, rows.select) for point in method.points()}
        answers = {point: method.predict(point, rows.validation) for point in method.points()}
        times = relative_times(method, teacher, rows.validation)
        points = tuple(
            Point(
                name=point,
                select_metric=metric(labels, selected[point].logits),
                select_flops=float(selected[point].flops.mean()),
                flops=float(answers[point].flops.mean()),
                n_layers=float(answers[point].n_layers.mean()),
                time=times[point],
            )
            for point in method.points()
        )
        return Trial(
            name=name,
            training_flops=method.training_flops,
            n_steps=method.n_steps,
            points=points,
            logits={point: answer.logits for point, answer in answers.items()},
            sweep=sweep_of(
                method,
                rows.validation,
                task=rows.task,
                reference=predict(teacher, rows.validation),
                answers=answers,
            ),
        )


def relative_times(method: Method, full: "PreTrainedModel", rows: Iterable[Batch]) -> dict[str, tuple[float, float]]:
    """How long a method takes for an input, as a share of what the full network takes: one by one and 32 together.

    A sample of the rows at their own lengths, all points and the full network taking turns, medians of the repeats.
    """
    batches = list(rows)
    shares: dict[str, list[float]] = {point: [] for point in method.points()}
    for sample in (_sample(batches, n=n, size=size) for size, n in _TIMED.items()):
        calls: dict[str, Callable[[], object]] = {
            point: partial(method.answer, point, sample) for point in method.points()
        }
        calls[""] = partial(predict, full, sample)
        taken = interleaved_ms(calls, _REPEATS)
        for point, found in shares.items():
            found.append(taken[point] / taken[""])
    return {point: (single, together) for point, (single, together) in shares.items()}


def _sample(batches: Sequence[Batch], *, n: int, size: int) -> list[Batch]:
    """Some batches of a size, spread evenly over all rows, which stand in the order of their lengths."""
    starts = np.cumsum([0, *map(len, batches)])
    sample = []
    for row in np.linspace(0, starts[-1] - 1, n).round().astype(int):
        place = int(np.searchsorted(starts, row, side="right")) - 1
        last_whole = max(0, len(batches[place]) - size)
        sample.append(batches[place].part(min(row - starts[place], last_whole), size))
    return sample


@dataclass(frozen=True, eq=False)
class Tuned:
    """A learning rate that was chosen, and what was trained with it.

    :param trials: one for each seed.
    :param at_edge: the rate is the lowest or the highest of several that were tried: a better one may lie beyond.
    """

    lr: float
    trials: list[Trial]
    at_edge: bool


def tuned(
    train: Callable[[float, int], Trial],
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    score: Callable[[Trial], float],
    further: bool = False,
) -> Tuned:
    """Choose a learning rate with the first seed, and train with all.

    :param train: gives the trial of a rate and a seed.
    :param score: of a trial, on the `select` rows; higher is better.
    :param further: where the best of several rates is the lowest or the highest, try one more, a third or thrice of it.
    """
    scores = {lr: score(train(lr, seeds[0])) for lr in rates}
    best = max(scores, key=scores.__getitem__)
    if further and _at_edge(best, scores):
        beyond = _rounded(best / 3 if best == min(scores) else best * 3)
        scores[beyond] = score(train(beyond, seeds[0]))
        best = max(scores, key=scores.__getitem__)
    return Tuned(best, [train(best, seed) for seed in seeds], _at_edge(best, scores))


def _at_edge(lr: float, tried: Iterable[float]) -> bool:
    rates = sorted(tried)
    return len(rates) > 1 and lr in (rates[0], rates[-1])


def _rounded(lr: float) -> float:
    """To three digits, so that a rate reads as it was used."""
    return float(f"{lr:.3g}")


def counted(seeds: Sequence[int]) -> str:
    """How many there are, in words."""
    return "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"


def covering(seeds: Sequence[int]) -> str:
    """What the intervals of a study hold: of one seed nothing is known of other trainings."""
    return "over rows of one training, another seed may differ by more" if len(seeds) == 1 else "over rows and seeds"


def check_settings(runs: Sequence[object], *, n_seeds: int, budget: float, lrs: Sequence[float]) -> None:
    """Refuse what no study can be made of.

    :raises SettingError: no runs or seeds, or rates or a budget that are not above 0.
    """
    if not runs:
        raise SettingError("no runs given; give the folder of one at least")
    for name, values in (("seeds", (n_seeds,)), ("budget", (budget,)), ("learning rate", tuple(lrs))):
        for value in values:
            if not value > 0:
                raise SettingError(f"{name} {value:g} must be above 0")
