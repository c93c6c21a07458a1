"""T11: NaN and infinity, wherever they come from, never reach a weight or a checkpoint."""

import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import Check, Lines, Result, distill, main
from helpers import TinyBatches, tiny_model

from dynabert.checkpoint import newest_checkpoint, save_checkpoint
from dynabert.distill import StageRun, Training, train_stage
from dynabert.elastic import ElasticModel
from dynabert.errors import NonFiniteError
from dynabert.failures import MAX_BAD_STEPS, Saving
from dynabert.hooks import Hooks, Progress, Snapshot, StepReport
from dynabert.losses import LossWeights
from dynabert.recipes import RECIPES
from dynabert.subnet import SubnetGrid

N_STEPS = 12
PLACES = ("loss", "gradient", "teacher logits", "labels", "loss without gradient", "teacher states")
VALUES = {"NaN": float("nan"), "+inf": float("inf"), "-inf": float("-inf")}
GRID = SubnetGrid((1, 0.5), (1, 0.5))


class Poison:
    """Puts a value into one place of some steps, by changing the loop's own parts."""

    def __init__(self, place: str, value: float, steps: set[int], rng: random.Random) -> None:
        self.place, self.value, self.steps, self.rng = place, value, steps, rng
        self.now = False

    def batches(self, source: TinyBatches) -> TinyBatches:
        if self.place == "labels":
            for step in self.steps:
                labels = source.list[step].labels.clone()
                labels[self.rng.randrange(len(labels))] = self.value
                source.list[step] = replace(source.list[step], labels=labels)
        return source

    def spoil(self, teacher: Any) -> None:
        """Put the value into an output of the teacher."""
        if self.place == "teacher logits":
            teacher.logits[self.rng.randrange(len(teacher.logits)), 0] = self.value
        if self.place == "teacher states":
            teacher.hidden_states[-1][0, 0, self.rng.randrange(8)] = self.value

    def spoilt(self, terms: dict[str, Any]) -> dict[str, Any]:
        """The terms of a loss with the value in them, with or without a gradient."""
        if self.place == "loss":
            return {name: term * self.value for name, term in terms.items()}
        if self.place == "loss without gradient":
            return {name: term + self.value for name, term in terms.items()}
        return terms

    def run_class(self) -> type[StageRun]:
        poison = self

        class Poisoned(StageRun):
            def step(self, *, stop: bool = False) -> StepReport:
                poison.now = self.progress.step in poison.steps
                return super().step(stop=stop)

            def _run(self, view: Any, batch: Any) -> Any:
                output = super()._run(view, batch)
                if poison.now and not torch.is_grad_enabled():
                    poison.spoil(output)
                return output

            def losses(self, step: int, batch: Any, part: Any) -> Any:
                struck = poison.rng.randrange(4) if poison.now else -1
                for number, (subnet, terms) in enumerate(super().losses(step, batch, part)):
                    yield subnet, poison.spoilt(terms) if number == struck else terms

            def _clip(self) -> float:
                if poison.now and poison.place == "gradient":
                    gradient = poison.rng.choice(list(self.parameters.values())).grad
                    assert gradient is not None
                    gradient.view(-1)[poison.rng.randrange(gradient.numel())] = poison.value
                return super()._clip()

        return Poisoned


class Watch(Hooks):
    """Every weight after every step, every skipped step, and a checkpoint of every step."""

    def __init__(self, elastic: ElasticModel, folder: Path) -> None:
        self.elastic, self.folder = elastic, folder
        self.skipped: dict[int, tuple[int, ...]] = {}
        self.bad_weights = 0

    def stepped(self, report: StepReport) -> None:
        if report.skipped:
            self.skipped[report.step] = report.skipped
        self.bad_weights += not all(bool(p.isfinite().all()) for p in self.elastic.model.parameters())

    def checkpoint(self, stage: Any, snapshot: Any) -> None:
        save_checkpoint(self.folder, stage.name, snapshot())


def network(seed: int) -> ElasticModel:
    return ElasticModel(
        tiny_model("bert", seed=seed, n_labels=1, dropout=0.1, n_layers=2, hidden=32, n_neurons=32), GRID
    )


def poisoned(poison: Poison, folder: Path, precision: str) -> tuple[Watch, Progress | NonFiniteError, TinyBatches]:
    """A stage with poison in it: what was seen, and how it ended."""
    stage = replace(RECIPES["two-stage"].stages[1], epochs=1, lr=1e-3, weights=LossWeights(1, 1, 1, 1))
    elastic = network(0)
    watch, batches = Watch(elastic, folder), poison.batches(TinyBatches(N_STEPS, n_labels=1))
    training = Training(precision=precision, saving=Saving(minutes=0))
    distill.StageRun = poison.run_class()  # type: ignore[attr-defined]
    try:
        ended: Progress | NonFiniteError = train_stage(
            elastic, stage, batches, teacher=network(1), training=training, hooks=watch
        )
    except NonFiniteError as error:
        ended = error
    finally:
        distill.StageRun = StageRun  # type: ignore[attr-defined]
    watch.bad_weights += not all(bool(p.isfinite().all()) for p in elastic.model.parameters())
    return watch, ended, batches


