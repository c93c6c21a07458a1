from pathlib import Path

import pytest
import torch

from dynabert.checkpoint import delete_checkpoints, newest_checkpoint, save_checkpoint
from dynabert.distill import Progress, Snapshot


def snapshot(step: int) -> Snapshot:
    return Snapshot({"weights/a": torch.full((3,), float(step)), "optimizer/step/a": torch.tensor(1.0)}, Progress(step))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "width", Snapshot(snapshot(5).tensors, Progress(5, 4, 0.75, 1)))
    found = newest_checkpoint(tmp_path, "width")
    assert found is not None and found.progress == Progress(5, 4, 0.75, 1)
    assert torch.equal(found.tensors["weights/a"], torch.full((3,), 5.0))


def test_no_score_yet_comes_back_as_no_score(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "width", snapshot(5))
    found = newest_checkpoint(tmp_path, "width")
    assert found is not None and found.progress == Progress(5)


def test_the_newest_two_stay_and_stages_do_not_mix(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, "width", snapshot(step))
    save_checkpoint(tmp_path, "depth", snapshot(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["depth-00000001", "width-00000010", "width-00000015"]
    delete_checkpoints(tmp_path, "width")
    assert newest_checkpoint(tmp_path, "width") is None
    assert newest_checkpoint(tmp_path, "depth") is not None


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_skipped_with_one_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, "width", snapshot(step))
    file = tmp_path / "width-00000010" / "state.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        data[-1] ^= 1
        file.write_bytes(data[:-4] if damage == "truncate" else data)
    found = newest_checkpoint(tmp_path, "width")
    assert found is not None and found.progress.step == 5
    assert len(caplog.records) == 1 and "state.safetensors" in caplog.text


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing", "width") is None
