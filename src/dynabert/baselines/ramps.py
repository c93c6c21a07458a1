"""One small loop that trains the ramps of an early exit on a network that stays as it is."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from dynabert.baselines.method import Spent
from dynabert.distill import Best, Training
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.exits import EarlyExit, Ramp, n_classes
from dynabert.failures import may_step
from dynabert.hooks import Hooks, Progress, StepReport
from dynabert.losses import LossWeights
from dynabert.measure import labels_of, main_metric
from dynabert.precision import TrainingViews
from dynabert.recipes import Stage
from dynabert.stack import Stack
from dynabert.stepping import adamw, clip, learning_rate, seeded, take
from dynabert.subnet import Subnet
from dynabert.tasks import Task, metric_of
from dynabert.workload import BACKWARD, StepRows, affordable_steps, forward_flops

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from dynabert.batches import Batch, BatchSource

_INIT_STD = 0.02  # of new weights, as BERT's are

Score: TypeAlias = Callable[[EarlyExit], float]
"""Of a network with its ramps, on held-out rows; higher is better."""


class RampLoss(Protocol):
    """What the ramps of a network are asked for."""

    def __call__(self, ramp: Tensor, top: Tensor, labels: Tensor | None, n_examples: float) -> Tensor:
        """The loss of one ramp; those of all are added up.

        :param ramp: its logits (batch, n_labels).
        :param top: those of the task head.
        :param labels: (batch,), or None for rows without.
        :param n_examples: of the whole step, to divide the sum by.
        """


def selection_score(batches: "Iterable[Batch]", task: Task) -> Score:
    """The score by which training chooses the weights of ramps: the mean of the main metric over all of them.

    :param batches: held-out rows, each once, with labels; read once and kept.
    :param task: says how predictions are judged.
    :raises SettingError: rows without labels.
    """
    rows = tuple(batches)
    labels = labels_of(rows)

    def evaluate(exits: EarlyExit) -> float:
        *ramps, _ = exits.all_exits(rows)
        return float(np.mean([main_metric(metric_of(task, labels, logits)) for logits in ramps]))

    return evaluate


def made(
    elastic: ElasticModel, subnet: Subnet, make: "Callable[[PretrainedConfig], Ramp]", *, seed: int
) -> nn.ModuleList:
    """A new ramp for each layer of a Subnet but the last, its weights normal as BERT's and its biases 0.

    :param make: one ramp from the network's configuration.
    :raises SettingError: a regression, or a Subnet of one layer.
    """
    config = elastic.model.config
    n_classes(config)
    if len(elastic.slices(subnet)) < 2:
        raise SettingError(f"{subnet.name} has one layer here, so nothing can leave early; name a size of two or more")
    with seeded(torch.device("cpu"), seed, "ramps"):
        ramps = nn.ModuleList(make(config) for _ in elastic.slices(subnet)[:-1])
        for module in ramps.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_INIT_STD)
                nn.init.zeros_(module.bias)
    return ramps.to(elastic.model.device)


def fit(
    elastic: ElasticModel,
    ramps: nn.ModuleList,
    batches: "BatchSource",
    *,
    name: str,
    loss: RampLoss,
    lr: float,
    budget_flops: float,
    training: Training,
    subnet: Subnet = Subnet(),
    evaluate: Score | None = None,
    hooks: Hooks | None = None,
) -> Spent:
    """Train ramps in place for as many steps as a budget pays; what was spent."""
    rows = StepRows.of(batches)
    beneath = forward_flops(elastic, subnet, rows)
    flops = beneath + (1 + BACKWARD) * rows.n_rows * sum(cast(Ramp, ramp).flops(rows.seq) for ramp in ramps)
    n_steps = affordable_steps(budget_flops, flops)
    labels_alone = LossWeights(logits=0, hidden=0, embeddings=0, labels=1)
    stage = Stage(name, "full", labels_alone, teacher="none", epochs=n_steps / len(batches), lr=lr)
    train_ramps(
        elastic,
        stage,
        ramps,
        batches,
        loss=loss,
        training=training,
        subnet=subnet,
        evaluate=evaluate,
        hooks=hooks,
    )
    return Spent(n_steps * flops, n_steps)


def train_ramps(
    elastic: ElasticModel,
    stage: Stage,
    ramps: nn.ModuleList,
    batches: "BatchSource",
    *,
    loss: RampLoss,
    training: Training,
    subnet: Subnet = Subnet(),
    evaluate: Score | None = None,
    hooks: Hooks | None = None,
) -> Progress:
    """Train ramps in place; the network beneath runs without dropout and without gradients.

    :param elastic: the trained network.
    :param stage: gives name, epochs and learning rate, and is what the hooks are told.
    :param ramps: of `Ramp`, one for each layer of the Subnet but the last; they end in eval mode.
    :param batches: training rows, by step.
    :param loss: of one ramp.
    :param training: settings of the loop; no checkpoints are made.
    :param subnet: the size that gets the ramps.
    :param evaluate: scores the ramps on held-out rows, for the choice of the best weights; by default the last stay.
    :param hooks: told of each step.
    :return: the steps taken.
    :raises NonFiniteError: NaN or infinity in several steps in a row.
    """
    hooks = hooks or Hooks()
    run = _RampRun(elastic, stage, ramps, batches, loss=loss, training=training, subnet=subnet)
    hooks.started(stage, run.n_steps, 0)
    ramps.train()
    while run.progress.step < run.n_steps:
        hooks.stepped(run.step())
        if evaluate is not None and training.evaluates_after(run.progress.step, run.n_steps):
            run.evaluate(evaluate, hooks)
    if run.progress.best_step >= 0:
        run.best.restore()
    ramps.eval()
    return run.progress


class _RampRun:
    """The state of the loop in one place."""

    def __init__(
        self,
        elastic: ElasticModel,
        stage: Stage,
        ramps: nn.ModuleList,
        batches: "BatchSource",
        *,
        loss: RampLoss,
        training: Training,
        subnet: Subnet,
    ) -> None:
        self.stage, self.ramps, self.batches, self.loss, self.training = stage, ramps, batches, loss, training
        self.device, self.best = elastic.model.device, Best(ramps)
        self.exits = EarlyExit(elastic.at(subnet), elastic.family, ramps)
        self.stack = Stack(TrainingViews(elastic, precision=training.precision).at(subnet).eval(), elastic.family)
        self.n_steps = stage.n_steps(len(batches))
        self.parameters = list(ramps.parameters())
        self.optimizer = adamw(self.parameters, lr=stage.lr, weight_decay=training.weight_decay)
        self.progress = Progress()

    def step(self) -> StepReport:
        """The gradients of all ramps, clipped together, and one optimizer step."""
        step, training = self.progress.step, self.training
        batches = [batch.to(self.device) for batch in self.batches.micro_batches(step)]
        self.optimizer.zero_grad()
        losses = torch.zeros(len(self.ramps), device=self.device)
        for number, batch in enumerate(batches):
            with seeded(self.device, training.seed, "dropout", self.stage.name, step, number):
                terms = self._losses(batch)
            terms.sum().backward()
            losses += terms.detach()
        norm = clip(self.parameters, training.clip)
        lr = learning_rate(step, n_steps=self.n_steps, peak=self.stage.lr, warmup=training.warmup)
        values = {"loss": float(losses.sum()), "gradient norm": norm}
        rows = tuple(torch.cat([batch.ids for batch in batches]).tolist())
        taken = may_step(self.progress, values, stage=self.stage.name, rows=rows)
        if taken:
            take(self.optimizer, lr)
        self.progress.step += 1
        logged = step % training.log_every == 0
        return StepReport(
            stage=self.stage.name,
            step=step,
            n_steps=self.n_steps,
            lr=lr,
            gradient_norm=norm,
            n_tokens=sum(int(batch.inputs["attention_mask"].sum()) for batch in batches),
            n_skipped=self.progress.skipped,
            losses={f"ramp{place}": {"ramp": x} for place, x in enumerate(losses.tolist(), 1)} if logged else {},
            skipped=() if taken else rows,
        )

    def evaluate(self, evaluate: Score, hooks: Hooks) -> None:
        """Score the ramps and keep their weights if they are the best so far; of equal scores the later ones."""
        score = evaluate(self.exits)
        best = score >= self.progress.best_score
        if best:
            self.best.keep()
            self.progress.best_score, self.progress.best_step = score, self.progress.step
        hooks.evaluated(self.stage, self.progress.step, score, best)

    def _losses(self, batch: "Batch") -> Tensor:
        """The loss of each ramp on one micro-batch, shape (ramps,)."""
        with torch.no_grad():
            *states, last = self.stack.states(batch.inputs)
            top = self.stack.head(last)
        n_examples = len(batch) if batch.whole is None else batch.whole.examples
        mask = batch.inputs["attention_mask"]
        answers = (ramp(state, mask) for ramp, state in zip(self.ramps, states, strict=True))
        return torch.stack([self.loss(answer, top, batch.labels, n_examples) for answer in answers])
