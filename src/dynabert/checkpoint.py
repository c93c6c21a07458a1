"""Training checkpoints: what an interrupted stage goes on from. safetensors and JSON, verified before use.

One folder a checkpoint, ``<stage>-<step>``: `state.safetensors` (weights, optimizer, best weights), `state.json` (where
the stage stands) and the manifest with the hash of both. It appears whole or not at all; the newest one that verifies
is used, and an older one goes only when enough newer ones verify.
"""

from dataclasses import asdict
from pathlib import Path

from dynabert.errors import ModelFileError, StorageError
from dynabert.failures import check_finite
from dynabert.files import read_json, write_json
from dynabert.folders import clean_temporary, newest_verified, numbered, publish_folder, remove_folder, verify_manifest
from dynabert.hooks import Progress, Snapshot

CHECKPOINTS = "checkpoints"
TENSORS, STATE = "state.safetensors", "state.json"


def save_checkpoint(folder: Path, stage: str, snapshot: Snapshot, *, keep: int = 2) -> Path:
    """Write a checkpoint of a stage; then delete those of it that are older than the newest `keep` good ones.

    :param folder: where the checkpoints of a run lie.
    :param stage: name of the stage.
    :param snapshot: what to save.
    :param keep: how many checkpoints of this stage stay. Only those that verify count.
    :return: the checkpoint's folder. A good one of the same step stays as it is: it leads to the same end.
    :raises NonFiniteError: a tensor holds NaN or infinity; nothing is written.
    :raises StorageError: the disk is full or cannot be written; the earlier checkpoints are as they were.
    """
    from safetensors.torch import save_file

    target = folder / f"{stage}-{snapshot.progress.step:08d}"
    check_finite(snapshot.tensors, target)
    if target.is_dir():
        if _is_good(target):  # of this very step: a stop right after a save, or after going on from it
            return target
        remove_folder(target)  # damaged, and nobody's work but ours
    with publish_folder(target) as temporary:
        save_file({name: tensor.contiguous().cpu() for name, tensor in snapshot.tensors.items()}, temporary / TENSORS)
        progress = asdict(snapshot.progress)
        if snapshot.progress.best_step < 0:
            progress["best_score"] = None  # minus infinity, which JSON does not have
        write_json(temporary / STATE, {"stage": stage, "progress": progress})
    n_good = 0
    for path in numbered(folder, f"{stage}-"):
        if n_good >= keep:
            remove_folder(path)
        elif path == target or _is_good(path):
            n_good += 1
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
    path = newest_verified(folder, f"{stage}-", check=_progress)
    return None if path is None else Snapshot(load_file(path / TENSORS), _progress(path))


def delete_checkpoints(folder: Path, stage: str) -> None:
    """Delete the checkpoints of a stage that is complete, and what an interrupted deletion left of them."""
    for path in numbered(folder, f"{stage}-"):
        remove_folder(path)


def _progress(path: Path) -> Progress:
    """Where the stage stood, checked against the folder's name: a whole checkpoint can lie under a wrong one."""
    state = read_json(path / STATE)
    try:
        score = state["progress"]["best_score"]
        progress = Progress(**state["progress"] | {"best_score": float("-inf") if score is None else float(score)})
        if path.name != f"{state['stage']}-{progress.step:08d}":
            raise ValueError(f"it is of step {progress.step} of stage {state['stage']!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} is not a checkpoint that this version reads ({error})") from error
    return progress


def _is_good(path: Path) -> bool:
    try:
        verify_manifest(path)
    except (ModelFileError, StorageError):
        return False
    return True
