"""Training checkpoints: what an interrupted stage goes on from. safetensors and JSON, verified before use.

One folder a checkpoint, ``<stage>-<step>``: `state.safetensors` (weights, optimizer, best weights), `state.json` (where
the stage stands) and the manifest with the hash of both. It appears whole or not at all; the newest one that verifies
is used, and an older one goes only after a newer one is safe.
"""

import shutil
from dataclasses import asdict
from pathlib import Path

from dynabert.distill import Progress, Snapshot
from dynabert.errors import ModelFileError
from dynabert.files import clean_temporary, newest_verified, publish_folder, read_json, write_json

TENSORS, STATE = "state.safetensors", "state.json"


def save_checkpoint(folder: Path, stage: str, snapshot: Snapshot, *, keep: int = 2) -> Path:
    """Write a checkpoint of a stage; then delete those of it that are older than the newest `keep`.

    :param folder: where the checkpoints of a run lie.
    :param stage: name of the stage.
    :param snapshot: what to save.
    :param keep: how many checkpoints of this stage stay.
    :return: the checkpoint's folder.
    :raises StorageError: the disk is full or cannot be written; the earlier checkpoints are as they were.
    """
    from safetensors.torch import save_file

    target = folder / f"{stage}-{snapshot.progress.step:08d}"
    with publish_folder(target) as temporary:
        save_file({name: tensor.contiguous().cpu() for name, tensor in snapshot.tensors.items()}, temporary / TENSORS)
        progress = asdict(snapshot.progress)
        if snapshot.progress.best_step < 0:
            progress["best_score"] = None  # minus infinity, which JSON does not have
        write_json(temporary / STATE, {"stage": stage, "progress": progress})
    older = sorted(path for path in folder.glob(f"{stage}-*") if path != target)
    for path in older[: max(0, len(older) - keep + 1)]:
        shutil.rmtree(path)
    return target


def newest_checkpoint(folder: Path, stage: str) -> Snapshot | None:
    """The newest checkpoint of a stage that verifies, or None. Damaged ones are skipped with a warning.

    :param folder: where the checkpoints of a run lie.
    :param stage: name of the stage.
    """
    from safetensors.torch import load_file

    if not folder.is_dir():
        return None
    clean_temporary(folder)
    path = newest_verified(folder, f"{stage}-")
    if path is None:
        return None
    state = read_json(path / STATE)
    try:
        progress = state["progress"] | {"best_score": _number(state["progress"]["best_score"])}
        return Snapshot(load_file(path / TENSORS), Progress(**progress))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path} is not a checkpoint this version reads ({error}); delete it to start over"
        ) from error


def delete_checkpoints(folder: Path, stage: str) -> None:
    """Delete the checkpoints of a stage that is complete."""
    for path in folder.glob(f"{stage}-*"):
        shutil.rmtree(path)


def _number(value: float | None) -> float:
    return float("-inf") if value is None else float(value)
