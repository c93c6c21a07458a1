"""One loop for every training stage: fine-tuning the teacher, width, depth, sandwich, final fine-tuning.

It takes batches and hooks and knows no task and no files. Everything random is a function of (seed, stage, step,
Subnet, micro-batch), and the learning rate a function of the step, so what a resumed stage needs is its weights, its
optimizer state and one integer.

The same loop runs alone and on many ranks. Gradients gather locally over all micro-batches and Subnets of a step and
are added up over the ranks once, so that every rank then takes the same step.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from signal import SIGTERM
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dynabert.distributed import ALONE, Gradients, World
from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError, SettingError, Stopped
from dynabert.failures import Saving, asked_signal, held, interruptible, may_step
from dynabert.hooks import Hooks, Progress, Snapshot, StepReport
from dynabert.losses import Counts, EncoderOutput, Reduction, loss_terms, weighted_sum
from dynabert.memory import trim_heap
from dynabert.precision import AUTO, TrainingViews, check_precision
from dynabert.recipes import Recipe, Stage, recipe_of
from dynabert.stepping import adamw, clip, learning_rate, seeded, take
from dynabert.subnet import Subnet, matched_states
from dynabert.workload import planned_stages

if TYPE_CHECKING:
    from dynabert.batches import Batch, BatchSource

TRIM_EVERY = 10
"""Steps between calls of `trim_heap`, which takes some milliseconds."""

Evaluate = Callable[[ElasticModel, Stage], float]
"""Scores the network on held-out rows: the mean metric over the stage's Subnets, higher is better."""


