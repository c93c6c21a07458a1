"""Exit codes, signals, full disks, NaN and infinity."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dynabert import errors, failures
from dynabert.errors import DynabertError, NonFiniteError, SettingError, Stopped, StorageError
from dynabert.failures import (
    EXIT_CODES,
    MAX_BAD_STEPS,
    Saving,
    check_finite,
    check_space,
    held,
    interruptible,
    may_step,
    stop_signals,
    with_space,
)
from dynabert.files import storage_errors


def test_every_exit_code_is_in_the_table_and_in_the_page() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DynabertError)]
    codes = {kind.exit_code for kind in kinds} | {Stopped(signal.SIGTERM).exit_code, Stopped(signal.SIGINT).exit_code}
    assert codes | {0} == set(EXIT_CODES)
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    table = page.split("## Exit codes")[1].split("## ")[0]
    assert {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.*) \|$", table, re.M)} == EXIT_CODES


@pytest.mark.parametrize(
    "bad", [{"minutes": -1}, {"minutes": float("nan")}, {"steps": 0}, {"keep": 0}, {"on_disk_full": "hope"}], ids=str
)
def test_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        Saving(**bad)  # type: ignore[arg-type]


# Signals


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """A shell starts what runs in its background with Ctrl-C ignored, and then it stays so."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_at_once_and_handlers_are_put_back(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, stop_signals():
        send(number)
        time.sleep(5)
    assert caught.value.exit_code == code and "\n" not in str(caught.value)
    assert signal.getsignal(number) is before


def test_a_stop_inside_a_destructor_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            send()
            time.sleep(0.01)

    hook = sys.unraisablehook
    with pytest.raises(Stopped), stop_signals():
        Dying()
        time.sleep(5)
    assert sys.unraisablehook is hook and capsys.readouterr() == ("", "")


def test_what_is_held_is_finished_first() -> None:
    done = []
    with pytest.raises(Stopped), stop_signals():
        with held():
            send()
            with held():  # the end of an inner one is not the end
                done.append(1)
            done.append(2)
        done.append(3)
    assert done == [1, 2]


def test_inside_what_is_held_a_part_may_be_torn() -> None:
    done = []
    with pytest.raises(Stopped), stop_signals(), held():
        with pytest.raises(Stopped), interruptible():
            send()
            time.sleep(5)
        done.append("held again")
        with pytest.raises(Stopped), interruptible():
            done.append("torn before it began")
    assert done == ["held again"]


def test_an_error_inside_what_is_held_is_the_error() -> None:
    with pytest.raises(KeyError), stop_signals(), held():
        send()
        raise KeyError


def test_nothing_on_the_way_takes_a_stop_for_its_own_failure() -> None:
    with pytest.raises(Stopped), stop_signals():
        try:
            send()
            time.sleep(5)
        except Exception:
            pytest.fail("a stop was caught as an Exception")


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does for what runs in the background
    try:
        with stop_signals():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, former)


def test_outside_the_main_thread_there_are_no_signals() -> None:
    def work() -> None:
        with stop_signals(), held(), interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(("pause", "ends_at_once"), [(0.0, False), (0.7, True)])
