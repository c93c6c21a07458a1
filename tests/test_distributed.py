import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import TinyBatches
from ranks import TESTS, start_ranks, wait_for
from small_job import write_job
from torch import nn

from dynabert.distributed import ALONE, Gradients, Shared, World, joined, launched_rank, n_launched
from dynabert.errors import DataError, LostRankError, SettingError
from dynabert.loading import load
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


def torchrun(*options):
    return (sys.executable, "-m", "torch.distributed.run", *options)


def launched(*command):
    """Start a launcher without a trace of another one in its environment."""
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK")}
    return subprocess.Popen(
        [str(word) for word in command],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=TESTS,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_two_nodes_train_as_two_processes_of_one(job, tmp_path):
    """Two agents that meet as two machines would, against both ranks under one of them."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = ("--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", meeting)
    both = [launched(*torchrun(*nodes), *train_command(job, tmp_path / "nodes")) for _ in range(2)]
    assert [code for code, _ in wait_for(both)] == [0, 0]
    one = launched(*torchrun("--standalone", "--nproc_per_node", "2"), *train_command(job, tmp_path / "one"))
    ((code, said),) = wait_for([one])
    assert code == 0, said
    there, here = (load(tmp_path / name / "elastic").state_dict() for name in ("nodes", "one"))
    assert all(there[name].equal(here[name]) for name in here)


@pytest.mark.slow
def test_the_launcher_restarts_a_job_whose_rank_was_killed(job, tmp_path):
    out = tmp_path / "restarted"
    command = train_command(job, out, "--checkpoint-steps", "1")
    process = launched(*torchrun("--standalone", "--nproc_per_node", "2", "--max-restarts", "1"), *command)
    try:
        until = time.monotonic() + 90
        while not list((out / "checkpoints").glob("width-*")):
            assert time.monotonic() < until and process.poll() is None, "no checkpoint was made"
            time.sleep(0.05)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    finally:
        ((code, said),) = wait_for([process])
    assert code == 0 and "going on where it was" in said, said
    whole = launched(*torchrun("--standalone", "--nproc_per_node", "2"), *train_command(job, tmp_path / "whole"))
    ((code, said),) = wait_for([whole])
    assert code == 0, said
    resumed, expected = (load(folder / "elastic").state_dict() for folder in (out, tmp_path / "whole"))
    assert all(resumed[name].equal(expected[name]) for name in expected)
