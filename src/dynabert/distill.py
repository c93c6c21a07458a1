"""One loop for every training stage: fine-tuning the teacher, width, depth, sandwich, final fine-tuning.

It takes batches and hooks and knows no task and no files. Everything random is a function of (seed, stage, step,
Subnet), and the learning rate a function of the step, so what a resumed stage needs is its weights, its optimizer
state and one integer.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError, SettingError, Stopped, one_of
from dynabert.failures import Saving, held, interruptible, may_step
from dynabert.losses import Counts, EncoderOutput, Reduction, loss_terms, weighted_sum
from dynabert.precision import PRECISIONS, TrainingViews
from dynabert.recipes import Recipe, Stage, recipe_of
from dynabert.seeds import derive_seed
from dynabert.subnet import Subnet, matched_states

if TYPE_CHECKING:
    from dynabert.batches import Batch

Evaluate = Callable[[ElasticModel, Stage], float]
"""Scores the network on held-out rows: the mean metric over the stage's Subnets, higher is better."""


class BatchSource(Protocol):
    """Training batches by step: `dynabert.batches.Batches` is one."""

    def __len__(self) -> int:
        """Steps in one epoch."""

    def at(self, step: int) -> "Batch":
        """The batch of a step, counted over all epochs; a pure function of it."""


@dataclass(frozen=True)
class Training:
    """Settings of the loop that hold for all stages.

    :param precision: of the matrix products, ``bf16`` or ``fp32``; the weights are fp32 in both.
    :param clip: largest norm of a step's gradient, over all weights.
    :param warmup: share of the steps over which the learning rate rises; the paper: 0 for BERT, 0.06 for RoBERTa.
    :param evaluate_every: steps between evaluations on the `select` rows; None for four times a stage.
    :param saving: when checkpoints are due, and what happens on a full disk.
    :param log_every: steps between reports of the losses.
    """

    seed: int = 42
    precision: str = "bf16"
    clip: float = 1.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    evaluate_every: int | None = None
    saving: Saving = field(default_factory=Saving)
    log_every: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise SettingError(f"warmup {self.warmup} is a share of the steps; give a number in [0, 1)")
        if self.precision not in PRECISIONS:
            raise SettingError(one_of("precision", self.precision, PRECISIONS))
        if not self.clip > 0 or self.weight_decay < 0 or self.log_every < 1:
            raise SettingError("clip and log_every must be above 0, weight_decay not negative")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise SettingError(f"evaluate_every {self.evaluate_every} must be 1 step or more")


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    :param losses: each term of each Subnet, unweighted, on the steps that are logged, else empty.
    :param skipped: row ids of the batch where the step was left out for NaN or infinity, else empty.
    """

    stage: str
    step: int
    n_steps: int
    lr: float
    gradient_norm: float
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()


@dataclass
class Progress:
    """Where a stage stands. With the weights and the optimizer's tensors this is all that a resumed stage needs.

    :param step: steps taken, those that were left out included.
    :param evaluated_step: where the network was last scored: a stop may come between a step and its evaluation.
    :param bad_steps: left out for NaN or infinity, in a row; `skipped`, in the whole stage.
    """

    step: int = 0
    best_step: int = -1
    best_score: float = float("-inf")
    evaluated_step: int = 0
    bad_steps: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Everything a stage needs to go on exactly: named tensors (weights, optimizer, best weights) and its progress."""

    tensors: dict[str, Tensor]
    progress: Progress


class Hooks:
    """What the caller of the loop may hang on it; every method does nothing by default."""

    def started(self, stage: Stage, n_steps: int, step: int) -> None:
        """A stage begins, or goes on at `step`."""

    def stepped(self, report: StepReport) -> None:
        """A step has been taken."""

    def evaluated(self, stage: Stage, step: int, score: float, best: bool) -> None:
        """The network has been scored on held-out rows; `best` so far or not."""

    def checkpoint(self, stage: Stage, snapshot: Callable[[], Snapshot]) -> None:
        """A checkpoint is due; call `snapshot` for what it holds."""


