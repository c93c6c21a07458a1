"""T8: resumed at every step of three epochs, and fed by worker processes, training gives the same bits.

The third part of this row, one process against two, is a test of training on several devices.
"""

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import Check, Result, digest, distill, main
from helpers import TinyBatches, tiny_model

from dynabert.batches import Batch, Batches, Encoded
from dynabert.checkpoint import newest_checkpoint, save_checkpoint
from dynabert.distill import Training, train_stage
from dynabert.elastic import ElasticModel
from dynabert.failures import Saving
from dynabert.hooks import Hooks, Snapshot
from dynabert.recipes import RECIPES
from dynabert.subnet import SubnetGrid

STAGE = replace(RECIPES["default"].stages[0], epochs=3, lr=1e-3)
SAVING = Saving(minutes=1e9, steps=1)
TRAINING = Training(precision="bf16", log_every=1, saving=SAVING, warmup=0.1, weight_decay=0.01, evaluate_every=5)


def network(seed: int) -> ElasticModel:
    model = tiny_model("bert", seed=seed, dropout=0.1, n_layers=4, hidden=128, n_neurons=256)
    return ElasticModel(model, SubnetGrid())


def rows(n_rows: int, seed: int) -> Encoded:
    """Rows of random tokens and lengths."""
    drawn = TinyBatches(n_rows // 3 + 1).list
    ids, labels = [], []
    for batch in drawn:
        for row, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True):
            ids.append(row[: int(mask.sum())].numpy().astype("int32"))
        assert batch.labels is not None
        labels += batch.labels.tolist()
    numbers = torch.arange(n_rows).numpy()
    return Encoded(ids[:n_rows], None, torch.tensor(labels[:n_rows]).numpy(), numbers)


class Logged:
    """Batches that write down which rows were drawn at which step."""

    def __init__(self, source: Any) -> None:
        self.source, self.drawn = source, {}

    def __len__(self) -> int:
        return len(self.source)

    def micro_batches(self, step: int) -> tuple[Batch, ...]:
        batches = tuple(self.source.micro_batches(step))
        self.drawn[step] = [row for batch in batches for row in batch.ids.tolist()]
        return batches


class FromWorkers:
    """Batches made by other processes, each in turn, as a data loader with workers would.

    What comes back through a pipe is the plain numbers; the main process only puts them together.
    """

    def __init__(self, source: Batches, n_workers: int) -> None:
        self.source, self.pipes = source, []
        for _ in range(n_workers):
            asked, ask = os.pipe()
            answer, answered = os.pipe()
            if os.fork() == 0:
                self._work(asked, answered, close=(ask, answer))
            os.close(asked)
            os.close(answered)
            self.pipes.append((ask, answer))

    def _work(self, asked: int, answered: int, *, close: tuple[int, int]) -> None:
        try:
            for descriptor in (*close, *(end for pipes in self.pipes for end in pipes)):
                os.close(descriptor)
            with os.fdopen(asked, "rb") as requests, os.fdopen(answered, "wb") as answers:
                while request := requests.read(8):
                    batch = self.source.at(int.from_bytes(request, "little"))
                    tensors = [*batch.inputs.values(), batch.labels, batch.ids]
                    for tensor in tensors:
                        data = tensor.numpy().tobytes()
                        shape = ",".join(map(str, tensor.shape)).encode()
                        answers.write(len(shape).to_bytes(8, "little") + shape + len(data).to_bytes(8, "little") + data)
                    answers.flush()
        finally:
            os._exit(0)

    def __len__(self) -> int:
        return len(self.source)

    def micro_batches(self, step: int) -> tuple[Batch, ...]:
        ask, answer = self.pipes[step % len(self.pipes)]
        os.write(ask, step.to_bytes(8, "little"))
        tensors = []
        for _ in range(4):
            shape = [int(size) for size in self._read(answer).split(b",")]
            tensors.append(torch.frombuffer(bytearray(self._read(answer)), dtype=torch.int64).view(shape))
        names = ("input_ids", "attention_mask")
        return (Batch(dict(zip(names, tensors, strict=False)), tensors[2], tensors[3]),)

    def _read(self, descriptor: int) -> bytes:
        n_bytes = int.from_bytes(self._exactly(descriptor, 8), "little")
        return self._exactly(descriptor, n_bytes)

    def _exactly(self, descriptor: int, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            data += os.read(descriptor, n_bytes - len(data))
        return data

    def close(self) -> None:
        for ask, answer in self.pipes:
            os.close(ask)
            os.close(answer)
            os.wait()


class ToDisk(Hooks):
    """Saves a checkpoint of every step, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self, stage: Any, snapshot: Any) -> None:
        taken: Snapshot = snapshot()
        save_checkpoint(self.folder / str(taken.progress.step), stage.name, taken)


def score(elastic: ElasticModel, stage: Any) -> float:
    """A number that depends on all weights and goes up and down, so that the best weights are some in the middle."""
    total = sum(float(parameter.detach().double().sum()) for parameter in elastic.model.parameters())
    return (1e4 * total) % 1


def trained(
    batches: Any, *, hooks: Hooks | None = None, resume: Snapshot | None = None, seed: int = 0
) -> tuple[str, dict[int, list[int]]]:
    """The digest of everything at the end of the stage, and the batch-id log."""
    elastic, teacher, logged = network(seed), network(1), Logged(batches)
    made: list[Any] = []
    plain = distill.StageRun

    class Recorded(plain):  # type: ignore[misc, valid-type, name-defined]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            made.append(self)

    distill.StageRun = Recorded  # type: ignore[attr-defined]
    try:
        train_stage(
            elastic, STAGE, logged, teacher=teacher, training=TRAINING, evaluate=score, hooks=hooks, resume=resume
        )
    finally:
        distill.StageRun = plain  # type: ignore[attr-defined]
    return digest(made[0].snapshot()), logged.drawn


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """Three epochs of so many steps each; a resume at every one of them, then the same from 2 workers."""
    batches = Batches(rows(8 * trials - 3, 0), batch_size=8, seed=7, pad_id=1)
    result.check(len(batches) == trials, f"an epoch has {len(batches)} steps, not {trials}")
    workers = FromWorkers(batches, 2)  # forked before anything is computed here
    whole, drawn = trained(batches, hooks=ToDisk(folder))
    n_steps = 3 * trials
    identical = 0
    for step in range(1, n_steps):
        found = newest_checkpoint(folder / str(step), STAGE.name)
        end, again = trained(batches, resume=found, seed=5)
        same_rows = result.check(
            again == {at: ids for at, ids in drawn.items() if at >= step}, f"other rows from step {step} on"
        )
        identical += result.check(end == whole, f"resumed at step {step}: other weights or optimizer") and same_rows
    end, from_workers = trained(workers)
    workers.close()
    same_workers = result.check(end == whole and from_workers == drawn, "2 workers: other rows or weights")
    result.figures |= {"resumes": n_steps - 1, "identical": identical, "workers_0_and_2_identical": same_workers}


CHECK = Check("T8", "resumed at every step of 3 epochs, and from 2 workers: the same bits and rows", 12, run)

if __name__ == "__main__":
    main(CHECK)
