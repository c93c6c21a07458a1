from pathlib import Path

import pytest
import torch

from dynabert.checkpoint import delete_checkpoints, newest_checkpoint, save_checkpoint
from dynabert.errors import NonFiniteError
from dynabert.hooks import Progress, Snapshot


def snapshot(step: int) -> Snapshot:
    return Snapshot({"weights/a": torch.full((3,), float(step)), "optimizer/step/a": torch.tensor(1.0)}, Progress(step))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    progress = Progress(5, best_step=4, best_score=0.75, evaluated_step=4, bad_steps=1, skipped=2)
    save_checkpoint(tmp_path, "width", Snapshot(snapshot(5).tensors, progress))
    found = newest_checkpoint(tmp_path, "width")
    assert found is not None and found.progress == progress
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


def spoil(folder: Path) -> None:
    file = folder / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def test_a_good_checkpoint_does_not_go_for_damaged_ones(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, "width", snapshot(step), keep=3)
    for step in (10, 15):
        spoil(tmp_path / f"width-{step:08d}")
    save_checkpoint(tmp_path, "width", snapshot(8), keep=2)  # gone on with from step 5
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["width-00000005", "width-00000008", "width-00000010", "width-00000015"]
    for step in (10, 15):  # the damaged ones give way to new ones of their name, and nothing is left of them
        save_checkpoint(tmp_path, "width", snapshot(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["width-00000010", "width-00000015"]


def test_a_checkpoint_under_a_wrong_name_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, "width", snapshot(step))
    (tmp_path / "width-00000010").rename(tmp_path / "width-00000099")
    found = newest_checkpoint(tmp_path, "width")
    assert found is not None and found.progress.step == 5
    assert "it is of step 10 of stage 'width'" in caplog.text and "using width-00000005" in caplog.text


def test_stages_whose_names_begin_alike_do_not_mix(tmp_path: Path) -> None:
    for stage, step in (("width", 5), ("width-2", 10)):
        save_checkpoint(tmp_path, stage, snapshot(step), keep=1)
    delete_checkpoints(tmp_path, "width")
    assert [path.name for path in tmp_path.iterdir()] == ["width-2-00000010"]


def test_what_is_not_finite_is_not_saved_and_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "width", snapshot(5))
    bad = Snapshot({"optimizer/exp_avg_sq/a": torch.tensor([1.0, float("inf")])}, Progress(10))
    with pytest.raises(NonFiniteError, match="exp_avg_sq"):
        save_checkpoint(tmp_path, "width", bad)
    assert [path.name for path in tmp_path.iterdir()] == ["width-00000005"]