class _Best:
    """The weights that scored best so far, kept in memory, and put back at the end of the stage."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.weights:
                self.weights[name].copy_(parameter)
            else:
                self.weights[name] = parameter.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.weights[name])


class StageRun:
    """One stage, running: the state of the loop in one place. Made by `train_stage`.

    The largest Subnets come first, and those of one width together, so that one teacher output is alive at a time; each
    Subnet's backward follows its forward, so memory stays near that of plain fine-tuning.
    """

    def __init__(
        self,
        elastic: ElasticModel,
        stage: Stage,
        batches: BatchSource,
        *,
        teacher: ElasticModel | None,
        reduction: Reduction,
        training: Training,
    ) -> None:
        if stage.teacher != "none" and teacher is None:
            raise SettingError(f"stage {stage.name!r} needs a teacher; give the fine-tuned model it learns from")
        self.elastic, self.stage, self.batches = elastic, stage, batches
        self.reduction, self.training = reduction, training
        self.grid = stage.grid(elastic.grid)
        self.n_steps = max(1, round(stage.epochs * len(batches)))
        self.parameters = {name: p for name, p in elastic.model.named_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        self.students = TrainingViews(elastic, precision=training.precision)
        self.teachers = None if teacher is None else TrainingViews(teacher, precision=training.precision)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=stage.lr, weight_decay=training.weight_decay, fused=True
        )
        self.progress = Progress()
        self.best = _Best(elastic.model)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero: a function of the step alone."""
        warm = round(self.training.warmup * self.n_steps)
        if step < warm:
            return self.stage.lr * (step + 1) / warm
        return self.stage.lr * (self.n_steps - step) / (self.n_steps - warm)

    def losses(self, step: int, batch: "Batch") -> Iterator[tuple[Subnet, dict[str, Tensor]]]:
        """Forward of every Subnet of the step beside its teacher; yields the terms of each, still on the graph."""
        counts = Counts.of(batch.inputs["attention_mask"], self.reduction.padding)
        targets: EncoderOutput | None = None
        taught: Subnet | None = None
        for subnet in self.stage.schedule.subnets(self.grid, self.training.seed, step):
            if self.teachers is not None and self.stage.teacher_of(subnet) != taught:
                taught = self.stage.teacher_of(subnet)
                with torch.no_grad():
                    targets = self._run(self.teachers.at(taught).eval(), batch)
            student = self.students.at(subnet).train()
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(derive_seed(self.training.seed, "dropout", self.stage.name, step, subnet.name))
                outputs = self._run(student, batch)
            kept = tuple(part.layer for part in self.elastic.slices(subnet))
            yield (
                subnet,
                loss_terms(
                    outputs,
                    targets,
                    attention_mask=batch.inputs["attention_mask"],
                    labels=batch.labels,
                    matched=matched_states(kept, self.elastic.shape.n_layers),
                    weights=self.stage.weights,
                    reduction=self.reduction,
                    counts=counts,
                ),
            )

    def _run(self, view: nn.Module, batch: "Batch") -> EncoderOutput:
        return view(**batch.inputs, output_hidden_states=self.stage.weights.needs_states)

    def step(self) -> StepReport:
        """One training step: the gradients of all its Subnets, clipped together, and one optimizer step.

        Up to the optimizer step nothing that counts has changed, so a stop comes through at once.
        """
        step, logged = self.progress.step, self.progress.step % self.training.log_every == 0
        lr = self.learning_rate(step)
        with interruptible():
            batch = self.batches.at(step).to(self.device)
            loss, report = self._backward(step, batch, logged=logged)
            norm = self._clip()
        rows = tuple(batch.ids.tolist())
        taken = may_step(self.progress, {"loss": float(loss), "gradient norm": norm}, stage=self.stage.name, rows=rows)
        if taken:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.students.refresh()
        self.progress.step += 1
        return StepReport(self.stage.name, step, self.n_steps, lr, norm, report, () if taken else rows)

    def _backward(self, step: int, batch: "Batch", *, logged: bool) -> tuple[Tensor, dict[str, dict[str, float]]]:
        """The gradients of all Subnets of a step; their loss, a scalar, and its terms where they are logged."""
        n_subnets = len(self.stage.schedule.subnets(self.grid, self.training.seed, step))
        share = 1 / n_subnets if self.reduction.subnets == "mean" else 1.0
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
        total = torch.zeros((), device=self.device)
        report: dict[str, dict[str, float]] = {}
        for subnet, terms in self.losses(step, batch):
            loss = weighted_sum(terms, self.stage.weights) * share
            loss.backward()
            total += loss.detach()
            if logged:
                report[subnet.name] = {name: float(term.detach()) for name, term in terms.items()}
        return total, report

    def _clip(self) -> float:
        """Clip the gradient of all weights together; the norm before. Most of the time nothing has to be multiplied."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        if not total <= self.training.clip:
            nn.utils.clip_grads_with_norm_(self.parameters.values(), self.training.clip, total)
        return float(total)

    def evaluate(self, evaluate: Evaluate, hooks: Hooks) -> None:
        """Score the network and keep its weights if they are the best so far."""
        with interruptible():
            score = evaluate(self.elastic, self.stage)
        self.progress.evaluated_step = self.progress.step
        best = score > self.progress.best_score
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


def train_stage(
    elastic: ElasticModel,
    stage: Stage,
    batches: BatchSource,
    *,
    teacher: ElasticModel | None = None,
    reduction: Reduction | None = None,
    training: Training | None = None,
    evaluate: Evaluate | None = None,
    hooks: Hooks | None = None,
    resume: Snapshot | None = None,
) -> Progress:
    """Train a network through one stage, in place.

    :param elastic: the network; its weights end as the best scored ones, or the last ones where nothing is evaluated.
    :param stage: what to train, from whom, for how long.
    :param batches: training rows, by step.
    :param teacher: what the students learn from; None only for a stage without a teacher. It is not changed.
    :param reduction: how losses are averaged; by default with the repairs of `Reduction`.
    :param training: settings of the loop.
    :param evaluate: scores the network on held-out rows, for the choice of the best weights.
    :param hooks: reports and checkpoints.
    :param resume: where an interrupted stage had come to.
    :return: the steps taken and the best score.
    :raises SettingError: a stage that needs a teacher and has none.
    :raises ModelFileError: `resume` is of another network.
    :raises NonFiniteError: NaN or infinity in several steps in a row; the weights are those before them.
    :raises Stopped: a signal came, see `dynabert.failures.stop_signals`; a checkpoint has been made of where it came.

    Source: DynaBERT Algorithms 2 and 3.
    """
    training, hooks = training or Training(), hooks or Hooks()
    run = StageRun(elastic, stage, batches, teacher=teacher, reduction=reduction or Reduction(), training=training)
    if resume is not None:
        run.restore(resume)
    hooks.started(stage, run.n_steps, run.progress.step)
    with held():
        try:
            _run(run, evaluate, hooks)
        except Stopped:
            hooks.checkpoint(stage, run.snapshot)
            raise
        if run.best.weights:
            run.best.restore()
    for parameter in run.parameters.values():
        parameter.grad = None
    return run.progress


def _run(run: StageRun, evaluate: Evaluate | None, hooks: Hooks) -> None:
    """All steps that are left. What lies between two steps can be gone on from in every order of its parts."""
    saving, progress = run.training.saving, run.progress
    every = run.training.evaluate_every or max(1, -(-run.n_steps // 4))
    saved, saved_at = progress.step, time.monotonic()
    while True:
        step = progress.step
        # once in a while: score on held-out rows
        due = step > 0 and (step % every == 0 or step == run.n_steps)
        if evaluate is not None and due and progress.evaluated_step != step:
            run.evaluate(evaluate, hooks)
        if step >= run.n_steps:
            return
        # once in a while: a checkpoint
        late = time.monotonic() - saved_at >= 60 * saving.minutes
        if step > saved and (late or (saving.steps is not None and step % saving.steps == 0)):
            hooks.checkpoint(run.stage, run.snapshot)
            saved, saved_at = step, time.monotonic()
        hooks.stepped(run.step())


def teacher_of(stage: Stage, elastic: ElasticModel, original: ElasticModel) -> ElasticModel | None:
    """Who teaches a stage: nobody, the original network, or a copy of the network as it is when the stage begins."""
    if stage.teacher == "none":
        return None
    return original if stage.teacher == "original" else elastic.copy()


def distill(
    elastic: ElasticModel,
    batches: BatchSource,
    *,
    recipe: Recipe | str = "default",
    teacher: ElasticModel | None = None,
    training: Training | None = None,
    evaluate: Evaluate | None = None,
    hooks: Hooks | None = None,
) -> None:
    """Train all Subnets of a network with a teacher, through every stage of a recipe, in place.

    :param elastic: a fine-tuned network, best after `rewire`.
    :param batches: training rows, by step.
    :param recipe: a `Recipe`, or the name of one in `dynabert.recipes.RECIPES`.
    :param teacher: the ``original`` teacher; by default the network as it is now.
    :param training: settings of the loop.
    :param evaluate: scores the network on held-out rows, for the choice of the best weights of each stage.
    :param hooks: reports and checkpoints.
    """
    plan = recipe_of(recipe) if isinstance(recipe, str) else recipe
    original = teacher or elastic.copy()
    for stage in plan.stages:
        train_stage(
            elastic,
            stage,
            batches,
            teacher=teacher_of(stage, elastic, original),
            reduction=plan.reduction,
            training=training,
            evaluate=evaluate,
            hooks=hooks,
        )
