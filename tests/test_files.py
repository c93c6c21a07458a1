"""A file is written whole or not at all, failures are told in a line, and what may pass is tried again."""

import errno
import logging
import os
from pathlib import Path

import pytest
from failing_calls import names, patch_nth

from dynabert import files
from dynabert.errors import ModelFileError, StorageError

pytestmark = pytest.mark.usefixtures("pauses", "quick_fsync")


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    files.write_json(path, {"b": 1, "a": [1.5, None, "é"]})
    assert path.read_text() == '{\n  "b": 1,\n  "a": [\n    1.5,\n    null,\n    "\\u00e9"\n  ]\n}\n'
    files.write_json(path, {"b": 2})
    assert files.read_json(path) == {"b": 2} and names(tmp_path) == ["state.json"]


def test_a_file_keeps_its_line_ends_and_is_utf8(tmp_path: Path) -> None:
    files.atomic_write_text(tmp_path / "a.txt", "é\r\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\r\nb\n"


def test_sha256_of_the_published_example(tmp_path: Path) -> None:
    files.atomic_write_bytes(tmp_path / "a", b"abc")  # FIPS 180-4's first
    assert files.sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_hopeless_failure_keeps_the_old_content(tmp_path: Path, call: str, code: int, pauses: list[float]) -> None:
    files.atomic_write_text(tmp_path / "a", "old")
    with pytest.MonkeyPatch.context() as patch:
        patch_nth(patch, call, 1, code)
        with pytest.raises(StorageError, match=errno.errorcode[code]):
            files.atomic_write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"] and pauses == []


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", sorted(files.TRANSIENT))
def test_a_transient_failure_is_retried_three_times(tmp_path: Path, call: str, code: int, pauses: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch_nth(patch, call, 1, code)
        files.atomic_write_text(tmp_path / "a", "once")
    assert (tmp_path / "a").read_text() == "once" and pauses == [files.PAUSES_S[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch_nth(patch, call, 1, code, ever_after=True)
        with pytest.raises(StorageError, match=errno.errorcode[code]):
            files.atomic_write_text(tmp_path / "a", "never")
    assert pauses[1:] == list(files.PAUSES_S)
    assert (tmp_path / "a").read_text() == "once" and names(tmp_path) == ["a"]


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    files.atomic_write_text(tmp_path / "a", "0123456789")
    assert (tmp_path / "a").read_text() == "0123456789"


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a": NaN}',
        b"[-Infinity]",
        b"[-1e999]",
        b'{"a": 1, "a": 2}',
        b'"\xe9"',
        b"[" * 100_000,
        b"1" * 5000,
    ],
    ids=["empty", "cut", "nan", "infinity", "too large", "repeated", "latin-1", "deep", "long"],
)
def test_what_is_not_json_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"a\.json is not valid JSON") as caught:
        files.read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_json_are_told_apart(tmp_path: Path, pauses: list[float]) -> None:
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "none" / "a.json"):
        with pytest.raises(ModelFileError, match="is missing"):
            files.read_json(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "bad sector")))
        with pytest.raises(StorageError, match="EIO"):
            files.read_json(tmp_path / "a.json")
    assert pauses == list(files.PAUSES_S)


def test_retries_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "dynabert"):
        patch_nth(patch, "replace", 1, errno.EBUSY)
        files.atomic_write_text(tmp_path / "a", "x")
    assert "busy" in caplog.text and "trying again" in caplog.text