@dataclass(frozen=True)
class Training:
    """Settings of the loop that hold for all stages.

    :param precision: of the matrix products, ``bf16`` or ``fp32``; the weights are fp32 in both. ``auto`` is bf16 where
        the device has instructions for it.
    :param clip: largest norm of a step's gradient, over all weights.
    :param warmup: share of the steps over which the learning rate rises; the paper: 0 for BERT, 0.06 for RoBERTa.
    :param evaluate_every: steps between evaluations on the `select` rows; None for four times a stage.
    :param saving: when checkpoints are due, and what happens on a full disk.
    :param log_every: steps between reports of the losses.
    """

    seed: int = 42
    precision: str = AUTO
    clip: float = 1.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    evaluate_every: int | None = None
    saving: Saving = field(default_factory=Saving)
    log_every: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise SettingError(f"warmup {self.warmup} is a share of the steps; give a number in [0, 1)")
        check_precision(self.precision)
        if not self.clip > 0 or self.weight_decay < 0 or self.log_every < 1:
            raise SettingError("clip and log_every must be above 0, weight_decay not negative")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise SettingError(f"evaluate_every {self.evaluate_every} must be 1 step or more")

    def evaluates_after(self, done: int, n_steps: int) -> bool:
        """Whether a stage of `n_steps` steps is scored on the `select` rows when `done` of them are done."""
        every = self.evaluate_every or max(1, -(-n_steps // 4))
        return done % every == 0 or done == n_steps


class Best:
    """The weights that scored best so far, kept in memory, and put back at the end of the stage."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self) -> None:
        """Take a copy of the weights as they are."""
        for name, parameter in self.model.named_parameters():
            if name in self.weights:
                self.weights[name].copy_(parameter)
            else:
                self.weights[name] = parameter.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept ones back."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.weights[name])


class StageRun:
    """One stage, running: the state of the loop in one place. Made by `train_stage`.

    One micro-batch after the other; within each the largest Subnets come first, and those of one width together, so
    that one teacher output is alive at a time. Each Subnet's backward follows its forward, so memory stays near that of
    plain fine-tuning.
    """

    def __init__(
        self,
        elastic: ElasticModel,
        stage: Stage,
        batches: "BatchSource",
        *,
        teacher: ElasticModel | None,
        reduction: Reduction,
        training: Training,
        world: World = ALONE,
    ) -> None:
        if stage.teacher != "none" and teacher is None:
            raise SettingError(f"stage {stage.name!r} needs a teacher; give the fine-tuned model it learns from")
        self.elastic, self.stage, self.batches = elastic, stage, batches
        self.reduction, self.training = reduction, training
        self.grid = stage.grid(elastic.grid)
        self.n_steps = stage.n_steps(len(batches))
        self.parameters = {name: p for name, p in elastic.model.named_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        self.world = world
        self.gradients = Gradients(self.parameters.values(), world)
        self.students = TrainingViews(elastic, precision=training.precision)
        self.teachers = None if teacher is None else TrainingViews(teacher, precision=training.precision)
        self.optimizer = adamw(self.parameters.values(), lr=stage.lr, weight_decay=training.weight_decay)
        self.progress = Progress()
        self.best = Best(elastic.model)
        self.stopping = False

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero: a function of the step alone."""
        return learning_rate(step, n_steps=self.n_steps, peak=self.stage.lr, warmup=self.training.warmup)

    def losses(self, step: int, batch: "Batch", part: tuple[int, ...]) -> Iterator[tuple[Subnet, dict[str, Tensor]]]:
        """Forward of every Subnet of the step beside its teacher; yields the terms of each, still on the graph.

        :param batch: one micro-batch of the step.
        :param part: what its dropout is seeded by besides: its number, or nothing where it is the only one.
        """
        counts = _counts(batch, self.reduction)
        targets: EncoderOutput | None = None
        taught: Subnet | None = None
        for subnet in self.stage.schedule.subnets(self.grid, self.training.seed, step):
            if self.teachers is not None and self.stage.teacher_of(subnet) != taught:
                taught = self.stage.teacher_of(subnet)
                with torch.no_grad():
                    targets = self._run(self.teachers.at(taught).eval(), batch)
            student = self.students.at(subnet).train()
            with seeded(self.device, self.training.seed, "dropout", self.stage.name, step, subnet.name, *part):
                outputs = self._run(student, batch)
            kept = tuple(part.layer for part in self.elastic.slices(subnet))
            yield (
                subnet,
                loss_terms(
                    outputs,
                    targets,
                    attention_mask=batch.inputs["attention_mask"],
                    labels=batch.labels,
                    matched=matched_states(kept, self.elastic.shape.n_layers, self.elastic.depth_rule),
                    weights=self.stage.weights,
                    reduction=self.reduction,
                    counts=counts,
                ),
            )

    def _run(self, view: nn.Module, batch: "Batch") -> EncoderOutput:
        return view(**batch.inputs, output_hidden_states=self.stage.weights.needs_states)

    def step(self, *, stop: bool = False) -> StepReport:
        """One training step: the gradients of all its Subnets, clipped together, and one optimizer step.

        Up to the optimizer step nothing that counts has changed, so a stop comes through at once; with several ranks
        when the step has ended, on all of them together.

        :param stop: whether this rank was asked to stop; `stopping` then says on every rank whether any was.
        """
        step, logged = self.progress.step, self.progress.step % self.training.log_every == 0
        lr = self.learning_rate(step)
        with self.tearable():
            batches = self.batches.micro_batches(step)
            own_loss, report = self._backward(step, batches, logged=logged)
            # Each rank has its part of the sum; from here on all have the same numbers, and decide alike.
            self.stopping, loss = self.gradients.reduce(flag=stop, loss=own_loss)
            report = self._over_ranks(report)
            norm = self._clip()
        rows = self._suspects(batches, own_loss) if not math.isfinite(loss + norm) else ()
        taken = may_step(self.progress, {"loss": loss, "gradient norm": norm}, stage=self.stage.name, rows=rows)
        if taken:
            take(self.optimizer, lr)
            self.students.refresh()
        self.progress.step += 1
        return StepReport(
            stage=self.stage.name,
            step=step,
            n_steps=self.n_steps,
            lr=lr,
            gradient_norm=norm,
            n_tokens=_n_tokens(batches),
            n_skipped=self.progress.skipped,
            losses=report,
            skipped=() if taken else rows,
        )

    def _backward(
        self, step: int, batches: "Sequence[Batch]", *, logged: bool
    ) -> tuple[float, dict[str, dict[str, float]]]:
        """This rank's gradients of all Subnets of a step; their loss, and its terms where they are logged."""
        n_subnets = len(self.stage.schedule.subnets(self.grid, self.training.seed, step))
        share = 1 / n_subnets if self.reduction.subnets == "mean" else 1.0
        self.gradients.zero()
        total = torch.zeros((), device=self.device)
        report: dict[str, dict[str, float]] = {}
        n_parts = self.world.size * len(batches)
        for micro, batch in enumerate(batches):
            part = (self.world.rank * len(batches) + micro,) if n_parts > 1 else ()
            for subnet, terms in self.losses(step, batch.to(self.device), part):
                loss = weighted_sum(terms, self.stage.weights) * share
                loss.backward()
                total += loss.detach()
                if logged:
                    _add(report.setdefault(subnet.name, {}), terms)
        return float(total), report

    def _suspects(self, batches: "Sequence[Batch]", own_loss: float) -> tuple[int, ...]:
        """Row ids of a step that is not finite: those of ranks whose own loss is not, or of all if none shows it."""
        ids = torch.cat([batch.ids for batch in batches])
        for mine in (ids[:0] if math.isfinite(own_loss) else ids, ids):
            gathered: list[int] = self.world.gather_rows(mine).tolist()
            if gathered:
                break
        return tuple(gathered)

    def tearable(self) -> AbstractContextManager[None]:
        """A block that a stop may end anywhere; never with several ranks, which wait for each other in it."""
        return interruptible() if self.world.size == 1 else nullcontext()

    def _over_ranks(self, report: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """The losses of a step, added up over the ranks."""
        if self.world.size == 1 or not report:
            return report
        listed = [value for terms in report.values() for value in terms.values()]
        values = torch.tensor(listed, dtype=torch.float64, device=self.world.device)
        self.world.sum(values)
        total = iter(values.tolist())
        return {name: {term: next(total) for term in terms} for name, terms in report.items()}

    def _clip(self) -> float:
        """Clip the gradient of all weights together; the norm before."""
        return clip(self.parameters.values(), self.training.clip)

    def evaluate(self, evaluate: Evaluate, hooks: Hooks) -> None:
        """Score the network and keep its weights if they are the best so far."""
        with self.tearable():
            score = evaluate(self.elastic, self.stage)
        self.progress.evaluated_step = self.progress.step
        best = score >= self.progress.best_score  # of equal scores the later weights, at the lower learning rate
        if best:
            self.best.keep()
            self.progress.best_score, self.progress.best_step = score, self.progress.step
        hooks.evaluated(self.stage, self.progress.step, score, best)

    def snapshot(self) -> Snapshot:
        """What a checkpoint holds."""
        tensors = {f"weights/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{key}/{name}"] = value
        tensors |= {f"best/{name}": value for name, value in self.best.weights.items()}
        return Snapshot(tensors, replace(self.progress))

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a checkpoint.

        :raises ModelFileError: its tensors are not those of this network.
        """
        self._check(snapshot.tensors)
        self.progress = replace(snapshot.progress)
        for name, parameter in self.parameters.items():
            parameter.copy_(snapshot.tensors[f"weights/{name}"])
        for key, value in snapshot.tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                slot, _, name = rest.partition("/")
                parameter = self.parameters[name]
                self.optimizer.state[parameter][slot] = value.to(parameter.device, copy=True)
            elif kind == "best":
                self.best.weights[rest] = value.to(self.device, copy=True)
        self.students.refresh()

    def _check(self, tensors: dict[str, Tensor]) -> None:
        """Every weight is there, and every tensor has the shape of its weight (or is a single number)."""
        missing = [name for name in self.parameters if f"weights/{name}" not in tensors]
        if missing:
            raise ModelFileError(f"the checkpoint of stage {self.stage.name!r} lacks {missing[0]}; delete it")
        shapes = {name: parameter.shape for name, parameter in self.best.model.named_parameters()}
        for key, tensor in tensors.items():
            name = key.split("/")[-1]
            if name not in shapes or (tensor.dim() > 0 and tensor.shape != shapes[name]):
                raise ModelFileError(
                    f"the checkpoint of stage {self.stage.name!r} is of another network: {key} has shape "
                    f"{list(tensor.shape)}, not {list(shapes.get(name, ()))}; delete it, or give another --out"
                )


def _counts(batch: "Batch", reduction: Reduction) -> Counts:
    """The denominators of the step that a micro-batch belongs to: every rank knows the lengths of all its rows."""
    if batch.whole is None:
        return Counts.of(batch.inputs["attention_mask"], reduction.padding)
    padded, tokens = batch.whole.padded_tokens, batch.whole.tokens
    return Counts(batch.whole.examples, padded if reduction.padding == "included" else tokens)


def _n_tokens(batches: "Sequence[Batch]") -> int:
    """Tokens of a whole step, padding not counted."""
    whole = batches[0].whole
    return int(batches[0].inputs["attention_mask"].sum()) if whole is None else whole.tokens


def _add(total: dict[str, float], terms: dict[str, Tensor]) -> None:
    for name, term in terms.items():
        total[name] = total.get(name, 0.0) + float(term.detach())


def train_stage(
    elastic: ElasticModel,
    stage: Stage,
    batches: "BatchSource",
    *,
    teacher: ElasticModel | None = None,
    reduction: Reduction | None = None,
    training: Training | None = None,
    evaluate: Evaluate | None = None,
    hooks: Hooks | None = None,
    resume: Snapshot | Callable[[], Snapshot | None] | None = None,
    world: World = ALONE,
) -> Progress:
    """Train a network through one stage, in place.

    On many ranks all call it with the same network, teacher, settings and `resume`, each with its own batches.

    :param elastic: the network; its weights end as the best scored ones, or the last ones where nothing is evaluated.
    :param stage: what to train, from whom, for how long.
    :param batches: training rows, by step.
    :param teacher: what the students learn from; None only for a stage without a teacher. It is not changed.
    :param reduction: how losses are averaged; by default with the repairs of `Reduction`.
    :param training: settings of the loop.
    :param evaluate: scores the network on held-out rows, for the choice of the best weights.
    :param hooks: reports and checkpoints.
    :param resume: where an interrupted stage had come to; or what loads it, so that nobody holds its tensors, or the
        deleted file that they are mapped from, once they have been copied.
    :param world: the ranks that train together.
    :return: the steps taken and the best score.
    :raises SettingError: a stage that needs a teacher and has none.
    :raises ModelFileError: `resume` is of another network.
    :raises NonFiniteError: NaN or infinity in several steps in a row; the weights are those before them.
    :raises Stopped: a signal came, see `dynabert.failures.stop_signals`; a checkpoint has been made of where it came.

    Source: DynaBERT Algorithms 2 and 3.
    """
    training, hooks = training or Training(), hooks or Hooks()
    run = StageRun(
        elastic, stage, batches, teacher=teacher, reduction=reduction or Reduction(), training=training, world=world
    )
    _resume(run, resume)
    hooks.started(stage, run.n_steps, run.progress.step)
    with held():
        try:
            _run(run, evaluate, hooks)
        except Stopped:
            hooks.checkpoint(stage, run.snapshot)
            if world.size > 1:
                world.barrier()  # a launcher ends all processes once one has ended, and rank 0 may still be writing
            raise
        if run.best.weights:
            run.best.restore()
    run.gradients.release()
    return run.progress


def _resume(run: StageRun, resume: Snapshot | Callable[[], Snapshot | None] | None) -> None:
    """Go on from a checkpoint, if there is one. A frame of its own, which lets go of what it has loaded."""
    snapshot = resume() if callable(resume) else resume
    if snapshot is not None:
        run.restore(snapshot)


def _run(run: StageRun, evaluate: Evaluate | None, hooks: Hooks) -> None:
    """All steps that are left. What lies between two steps can be gone on from in every order of its parts."""
    saving, progress = run.training.saving, run.progress
    saved, saved_at = progress.step, time.monotonic()
    while True:
        step = progress.step
        # once in a while: score on held-out rows
        due = step > 0 and run.training.evaluates_after(step, run.n_steps)
        if evaluate is not None and due and progress.evaluated_step != step:
            if run.world.size > 1:  # several ranks finish an evaluation before they stop, and a launcher may not wait
                hooks.checkpoint(run.stage, run.snapshot)
            run.evaluate(evaluate, hooks)
        if step >= run.n_steps:
            return
        # once in a while: a checkpoint
        late = time.monotonic() - saved_at >= 60 * saving.minutes
        if step > saved and (late or (saving.steps is not None and step % saving.steps == 0)):
            hooks.checkpoint(run.stage, run.snapshot)
            saved, saved_at = step, time.monotonic()
        # once in a while: freed memory goes back to the system
        if step % TRIM_EVERY == 0 and run.device.type == "cpu":
            trim_heap()
        hooks.stepped(run.step(stop=asked_signal() is not None))
        if run.stopping:
            raise Stopped(asked_signal() or SIGTERM)


def originals(stages: Sequence[Stage], original: ElasticModel | None) -> Iterator[ElasticModel | None]:
    """The original teacher for each stage in turn; None, which frees it, once no stage is left that learns from it."""
    for place in range(len(stages)):
        if all(stage.teacher != "original" for stage in stages[place:]):
            original = None
        yield original


def teacher_of(stage: Stage, elastic: ElasticModel, original: ElasticModel | None) -> ElasticModel | None:
    """Who teaches a stage: nobody, the original network, or a copy of the network as it is when the stage begins."""
    if stage.teacher == "none":
        return None
    return original if stage.teacher == "original" else elastic.copy()


def distill(
    elastic: ElasticModel,
    batches: "BatchSource",
    *,
    recipe: Recipe | str = "default",
    teacher: ElasticModel | None = None,
    training: Training | None = None,
    evaluate: Evaluate | None = None,
    hooks: Hooks | None = None,
    world: World = ALONE,
) -> None:
    """Train all Subnets of a network with a teacher, through every stage of a recipe, in place.

    :param elastic: a fine-tuned network, best after `rewire`.
    :param batches: training rows, by step.
    :param recipe: a `Recipe`, or the name of one in `dynabert.recipes.RECIPES`.
    :param teacher: the ``original`` teacher; by default the network as it is now.
    :param training: settings of the loop.
    :param evaluate: scores the network on held-out rows, for the choice of the best weights of each stage.
    :param hooks: reports and checkpoints.
    :param world: the ranks that train together.
    """
    plan = recipe_of(recipe) if isinstance(recipe, str) else recipe
    seed = (training or Training()).seed
    if hooks is not None:
        hooks.planned(planned_stages(plan.stages, elastic, steps_per_epoch=len(batches), seed=seed))
    for stage, original in zip(plan.stages, originals(plan.stages, teacher or elastic.copy()), strict=True):
        train_stage(
            elastic,
            stage,
            batches,
            teacher=teacher_of(stage, elastic, original),
            reduction=plan.reduction,
            training=training,
            evaluate=evaluate,
            hooks=hooks,
            world=world,
        )
