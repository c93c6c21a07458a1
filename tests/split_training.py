"""One small training job in float64 that can be split over ranks and micro-batches; as a program, one rank of it.

    python split_training.py FOLDER N_STEPS [CASE...]

with RANK, WORLD_SIZE, ... in the environment; writes <case>-rank<R>.safetensors and .json.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from helpers import VOCAB, tiny_model
from safetensors.torch import load_file, save_file

from dynabert.batches import Batches, Encoded
from dynabert.distill import Training, train_stage
from dynabert.distributed import ALONE, World, joined
from dynabert.elastic import ElasticModel
from dynabert.hooks import Hooks
from dynabert.losses import PUBLISHED, LossWeights, Reduction
from dynabert.measure import predict, selection_score
from dynabert.recipes import FINETUNE, RECIPES, Stage
from dynabert.rewire import score
from dynabert.subnet import Subnet, SubnetGrid
from dynabert.tasks import TASKS

N_ROWS, BATCH_SIZE, LR = 70, 8, 1e-3
GRID = SubnetGrid((1.0, 0.5), (1.0, 0.75, 0.5))


@dataclass(frozen=True)
class Case:
    """What is trained, and how rows become batches."""

    stage: Stage
    reduction: Reduction = Reduction()
    dropout: float = 0.0
    batching: tuple[tuple[str, int], ...] = (("batch_size", BATCH_SIZE),)


(SANDWICH,) = RECIPES["default"].stages
_, DEPTH = RECIPES["two-stage"].stages
MIXED = replace(DEPTH, weights=LossWeights(1, 1, 1, 0.5))
CASES = {
    "sandwich": Case(SANDWICH),
    "depth": Case(MIXED),
    "labels": Case(FINETUNE),
    "published": Case(DEPTH, PUBLISHED),
    "dropout": Case(SANDWICH, dropout=0.1),
    "tokens": Case(MIXED, batching=(("max_tokens", 40),)),
}


@dataclass
class Outcome:
    """All that a job leaves: weights and importance, row ids of each step on this rank, losses, scores."""

    tensors: dict[str, torch.Tensor]
    ids: list[list[list[int]]]
    losses: list[dict]
    scores: list[float]


class Recorder(Hooks):
    def __init__(self):
        self.losses, self.scores = [], []

    def stepped(self, report):
        self.losses.append(report.losses)

    def evaluated(self, stage, step, score, best):
        self.scores.append(score)


def rows():
    random = np.random.default_rng(7)
    lengths = random.integers(3, 13, N_ROWS)
    ids = [random.integers(2, VOCAB, n, dtype=np.int32) for n in lengths]
    return Encoded(ids, None, random.integers(0, 2, N_ROWS), np.arange(N_ROWS) + 500)


def network(seed, dropout):
    return ElasticModel(
        tiny_model("bert", seed=seed, n_labels=2, hidden=16, n_neurons=32, dtype=torch.float64, dropout=dropout), GRID
    )


def outcome(name, world=ALONE, *, n_steps, accumulate=1):
    """Do the job of a case."""
    case, recorder = CASES[name], Recorder()
    encoded = rows()
    batches = Batches(
        encoded, seed=3, pad_id=1, rank=world.rank, world=world.size, accumulate=accumulate, **dict(case.batching)
    )
    held_out = Batches(encoded, batch_size=16, seed=3, pad_id=1, shuffle=False)
    elastic, teacher = network(1, case.dropout), network(2, case.dropout)
    importance = score(teacher, batches, world=world)
    train_stage(
        elastic,
        replace(case.stage, epochs=n_steps / len(batches), lr=LR),
        batches,
        teacher=teacher,
        reduction=case.reduction,
        training=Training(precision="fp32", log_every=1, evaluate_every=n_steps // 4),
        evaluate=selection_score(held_out, TASKS["sst2"], precision="fp32", world=world),
        hooks=recorder,
        world=world,
    )
    tensors = {name: weight.detach() for name, weight in elastic.model.named_parameters()}
    tensors |= {"heads": importance.heads, "neurons": importance.neurons}
    logits = predict(network(5, 0.0).at(Subnet(0.5)), held_out, world=world)
    tensors["logits"] = torch.from_numpy(logits)
    ids = [[part.ids.tolist() for part in batches.micro_batches(step)] for step in range(n_steps)]
    return Outcome(tensors, ids, recorder.losses, recorder.scores)


def forbid_pickle():
    """Let every collective that pickles fail, and every class that is looked up for unpickling."""
    import torch.distributed as dist

    def refuse(*_, **__):
        raise AssertionError("a collective that pickles was called")

    for name in [name for name in dir(dist) if "object" in name]:
        setattr(dist, name, refuse)

    def watch(event, arguments):
        if event == "pickle.find_class":
            raise AssertionError(f"unpickled {arguments}")

    sys.addaudithook(watch)


def read_outcome(folder: Path, name: str, rank: int) -> Outcome:
    """What a rank wrote."""
    plain = json.loads((folder / f"{name}-rank{rank}.json").read_text())
    return Outcome(load_file(folder / f"{name}-rank{rank}.safetensors"), **plain)


def main(world: World, folder: Path, n_steps: int, *names: str) -> None:
    forbid_pickle()
    for name in names or CASES:
        done = outcome(name, world, n_steps=n_steps)
        save_file(
            {key: tensor.contiguous() for key, tensor in done.tensors.items()},
            folder / f"{name}-rank{world.rank}.safetensors",
        )
        plain = {"ids": done.ids, "losses": done.losses, "scores": done.scores}
        (folder / f"{name}-rank{world.rank}.json").write_text(json.dumps(plain))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined("cpu") as joined_world:
        main(joined_world, Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
