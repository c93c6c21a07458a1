"""Real checkpoints of the small job, made in this process: call it only after the last fork."""

import shutil
from pathlib import Path
from typing import Any

from harness import Job, killed_after

from dynabert.checkpoint import CHECKPOINTS, save_checkpoint
from dynabert.hooks import Hooks, Snapshot


class Keep(Hooks):
    """Keeps a copy of every snapshot in memory."""

    def __init__(self) -> None:
        self.taken: list[Snapshot] = []

    def checkpoint(self, stage: Any, snapshot: Any) -> None:
        taken = snapshot()
        self.taken.append(Snapshot({name: tensor.clone() for name, tensor in taken.tensors.items()}, taken.progress))


def two_checkpoints(job: Job, folder: Path) -> Path:
    """A folder with two checkpoints of the sandwich stage, as a run leaves them when it is killed."""
    out = folder / "interrupted"
    job.finish(out, prepare=killed_after(4))
    shutil.copytree(out / CHECKPOINTS, folder / "checkpoints")
    return folder / "checkpoints"


__all__ = ["Keep", "save_checkpoint", "two_checkpoints"]
