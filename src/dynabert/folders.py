"""Folders that appear whole or not at all, with sha256 manifests that prove what is in them. No torch.

A folder is published in one step: written beside its final place, every file forced to disk, a manifest with the size
and sha256 of each file written last, and only then renamed. Whoever finds it finds all of it, and can prove it.

Besides the published ones, three kinds of names can stand in a folder after a crash or a replacement:

- ``.tmp-NAME-xxxxxxxx``: being written or being deleted; rubbish once its process is gone.
- ``.old-NAME-xxxxxxxx``: the former NAME while the new one takes its place; put back if the new one never arrived.
- ``NAME.replaced-xxxxxxxx``: a former NAME that was not exactly what had been published, kept for its owner to look at.

One process at a time writes in a folder (of many ranks, rank 0).
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePath

from dynabert.errors import DynabertError, ModelFileError, SettingError, StorageError
from dynabert.files import (
    TRANSIENT,
    StrPath,
    beside,
    delete,
    known_failure,
    read_json,
    sha256_of,
    storage_errors,
    sync,
    sync_folder,
    with_retry,
    write_json,
)

logger = logging.getLogger("dynabert")

MANIFEST = "MANIFEST.json"
CARD = "README.md"
"""What a folder says of itself; its owner may write another."""
MANIFEST_VERSION = 1

LONGEST_NAME = 100
"""Characters of a name that a file is called by; file systems take 255 bytes, endings and temporary names included."""

_BESIDE = re.compile(r"\.(?P<kind>tmp|old)-(?P<name>.+)-[0-9a-f]{8}", re.DOTALL)


def file_name_of(name: str) -> str:
    """What a file is called that is named for something: the name, or where that is long its beginning and a digest.

    :param name: of letters that a file's name may have; that of a size, say, which names each layer where they differ.
    :return: at most `LONGEST_NAME` characters, others for another name; an ending can be put behind them.
    """
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: LONGEST_NAME - len(digest) - 1]}-{digest}"


def is_hidden(name: PurePath) -> bool:
    """Whether a path relative to a folder is hidden there: such files are other programs', not part of a model."""
    return any(part.startswith(".") for part in name.parts)


def write_manifest(folder: StrPath) -> None:
    """Write ``MANIFEST.json``: the size in bytes and sha256 of every file of the folder and its subfolders.

    :raises ModelFileError: the folder holds a link or another thing that is not a plain file.
    :raises StorageError: reading or writing failed.
    """
    root = Path(folder)
    files = {name: {"bytes": _size_of(path), "sha256": sha256_of(path)} for name, path in _files_of(root).items()}
    write_json(root / MANIFEST, {"format_version": MANIFEST_VERSION, "files": files})


def listed_in(folder: StrPath) -> tuple[str, ...]:
    """The files that a folder's manifest lists, by relative POSIX path.

    :raises ModelFileError: no manifest, or a damaged one.
    """
    return tuple(_read_manifest(Path(folder)))