def _some_steps(result: Result, poison: Poison, folder: Path, precision: str, said: list[str]) -> bool:
    """Bad steps are left out, counted and named; nothing that is not finite is saved."""
    what = f"{poison.value} in {poison.place}, {precision}, steps {sorted(poison.steps)}"
    watch, ended, batches = poisoned(poison, folder, precision)
    rows = {step: tuple(batches.at(step).ids.tolist()) for step in poison.steps}
    good = isinstance(ended, Progress) and ended.skipped == len(poison.steps) and watch.skipped == rows
    named = all(any(f"step {step} " in line and str(rows[step][0]) in line for line in said) for step in poison.steps)
    found = newest_checkpoint(folder, "depth")
    clean = found is not None and all(bool(tensor.isfinite().all()) for tensor in found.tensors.values())
    return result.check(
        good and named and clean and not watch.bad_weights,
        f"{what}: ended {ended}, left out {sorted(watch.skipped)}, bad weights {watch.bad_weights}, named {named}",
    )


def _five_in_a_row(result: Result, poison: Poison, folder: Path, precision: str) -> bool:
    first = min(poison.steps)
    watch, ended, batches = poisoned(poison, folder, precision)
    last = first + MAX_BAD_STEPS - 1
    good = isinstance(ended, NonFiniteError) and ended.exit_code == 3 and f"step {last} " in str(ended)
    good = good and all(str(int(row)) in str(ended) for row in batches.at(last).ids[:8])
    return result.check(good and not watch.bad_weights, f"five in a row, {poison.place}: {ended}")


def _padding_alone(result: Result) -> bool:
    """A batch of nothing but padding has loss 0 and changes nothing by its gradient."""
    batches = TinyBatches(2, n_labels=1)
    inputs = batches.list[0].inputs
    inputs["attention_mask"] = torch.zeros_like(inputs["attention_mask"])
    stage = replace(RECIPES["two-stage"].stages[1], epochs=1, lr=1e-3)
    reports: list[StepReport] = []
    hooks = Hooks()
    hooks.stepped = reports.append  # type: ignore[method-assign]
    train_stage(network(0), stage, batches, teacher=network(1), training=Training(log_every=1), hooks=hooks)
    losses = [value for terms in reports[0].losses.values() for value in terms.values()]
    return result.check(not any(losses) and reports[0].gradient_norm == 0, f"padding alone: {reports[0]}")


def _guarded_save(result: Result, folder: Path, value: float) -> bool:
    """No tensor that is not finite is published, whatever it is."""
    good = Snapshot({"weights/a": torch.ones(3)}, Progress(1))
    save_checkpoint(folder, "guard", good)
    kept = {"weights/a": torch.ones(3), "optimizer/exp_avg_sq/a": torch.tensor([1.0, value, 1.0])}
    try:
        save_checkpoint(folder, "guard", Snapshot(kept, Progress(2)))
    except NonFiniteError as error:
        found = newest_checkpoint(folder, "guard")
        return result.check("exp_avg_sq" in str(error) and found is not None and found.progress.step == 1, str(error))
    return result.check(False, f"{value} was saved")


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """So many injections, over places, values and precisions in turn; a fifth of them five steps in a row."""
    handler = Lines()
    logger = logging.getLogger("dynabert")
    logger.addHandler(handler)
    logger.propagate = False
    held = 0
    for number in range(trials):
        place, value = PLACES[number % len(PLACES)], list(VALUES.values())[number // len(PLACES) % 3]
        precision = "bf16" if number % 4 == 3 else "fp32"
        where = folder / str(number)
        handler.lines.clear()
        if number % 5 == 4:
            first = rng.randrange(1, N_STEPS - MAX_BAD_STEPS)
            poison = Poison(place, value, set(range(first, N_STEPS)), rng)
            held += _five_in_a_row(result, poison, where, precision)
        else:
            steps = {1 + rng.randrange(N_STEPS - 2), 1 + rng.randrange(N_STEPS - 2)}
            held += _some_steps(result, Poison(place, value, steps, rng), where, precision, handler.lines)
    logger.removeHandler(handler)
    logger.propagate = True
    padding = _padding_alone(result)
    guards = sum(_guarded_save(result, folder / f"guard{name}", value) for name, value in VALUES.items())
    result.figures |= {"injections": trials, "held": held, "saves_refused": guards, "padding_alone_is_0": padding}


CHECK = Check("T11", "NaN and infinity never reach a weight or a checkpoint", 60, run)

if __name__ == "__main__":
    main(CHECK)