def test_a_second_signal_ends_the_process_but_the_same_one_twice_does_not(pause: float, ends_at_once: bool) -> None:
    """Job systems send one signal to the process and to its group."""
    code = (
        "import os, time\nfrom dynabert.failures import held, stop_signals\n"
        f"with stop_signals(), held():\n    os.kill(os.getpid(), 15)\n    time.sleep({pause})\n"
        "    os.kill(os.getpid(), 15)\n    print('saved', flush=True)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout == "") == ends_at_once
    assert (ran.returncode == 143) == ends_at_once


# Full disks


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(failures.time, "sleep", taken.append)
    return taken


def failing(path: Path, times: int, code: int = errno.ENOSPC) -> Callable[[], str]:
    """An action that fails so many times."""
    left = iter(range(times))

    def action() -> str:
        with storage_errors(path):
            if next(left, None) is not None:
                raise OSError(code, os.strerror(code))
        return "written"

    return action


def test_a_full_disk_is_tried_again_three_times(tmp_path: Path, pauses: list[float]) -> None:
    assert with_space(failing(tmp_path, 3), tmp_path, "exit") == "written" and len(pauses) == 3
    with pytest.raises(StorageError, match="ENOSPC"):
        with_space(failing(tmp_path, 4), tmp_path, "exit")


def test_another_error_is_not_tried_again(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(StorageError, match="EACCES"):
        with_space(failing(tmp_path, 1, errno.EACCES), tmp_path, "wait")
    assert not pauses


def frees(*free: int) -> Callable[[object], SimpleNamespace]:
    """A disk with so many bytes free, at each look."""
    left = iter(free)
    return lambda _: SimpleNamespace(free=next(left))


def test_waiting_ends_when_there_is_more_space(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(failures, "RETRY_S", 0.0)
    monkeypatch.setattr(failures.shutil, "disk_usage", frees(5, 5, 5, 5, 6))
    assert with_space(failing(tmp_path, 4), tmp_path, "wait") == "written"
    assert pauses[: len(failures.PAUSES_S)] == list(failures.PAUSES_S) and set(pauses[len(failures.PAUSES_S) :]) == {
        1.0
    }
    assert sum("waiting for space" in record.message for record in caplog.records) == 1


def test_waiting_says_so_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(failures.time, "sleep", sleep)
    monkeypatch.setattr(failures.time, "monotonic", lambda: now)
    monkeypatch.setattr(failures.shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    assert with_space(failing(tmp_path, 3 + 4), tmp_path, "wait") == "written"  # a quota: the disk shows nothing
    assert sum("waiting for space" in record.message for record in caplog.records) == 4 and 240 <= now < 250


def test_a_stop_ends_the_waiting(tmp_path: Path) -> None:
    with pytest.raises(Stopped), stop_signals(), held():
        timer = threading.Timer(2.0, send)
        timer.start()
        with_space(failing(tmp_path, 10**6), tmp_path, "wait")


def test_too_little_space_is_refused_with_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures.shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    check_space(tmp_path / "not" / "yet", 3_000_000)
    with pytest.raises(StorageError, match=r"needs 3,500\.0 MB .* has 3\.0 MB free") as caught:
        check_space(tmp_path / "not" / "yet", 3_500_000_000)
    assert caught.value.exit_code == 74 and "\n" not in str(caught.value)


# NaN and infinity


@dataclass
class Counts:
    step: int = 7
    bad_steps: int = 0
    skipped: int = 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["loss", "gradient norm"])
def test_either_value_leaves_a_step_out_and_names_the_rows(
    name: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    counts, values = Counts(), {"loss": 1.0, "gradient norm": 0.0}
    assert may_step(counts, values, stage="width", rows=[1]) and not caplog.records
    assert not may_step(counts, {**values, name: value}, stage="width", rows=range(100, 120))
    assert (counts.bad_steps, counts.skipped) == (1, 1)
    line = caplog.records[0].message
    assert f"{name} {value} at step 7 of stage 'width' (row ids 100, 101, 102, 103, 104, 105, 106, 107, …)" in line
    assert may_step(counts, values, stage="width", rows=[1]) and (counts.bad_steps, counts.skipped) == (0, 1)


def test_too_many_in_a_row_are_an_error() -> None:
    counts = Counts()
    for _ in range(MAX_BAD_STEPS - 1):
        assert not may_step(counts, {"loss": float("nan")}, stage="width", rows=[3])
    with pytest.raises(NonFiniteError, match=r"row ids 3\), the last of 5"):
        may_step(counts, {"loss": float("nan")}, stage="width", rows=[3])


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    check_finite({"a": torch.ones(3), "b": torch.arange(3)}, tmp_path)
    for value in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match="b holds NaN or infinity"):
            check_finite({"a": torch.ones(3), "b": torch.tensor([1.0, value])}, tmp_path)


@pytest.fixture(autouse=True)
def no_request_is_left() -> Iterator[None]:
    yield
    assert failures._request == failures._Request(None, failures._request.at, False)