def verify_manifest(folder: StrPath, *, edited: bool = True, alone: bool = True) -> None:
    """Check that a folder holds exactly what its manifest says: no file missing, extra, cut short or changed.

    Hidden files that are not listed do not count: desktops, editors and file servers leave theirs anywhere. Guards
    against accidents, not against someone who rewrites the manifest too.

    :param edited: whether the model card may be one that its owner wrote, changed or deleted since, and hidden files be
        there. If not the folder is as it was published, so that nobody's work is lost with it.
    :param alone: whether there may be nothing else. What a hub gives has files of the hub's own, and may be links into
        its cache: only what is listed counts then, and it is what it says wherever it lies.
    :raises ModelFileError: it does not; the line names the file and the reason.
    :raises StorageError: a file cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ModelFileError(f"{folder} is not a folder; check the path")
    listed = _read_manifest(root)
    if alone:
        found = _files_of(root, ignored=lambda name: edited and is_hidden(name) and name.as_posix() not in listed)
    else:
        found = {name: root / name for name in listed if (root / name).is_file()}
    for name in sorted((listed.keys() | found.keys()) - ({CARD} if edited else set())):
        if name not in found:
            raise _broken(root, name, "is missing")
        if name not in listed:
            raise _broken(root, name, f"is extra: {MANIFEST} does not list it")
        n_bytes, sha256 = listed[name]
        size = _size_of(found[name])
        if size != n_bytes:
            raise _broken(root, name, f"{'is truncated' if size < n_bytes else 'has grown'}: {size} of {n_bytes} bytes")
        if sha256_of(found[name]) != sha256:
            raise _broken(root, name, "is corrupt: its sha256 differs")


@contextmanager
def publish_folder(final: StrPath) -> Iterator[Path]:
    """Write a folder so that it appears whole, with its manifest, or not at all.

    The block writes into the folder it is given. When it ends, every file is forced to disk, the manifest is written,
    and the folder takes its final name. If the block or any later step fails, the temporary folder is removed and a
    former folder of that name is as it was; where only the last fsync failed, the new one stands already, and whole. A
    former folder is deleted once the new one is safely in place, but only if it still is exactly what was published;
    else it is kept as ``NAME.replaced-xxxxxxxx``, with a warning.

    :param final: where the folder will stand; its parents are created.
    :return: the temporary folder, on the same file system as the final one.
    :raises SettingError: the final place is a file, a mount point, or holds the working directory.
    :raises StorageError: disk full, no permission or an I/O error, in the block too.
    """
    target = Path(final).resolve()
    temporary = beside(target, "tmp")
    with storage_errors(final):
        _check_target(target)
        _make_folder(target.parent)
        _settle(target.parent, target.name)
        with_retry(partial(os.mkdir, temporary))
    try:
        yield temporary
        with storage_errors(final):
            _force_to_disk(temporary)
            _move_in(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        failure = known_failure(_named_elsewhere(error, temporary) or final, error)
        if failure is None or isinstance(error, DynabertError):
            raise
        raise failure from error


def _named_elsewhere(error: BaseException, folder: Path) -> str | None:
    """The file that an error names, if that is not in the folder: one that the block read, say."""
    named = getattr(error, "filename", None)
    return named if isinstance(named, str) and not Path(named).resolve().is_relative_to(folder) else None


def newest_verified(folder: StrPath, prefix: str, *, check: Callable[[Path], object] | None = None) -> Path | None:
    """The subfolder ``prefixNNN`` with the highest number whose manifest verifies.

    Each newer one that does not verify is named in a warning of one line, with the one used instead.

    :param folder: holds the subfolders; it need not exist.
    :param prefix: for instance ``"step-"``.
    :param check: looks further at one that verifies, and raises ModelFileError where it cannot be used.
    :return: the subfolder, or None where none verifies.
    :raises StorageError: the folder itself cannot be listed.
    """
    root = Path(folder)
    rejected: list[DynabertError] = []
    good = None
    for candidate in numbered(root, prefix):
        try:
            verify_manifest(candidate)
            if check is not None:
                check(candidate)
        except (ModelFileError, StorageError) as error:
            rejected.append(error)
        else:
            good = candidate
            break
    instead = f"using {good.name} instead" if good else f"and no other {prefix}* verifies"
    for reason in rejected:
        logger.warning("%s; %s", reason, instead)
    return good


def numbered(folder: Path, prefix: str) -> list[Path]:
    """The subfolders ``prefixNNN``, highest number first, whatever is in them.

    :raises StorageError: the folder cannot be listed.
    """
    pattern = re.compile(re.escape(prefix) + r"([0-9]{1,18})")
    with storage_errors(folder):
        entries = list(folder.iterdir()) if folder.is_dir() else []
    matches = ((pattern.fullmatch(entry.name), entry) for entry in entries if entry.is_dir())
    found = [(int(match[1]), entry) for match, entry in matches if match]
    return [entry for _, entry in sorted(found, reverse=True)]


def remove_folder(folder: StrPath) -> None:
    """Delete a folder that nobody needs any more: at once by name, so that a crash leaves no half of it there.

    Where it cannot be deleted a line is logged.
    """
    path = Path(folder)
    doomed = beside(path, "tmp")  # a name that says so, in case the deletion is interrupted
    try:
        with_retry(partial(os.rename, path, doomed))
    except OSError as error:
        logger.warning("cannot delete %s: %s", path, error)
    else:
        delete(doomed)


def clean_temporary(folder: StrPath) -> None:
    """Remove what interrupted writes left in a folder, and put back what an interrupted replacement had moved aside.

    Call it once before reading or writing, while no other process writes there.

    :raises StorageError: the folder cannot be listed or a rename fails.
    """
    with storage_errors(folder):
        _settle(Path(folder), None)


def _settle(folder: Path, name: str | None) -> None:
    """Finish or undo interrupted replacements of `name`; for None of every name, and remove temporary entries too."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _BESIDE.fullmatch(entry.name)
        if match is None or (name is not None and (match["kind"], match["name"]) != ("old", name)):
            continue
        target = folder / match["name"]
        if match["kind"] == "tmp":
            delete(entry)
        elif target.exists():
            _retire(entry, target)
        else:
            with_retry(partial(os.rename, entry, target))
            sync_folder(folder)
            logger.warning("put back %s: an interrupted save had moved it aside", target)


