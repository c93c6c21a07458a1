"""Atomic writes of a file, JSON, sha256, retry of transient I/O; what goes wrong is one line for the user. No torch.

Whole folders are published by `dynabert.folders`, of what is here: names beside a target, fsync, deleting.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dynabert.errors import ModelFileError, StorageError

logger = logging.getLogger("dynabert")

StrPath = str | os.PathLike[str]
Result = TypeVar("Result")

TRANSIENT = frozenset(
    {errno.EINTR, errno.EAGAIN, errno.EIO, errno.ENETRESET, errno.ETIMEDOUT, errno.EBUSY, errno.ESTALE}
)
PAUSES_S = (0.05, 0.25, 1.0)
"""Seconds between the attempts at something that may pass."""
_ADVICE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some of the quota and run the same command again",
    errno.EFBIG: "raise the file size limit (ulimit -f) and run the same command again",
    errno.EACCES: "check its permissions or choose another folder",
    errno.EPERM: "check its permissions or choose another folder",
    errno.EROFS: "choose a folder on a file system that can be written",
} | dict.fromkeys(TRANSIENT, "check the disk or the mount and run the same command again")


def atomic_write_bytes(path: StrPath, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new, never a part.

    :param path: the file; its folder must exist. A link is followed.
    :param data: the whole content.
    :raises StorageError: disk full, no permission, or an I/O error that three retries did not cure.
    """
    target = Path(path).resolve()
    with storage_errors(path):
        with_retry(partial(_write_and_rename, target, data))


def atomic_write_text(path: StrPath, text: str) -> None:
    """Write a text file in UTF-8, as `atomic_write_bytes` does; line ends stay as they are."""
    atomic_write_bytes(path, text.encode())


def write_json(path: StrPath, obj: Any) -> None:  # noqa: ANN401 (JSON is any nesting of plain values)
    """Write an object as JSON, atomically, keys in the order given.

    :raises ValueError: the object holds NaN or infinity, which JSON has not.
    """
    atomic_write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def read_json(path: StrPath) -> Any:  # noqa: ANN401 (JSON is any nesting of plain values)
    """Read a JSON file in UTF-8; NaN, infinity and a key given twice are refused.

    :return: dict, list, str, int, float, bool or None.
    :raises ModelFileError: the file is missing or is not JSON.
    :raises StorageError: it cannot be read.
    """
    try:
        with storage_errors(path):
            data = with_retry(Path(path).read_bytes)
        return json.loads(
            data.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_without_repeats,
        )
    except StorageError as error:
        if isinstance(error.__cause__, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            raise ModelFileError(f"{path} is missing; check the path, or use another copy of the folder") from error
        raise
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise ModelFileError(f"{path} is not valid JSON ({reason}); use another copy of it") from error


def sha256_of(path: StrPath) -> str:
    """The sha256 of a file's content, as 64 lower-case hexadecimal digits.

    :raises StorageError: it cannot be read.
    """

    def digest() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with storage_errors(path):
        return with_retry(digest)


def is_full(error: StorageError) -> bool:
    """Whether writing failed because the disk or the quota is full."""
    cause = error.__cause__
    return cause is not None and _error_number(cause) in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def storage_errors(path: StrPath) -> Iterator[None]:
    """Turn any operating system error of the block into the one line that a user reads.

    :raises StorageError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise _storage_error(path, error.errno, str(error)) from error


def known_failure(path: StrPath, error: BaseException) -> StorageError | None:
    """The line for a failure of the disk, whatever raised it; None where nothing can be advised about it."""
    code = _error_number(error)
    return _storage_error(path, code, str(error)) if code in _ADVICE else None


def with_retry(action: Callable[[], Result], transient: frozenset[int] = TRANSIENT) -> Result:
    """The result of an action, tried again after each of `PAUSES_S` while it fails with an errno that may pass."""
    for pause_s in PAUSES_S:
        try:
            return action()
        except OSError as error:
            if error.errno not in transient:
                raise
            logger.warning("%s; trying again", error)
        time.sleep(pause_s)
    return action()


def beside(target: Path, kind: str) -> Path:
    """A fresh name in the same folder, hence on the same file system, so that a rename is atomic.

    `dynabert.folders` finds such names again after a crash: ``.KIND-NAME-`` and eight hexadecimal digits.
    """
    return target.parent / f".{kind}-{target.name}-{secrets.token_hex(4)}"


def delete(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it, as far as that goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, where its file system can."""
    try:
        with_retry(partial(sync, folder))
    except OSError as error:
        # Some network and user-space file systems cannot fsync a folder; there the rename is all that can be had.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _write_and_rename(target: Path, data: bytes) -> None:
    temporary = beside(target, "tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except BaseException:
        delete(temporary)
        raise
    sync_folder(target.parent)


def _storage_error(path: StrPath, code: int | None, text: str) -> StorageError:
    reason = text if code is None else f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"
    return StorageError(f"cannot read or write {path}: {reason}; {_ADVICE.get(code or 0, 'check the path')}")


def _error_number(error: BaseException) -> int | None:
    """The errno of an OSError, or of what a library in Rust such as safetensors raises instead of one."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice")
    return values
