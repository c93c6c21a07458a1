import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import TinyBatches
from ranks import TESTS, start_ranks, wait_for
from small_job import write_job
from torch import nn

from dynabert.distributed import ALONE, Gradients, Shared, World, joined, launched_rank, n_launched
from dynabert.errors import DataError, LostRankError, SettingError
from dynabert.results import load_sweep


@pytest.fixture(scope="module")
def happened(tmp_path_factory):
    """What came out of each part of the program, on either rank."""
    path = tmp_path_factory.mktemp("world") / "rank"
    (code, said), (other_code, _) = wait_for(start_ranks(TESTS / "world_program.py", path))
    assert (code, other_code) == (0, 9), said
    ranks = [dict(map(json.loads, Path(f"{path}{rank}").read_text().splitlines())) for rank in range(2)]
    return lambda part: [rank.get(part) for rank in ranks]


def test_a_world_of_one_exchanges_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)  # as if it were not installed
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as world:
        assert world == World() == ALONE and world.is_first
        rows = torch.ones(2, 3)
        assert world.gather_rows(rows) is rows
        shared = Shared(1, {"a": rows})
        assert world.from_first(lambda: shared) is shared
        world.agree("settings", "anything")
        world.sum(rows)
        assert rows.sum() == 6
        world.barrier()
    assert not torch.distributed.is_initialized()


def test_several_processes_need_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(SettingError, match=r"pip install 'dynabert\[train\]'"), joined("cpu"):
        pass


def test_what_the_launcher_says(monkeypatch):
    for size, rank, expected in (("", "", (1, 0)), ("1", "0", (1, 0)), ("4", "3", (4, 3))):
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("RANK", rank)
        assert (n_launched(), launched_rank()) == expected
    with pytest.raises(SettingError, match="names one GPU for 4 processes"), joined("cuda:1"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(SettingError, match="WORLD_SIZE='four'"):
        n_launched()


def test_a_group_of_another_size_is_refused(monkeypatch):
    """`accelerate launch --cpu` starts one process whatever it is asked for."""
    import accelerate

    class One:
        def __init__(self, **_):
            self.device = "cpu"

    monkeypatch.setattr(accelerate, "PartialState", One)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="2 processes were asked for but 1 came together"), joined("cpu"):
        pass


def test_gradients_are_views_of_one_flat_tensor():
    weights = [nn.Parameter(torch.zeros(3, dtype=torch.float64)), nn.Parameter(torch.zeros(2, 5, dtype=torch.float64))]
    gradients = Gradients(weights, ALONE)
    gradients.zero()
    weights[1].grad += 2
    assert gradients.flat.sum() == 20 and gradients.flat.dtype == torch.float64
    assert gradients.reduce(flag=True, loss=2.5) == (True, 2.5) and gradients.reduce() == (False, 0.0)
    gradients.release()
    assert all(weight.grad is None for weight in weights)
    with pytest.raises(SettingError, match="data types"):
        Gradients([*weights, nn.Parameter(torch.zeros(1))], ALONE)


def test_ranks_exchange_tensors(happened):
    assert happened("gather") == [[[1, 2], [3, 4], [5, 6]]] * 2
    assert happened("tell") == [[[1, None, "é"], [[1, 0], [0, 1]], 3]] * 2
    assert happened("do_on_first") == [0, 0]


def test_gradients_are_added_up_and_a_flag_and_the_loss_go_with_them(happened):
    assert happened("reduce") == [[[[3] * 3, [3] * 4, [False, 1.5]], [[3] * 3, [3] * 4, [True, 1.5]]]] * 2


def test_a_mistake_that_only_rank_0_meets_ends_all_with_its_exit_code(happened):
    first, second = happened("first_fails")
    assert first == ["DataError", DataError.exit_code, "the rows are gone"]
    assert second == ["FirstRankError", DataError.exit_code, "rank 0 stopped; its own message says why"]


def test_ranks_that_are_about_to_do_different_things_are_told(happened):
    first, (kind, code, message) = happened("disagree")
    assert first is None
    assert (kind, code) == ("SettingError", 2) and message.startswith("rank 1 has other settings than rank 0")


def test_a_stop_asked_of_one_rank_is_known_to_all_after_the_same_step(happened):
    assert happened("stop") == [[False, True, False]] * 2


def test_rows_that_spoil_a_step_are_named_on_every_rank(happened):
    first, second = happened("bad_rows")
    assert first == second and first[0] == first[2] == []
    assert first[1] == (TinyBatches().list[1].ids + 1000).tolist()


def test_a_rank_that_vanishes_ends_the_others(happened):
    (kind, code, message), second = happened("vanish")
    assert (kind, code) == ("LostRankError", 74) and "\n" not in message
    assert message.startswith("another process of this job is gone")
    assert second is None


def test_only_a_lost_connection_is_taken_for_a_lost_rank():
    def fails_with(error):
        def collective():
            raise error

        return lambda: World()._exchange(collective)

    for text in ("[gloo/transport/tcp/pair.cc] Connection closed by peer", "Timed out waiting 1000ms for recv"):
        with pytest.raises(LostRankError, match="is gone or hangs"):
            fails_with(RuntimeError(text))()
    with pytest.raises(LostRankError):
        fails_with(torch.distributed.DistBackendError("remote process exited"))()
    for error in (RuntimeError("CUDA error: device-side assert triggered"), torch.OutOfMemoryError("no room")):
        with pytest.raises(type(error), match=str(error)):
            fails_with(error)()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("job"))


def train_command(job, out, *more):
    encoder, source = job
    data = ("--train", source.train, "--validation", source.validation, "--text", "text", "--label", "label")
    sizes = ("--widths", "1,0.5", "--depths", "1", "--teacher-epochs", "0.5", "--epochs", "0.3", "--batch-size", "16")
    return (
        "-m",
        "dynabert",
        "train",
        "--model",
        encoder,
        "--out",
        out,
        *data,
        *sizes,
        "--max-length",
        "32",
        "--no-latency",
        *more,
    )


def test_two_processes_train_by_the_command_line_and_rank_0_alone_speaks(job, tmp_path):
    (code, said), (other_code, other_said) = wait_for(start_ranks(*train_command(job, tmp_path / "run")))
    assert (code, other_code) == (0, 0), (said, other_said)
    assert "written to" in said and other_said == ""
    assert len(load_sweep(tmp_path / "run").rows) == 2
    alone = wait_for(start_ranks(*train_command(job, tmp_path / "run"), n=1))
    assert alone[0][0] == 2 and "world_size 2 there, 1 here" in alone[0][1]


def test_other_commands_run_in_one_process():
    for code, said in wait_for(start_ranks("-m", "dynabert", "pick", "runs/none")):
        assert code == 2 and "pick runs in one process, and 2 were started" in said