def _move_in(temporary: Path, target: Path) -> None:
    """Rename the finished folder to its final name; the former one is deleted only after that is on disk."""
    aside = beside(target, "old") if target.is_dir() and any(target.iterdir()) else None
    if aside is not None:
        with_retry(partial(os.rename, target, aside))
    try:
        with_retry(partial(os.rename, temporary, target))
    except BaseException:
        if aside is not None:
            with suppress(OSError):  # should this fail too, the next publish_folder or clean_temporary puts it back
                os.rename(aside, target)
        raise
    sync_folder(target.parent)
    if aside is not None:
        _retire(aside, target)


def _retire(aside: Path, target: Path) -> None:
    """Delete a former folder, or keep it under a visible name where deleting could lose something of its owner's."""
    try:
        verify_manifest(aside, edited=False)
        remove_folder(aside)
    except (ModelFileError, StorageError) as error:
        kept = target.with_name(f"{target.name}.replaced-{secrets.token_hex(4)}")
        with suppress(OSError):
            os.rename(aside, kept)
            logger.warning("kept the former %s as %s: %s", target.name, kept.name, error)


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise SettingError(f"{target} is a file; choose the name of a folder")
    if target.is_mount():
        raise SettingError(f"{target} is a mount point and cannot be replaced; choose a folder inside it")
    if target.is_dir() and Path.cwd().is_relative_to(target):
        raise SettingError(f"{target} holds the working directory; choose a new folder, for instance ./model")


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, each new one recorded on disk in the one that holds it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        with_retry(partial(os.mkdir, folder))
    sync_folder(folder.parent)


def _force_to_disk(folder: Path) -> None:
    """Fsync every file, write the manifest, give all files the same mode, then fsync the folders, innermost first."""
    for path in _files_of(folder).values():
        # Not after EIO: the kernel then drops the pages it could not write, and a second fsync would claim success.
        with_retry(partial(sync, path), TRANSIENT - {errno.EIO})
    write_manifest(folder)
    mode = stat.S_IMODE((folder / MANIFEST).stat().st_mode)  # by the umask; safetensors writes for one user alone
    for path in _files_of(folder).values():
        os.chmod(path, mode)
    for root, _, _ in os.walk(folder, topdown=False):
        sync_folder(Path(root))


def _files_of(folder: Path, *, ignored: Callable[[PurePath], bool] = lambda name: False) -> dict[str, Path]:
    """Every file under the folder but its manifest, by relative POSIX path in ascending order.

    :param ignored: which paths are passed over, whatever is there.
    """
    found = {}
    with storage_errors(folder):
        for root, folders, names in os.walk(folder, onerror=_raise):
            for path in (Path(root, name) for name in [*folders, *names]):
                relative = path.relative_to(folder)
                if ignored(relative):
                    continue
                name = relative.as_posix()
                # A link can lead out of the folder, and opening a pipe never returns.
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise _broken(folder, name, "is not a plain file")
                if path.is_file() and name != MANIFEST:
                    found[name] = path
    return dict(sorted(found.items()))


def _size_of(path: Path) -> int:
    with storage_errors(path):
        return path.stat().st_size


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and sha256 of each file by relative POSIX path; refuses anything that is not of that form."""
    manifest = read_json(folder / MANIFEST)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > MANIFEST_VERSION:
        raise _broken(folder, MANIFEST, f"has format_version {version}, newer than {MANIFEST_VERSION}; update dynabert")
    listed = {}
    try:
        if set(manifest) != {"format_version", "files"} or version != MANIFEST_VERSION:
            raise KeyError("format_version, files")
        for name, entry in manifest["files"].items():
            n_bytes, sha256 = entry["bytes"], entry["sha256"]
            if len(entry) != 2 or type(n_bytes) is not int or type(sha256) is not str:
                raise TypeError(name)
            listed[name] = (n_bytes, sha256)
    except (AttributeError, KeyError, TypeError) as error:
        raise _broken(folder, MANIFEST, "is not a manifest") from error
    return listed


def _broken(folder: Path, name: str, reason: str) -> ModelFileError:
    return ModelFileError(f"{folder}: {name!r} {reason}")


def _raise(error: OSError) -> None:
    raise error
