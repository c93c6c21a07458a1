"""One rank of a world that exchanges things; each part prints a line of what came out.

    python world_program.py FILE     with RANK, WORLD_SIZE, ... in the environment

Appends to FILE<RANK>, as lines of JSON, the name of each part and what came out of it. In the last part rank 1 dies.
"""

import json
import os
import sys
from dataclasses import replace

import torch
from helpers import TinyBatches, tiny_model
from torch import nn

from dynabert.distill import StageRun, Training
from dynabert.distributed import Gradients, Shared, joined
from dynabert.elastic import ElasticModel
from dynabert.errors import DataError, DynabertError
from dynabert.losses import Reduction
from dynabert.recipes import FINETUNE


def gather(world):
    rows = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)[: 3 * world.rank] + world.rank
    return world.gather_rows(rows).tolist()


def tell(world):
    told = world.from_first(lambda: Shared([1, None, "é"], {"a": torch.eye(2), "b": torch.tensor(3)}))
    assert told.tensors["b"].dtype == torch.int64
    return [told.value, told.tensors["a"].tolist(), int(told.tensors["b"])]


def do_on_first(world):
    world.agree("settings", "same")
    return world.on_first(lambda: world.rank)


def reduce(world):
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    gradients, seen = Gradients(weights, world), []
    for asked in (False, True):
        gradients.zero()
        for weight in weights:
            weight.grad += 1 + world.rank
        told = gradients.reduce(flag=asked and world.rank == 1, loss=0.5 + 0.5 * world.rank)
        seen.append([*(weight.grad.flatten().tolist() for weight in weights), told])
    return seen


def first_fails(world):
    def fail():
        raise DataError("the rows are gone")

    world.from_first(fail)


def disagree(world):
    world.agree("settings", f"rank {world.rank}")


def stop(world):
    """Rank 1 alone is asked to stop in step 1."""
    elastic = ElasticModel(tiny_model("bert"))
    training = Training(precision="fp32")
    run = StageRun(
        elastic, FINETUNE, TinyBatches(), teacher=None, reduction=Reduction(), training=training, world=world
    )
    seen = []
    for step in range(3):
        run.step(stop=world.rank == 1 and step == 1)
        seen.append(run.stopping)
    return seen


def bad_rows(world):
    """The rows of rank 1 alone are poisoned in step 1; each rank has a row of its own there."""
    elastic, batches = ElasticModel(tiny_model("bert", n_labels=1)), TinyBatches(n_labels=1)
    batches.list[1] = replace(batches.list[1], ids=batches.list[1].ids + 1000 * world.rank)
    if world.rank == 1:
        batches.list[1].labels[0] = float("nan")
    training = Training(precision="fp32")
    run = StageRun(elastic, FINETUNE, batches, teacher=None, reduction=Reduction(), training=training, world=world)
    return [list(run.step().skipped) for _ in range(3)]


def vanish(world):
    world.barrier()
    if world.rank == 1:
        os._exit(9)
    world.barrier()


def main(world, path):
    for part in (gather, tell, do_on_first, reduce, first_fails, disagree, stop, bad_rows, vanish):
        try:
            result = part(world)
        except DynabertError as error:
            result = [type(error).__name__, error.exit_code, str(error)]
        with open(f"{path}{world.rank}", "a") as file:
            file.write(json.dumps([part.__name__, result]) + "\n")


if __name__ == "__main__":
    with joined("cpu") as joined_world:
        main(joined_world, sys.argv[1])
