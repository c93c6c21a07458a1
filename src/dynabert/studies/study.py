"""What the trainings of a study share: the run, its rows, its budget; and those that are done, kept.

    RUN/studies/seeds/43/teacher/   the teacher of another seed than the run's own
    RUN/studies/trials/             one safetensors file for each finished training, named by all that it depends on
                                    (or a small file that says how it failed)
    RUN/studies/running/            a training that is not finished yet: a run folder, gone on with exactly

So a study goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynabert.baselines.masked import MaskedEncoder, Vocabulary
from dynabert.baselines.method import ElasticMethod, Method, Spent
from dynabert.data import fingerprint
from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError, NonFiniteError, SettingError
from dynabert.files import read_json, sha256_of, storage_errors, write_json
from dynabert.folders import remove_folder
from dynabert.hooks import Hooks
from dynabert.job import Prepared, load_for, pick_device
from dynabert.loading import has_head, load, load_tokenizer
from dynabert.measure import labels_of, machine_of, predict
from dynabert.plan import Plan, encoder_digest
from dynabert.precision import warn_if_emulated
from dynabert.recipes import Recipe, Stage, recipe_of
from dynabert.results import load_result, model_folder
from dynabert.run import train, train_teacher
from dynabert.saved import Saved
from dynabert.studies.trials import Trial, trial_of
from dynabert.subnet import Subnet
from dynabert.workload import StepRows, mean_step_flops

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STUDIES = "studies"
MASKED_HEAD = "ForMaskedLM"
_TEXT_RULE = "text, own outputs"  # what was kept before networks of this rule learnt these is out of date


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


def weights_of(run: Path) -> str:
    """A digest of the weights of a finished run: what is made of them is of these alone."""
    return sha256_of(run / "elastic" / "MANIFEST.json")


class Study:
    """What all trainings of a study share: the run that it starts from, and the rows.

    :param run: a finished run folder.
    :param budget: training FLOPs that each training may spend, as a share of those of the run's own recipe.
    :param limit: train on a random part of that many rows; by default on those of the run. Teachers, and methods that
        do without one, learn from all rows of the run still.
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
        # All are evaluated equally often, whatever they have for steps: the best weights of a stage are kept.
        self.plan = replace(self.saved.plan, training=replace(self.saved.plan.training, evaluate_every=None))
        warn_if_emulated(self.plan.training.precision, self.device)
        self.recipe = self.plan.recipe if recipe is None else recipe_of(recipe)
        self.task, self._run_roles = self.saved.roles()
        self._roles = self._run_roles
        self.validation = fingerprint(self._roles.validation)
        if limit is not None:
            _, self._roles = self.source.load()
        self._rows: dict[tuple[int, bool], Prepared] = {}
        self._teachers: dict[int, Path] = {self.plan.training.seed: self.run / "teacher"}
        self._is_encoder_checked = False

    def seeds(self, n: int) -> tuple[int, ...]:
        """The run's own seed and the ones after it."""
        return tuple(range(self.plan.training.seed, self.plan.training.seed + n))

    def teacher(self, seed: int) -> Path:
        """The folder of the teacher of a seed; trained as the run trained its own, unless that is the run's seed.

        :raises ModelFileError: it is missing or damaged.
        """
        if seed not in self._teachers:
            self._check_encoder()
            self._teachers[seed] = train_teacher(
                self.saved.model,
                self.saved.source,
                self.folder / "seeds" / str(seed),
                plan=_seeded(self.saved.plan, seed),
                hooks=self.hooks,
                device=self.device,
            )
        return model_folder(self._teachers[seed])

    def _plan(self, seed: int) -> Plan:
        """That of the run, with a seed of its own."""
        return _seeded(self.plan, seed)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """That of the run."""
        return load_tokenizer(self.run / "elastic")

    def rows(self, seed: int, *, of_run: bool = False) -> Prepared:
        """The rows of a study, in the order of a seed.

        :param of_run: all those of the run, whatever the study is limited to.
        """
        key = (seed, of_run and self.is_limited)
        if key not in self._rows:
            roles = self._run_roles if of_run else self._roles
            self._rows[key] = Prepared.of(self.task, roles, self.tokenizer, self._plan(seed))
        return self._rows[key]

    @property
    def is_limited(self) -> bool:
        """Whether it has other training rows than the run."""
        return self._roles is not self._run_roles

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

    @cached_property
    def budget_flops(self) -> float:
        """Training FLOPs that each training may spend."""
        return self.budget * self.cost(self.plan.recipe)

    @cached_property
    def teacher_flops(self) -> float:
        """Training FLOPs of the teacher; 0 where the run took a fine-tuned model as it is: `start` is that model then.

        The teacher learns from all rows of the run, whatever the study is limited to.
        """
        stage, seed = self.plan.teacher, self.plan.training.seed
        if not isinstance(stage, Stage):
            return 0.0
        train = self.rows(seed, of_run=True).train
        return stage.n_steps(len(train)) * mean_step_flops(stage, self.elastic, StepRows.of(train), seed=seed)

    def at_budget(self, recipe: Recipe) -> Recipe:
        """A recipe with all its stages made equally longer or shorter, so that it costs what each training may.

        :raises SettingError: that does not pay one step.
        """
        factor, n_steps = self.budget_flops / self.cost(recipe), len(self.rows(self.plan.training.seed).train)
        if factor * n_steps * sum(stage.epochs for stage in recipe.stages) < 1:
            raise SettingError(
                f"budget {self.budget:g} does not pay one training step of {self.run}; give a larger one"
            )
        return replace(recipe, stages=tuple(replace(stage, epochs=stage.epochs * factor) for stage in recipe.stages))

    def write(self, name: str, result: dict[str, Any]) -> None:
        """Write what a study found to its folder, with what it was made by."""
        made = {
            "budget": self.budget,
            "limit": self.source.limit,
            "n_train": len(self._roles.train.ids),
            "validation": self.validation,
            "weights": weights_of(self.run),
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
        :raises NonFiniteError: training fails; that is kept too, and is not tried again.
        """
        digest, trials = self._digest(settings), self.folder / "trials"
        known = sorted(trials.glob(f"*-{digest}.safetensors"))
        path = known[0] if known else trials / f"{name.replace(' ', '-')}-{digest}.safetensors"
        failure = trials / f"{digest}.failed.json"
        if failure.exists():
            raise NonFiniteError(read_json(failure)["error"])
        if not known:
            try:
                made = make()
            except NonFiniteError as error:
                with storage_errors(trials):
                    trials.mkdir(parents=True, exist_ok=True)
                write_json(failure, {"name": name, "error": str(error)})
                raise
            made.save(path)
        return Trial.load(path)

    def _digest(self, settings: object) -> str:
        """Of all that a trial depends on; times are in it, so that those of another kind of device are not taken."""
        device = torch.device(self.device).type
        source = replace(self.saved.made_from, limit=self.source.limit)  # wherever the rows are now
        forced = [f"forced {self.saved.forced} times"] * bool(self.saved.forced)  # by other settings, another run
        known = [settings, self.saved.data, source.to_json(), *([] if device == "cpu" else [device]), *forced]
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:10]

    def network(self, seed: int) -> ElasticModel:
        """The teacher of a seed."""
        return self._elastic(load(self.teacher(seed)))

    def start(self, seed: int) -> ElasticModel:
        """What the teacher was fine-tuned from, with a new task head; or the fine-tuned model that was taken for it.

        :raises ModelFileError: it is another encoder by now.
        """
        self._check_encoder()
        return self._elastic(load_for(self.task, self.saved.model, self._plan(seed)))

    def _check_encoder(self) -> None:
        """Once in a study; with the run's seed, by which a pooler is drawn where the encoder has none."""
        if self._is_encoder_checked:
            return
        elastic = self._elastic(load_for(self.task, self.saved.model, self.plan))
        if encoder_digest(elastic) != self.saved.encoder:
            raise ModelFileError(
                f"{self.saved.model}, of which {self.run} was made, has changed since; bring it back, or train again"
            )
        self._is_encoder_checked = True

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
        plan = replace(_seeded(plan, seed), teacher=None)
        unnamed = replace(plan, recipe=replace(plan.recipe, name=""))
        recipe, grid, batching = asdict(unnamed.recipe), asdict(plan.grid), asdict(plan.batching)
        rule = _TEXT_RULE if plan.depth_rule == "text" else plan.depth_rule
        settings = (recipe, grid, batching, rule, plan.order, plan.training.precision, seed)
        work = self.folder / "running" / self._digest(settings)
        made: list[ElasticMethod] = []

        def network() -> ElasticMethod:
            if not made:
                made.append(self._trained(name, unnamed, seed, work))
            return made[0]

        with _left_if_interrupted(work):
            trials = {name: self.kept(f"{name}-{seed}", settings, lambda: self.trial(name, network(), seed))}
            for other in also:
                if made or not other.spare:
                    make = partial(self._derived, other, network, seed)
                    trials[other.name] = self.kept(f"{other.name}-{seed}", (*settings, other.settings), make)
        return trials

    def _derived(self, other: Derived, network: Callable[[], ElasticMethod], seed: int) -> Trial:
        return self.trial(other.name, other.make(network(), self.rows(seed)), seed)

    def _trained(self, name: str, plan: Plan, seed: int, work: Path) -> ElasticMethod:
        """The network of a plan; that of the run, where that is its plan."""
        n_steps = sum(stage.n_steps(len(self.rows(seed).train)) for stage in plan.recipe.stages)
        spent = Spent(self.cost(plan.recipe), n_steps)
        own = replace(self.saved.plan, teacher=None, recipe=replace(self.plan.recipe, name=""))
        folder = self.run if plan == own and self.source == self.saved.source else work
        if folder == work:
            train(self.teacher(seed), self.source, work, plan=plan, hooks=self.hooks, latency=None, device=self.device)
        elastic = load_result(folder)
        elastic.to(self.device)
        return ElasticMethod(name=name, elastic=elastic, spent=spent)

    def trial(self, name: str, method: Method, seed: int) -> Trial:
        """What is kept of a trained method."""
        return trial_of(name, method, self.rows(seed), full=self.network(seed).at(Subnet()))


@contextmanager
def _left_if_interrupted(work: Path) -> Iterator[None]:
    """A block at whose end the folder of a training goes, whether it succeeded or failed for good."""
    try:
        yield
    except NonFiniteError:
        _remove(work)
        raise
    _remove(work)


def _remove(work: Path) -> None:
    if work.exists():
        remove_folder(work)


def _seeded(plan: Plan, seed: int) -> Plan:
    return replace(plan, training=replace(plan.training, seed=seed))


def studies_of(runs: Sequence[str | Path], **settings: Any) -> list[Study]:  # noqa: ANN401 (those of `Study`)
    """The study of each run; of rows of their own, for a mean over rows that count twice would seem too sure.

    :raises SettingError: two runs with the same validation rows, or by different recipes where none is named.
    """
    studies = [Study(Path(run), **settings) for run in runs]
    recipes = {study.recipe.name: study.run for study in studies}
    if len(recipes) > 1:
        found = ", ".join(f"{run} by {name}" for name, run in recipes.items())
        raise SettingError(f"the runs are of different recipes: {found}; name the one to study by --recipe")
    known: dict[str, Path] = {}
    for study in studies:
        if study.validation in known:
            raise SettingError(
                f"{known[study.validation]} and {study.run} have the same validation rows, which would count twice; "
                "give one of them, and more seeds by --seeds"
            )
        known[study.validation] = study.run
    return studies
