"""T5: every damaged checkpoint is seen, named in one line, and the good one before it is used."""

import logging
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Check, Job, Lines, Result, main
from snapshots import two_checkpoints

from dynabert.checkpoint import STATE, TENSORS, newest_checkpoint
from dynabert.folders import MANIFEST

KINDS = {"bit flip": 1000, "truncation": 500, "zeroed page": 200, "missing or extra file": 50, "swapped file": 50}
PAGE = 4096


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """Put a file back afterwards."""
    data = path.read_bytes()
    try:
        yield
    finally:
        if path.is_symlink() or path.exists():
            path.unlink()
        path.write_bytes(data)


@contextmanager
def bytes_changed(path: Path, offset: int, data: bytes) -> Iterator[None]:
    """Overwrite a part of a file in place, and put it back afterwards: far less than copying all of it."""
    with path.open("r+b") as file:
        file.seek(offset)
        former = file.read(len(data))
        file.seek(offset)
        file.write(data)
        file.flush()
        try:
            yield
        finally:
            file.seek(offset)
            file.write(former)


@contextmanager
def flipped(path: Path, rng: random.Random) -> Iterator[None]:
    """One bit; half of those of the tensors in the header."""
    size = path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little") if path.name == TENSORS else size
    offset = rng.randrange(header if rng.random() < 0.5 else size)
    with path.open("rb") as file:
        file.seek(offset)
        byte = file.read(1)[0]
    with bytes_changed(path, offset, bytes([byte ^ 1 << rng.randrange(8)])):
        yield


@contextmanager
def zeroed(path: Path, rng: random.Random) -> Iterator[None]:
    data = path.read_bytes()
    starts = [at for at in range(0, len(data), PAGE) if any(data[at : at + PAGE])]
    start = rng.choice(starts)
    with bytes_changed(path, start, bytes(len(data[start : start + PAGE]))):
        yield


@contextmanager
def truncated(path: Path, rng: random.Random) -> Iterator[None]:
    with restored(path):
        with path.open("r+b") as file:
            file.truncate(rng.randrange(path.stat().st_size))
        yield


@contextmanager
def extra(path: Path) -> Iterator[None]:
    path.write_bytes(b"x")
    yield
    path.unlink()


@contextmanager
def missing(path: Path) -> Iterator[None]:
    with restored(path):
        path.unlink()
        yield


@contextmanager
def swapped(path: Path, other: Path) -> Iterator[None]:
    """The file of the other step in its place; and of all files at once, the whole folder of the other step."""
    with restored(path):
        shutil.copyfile(other, path)
        yield


@contextmanager
def wholly_swapped(newer: Path, older: Path) -> Iterator[None]:
    aside = newer.with_name("aside")
    newer.rename(aside)
    shutil.copytree(older, newer)
    yield
    shutil.rmtree(newer)
    aside.rename(newer)


FILES = (TENSORS, STATE, MANIFEST)
REASONS = (" is ", " has ")


def damage(kind: str, newer: Path, older: Path, rng: random.Random) -> tuple[object, tuple[str, ...]]:
    """A way to damage the newer checkpoint, and the names of which the message has to hold one.

    A damaged manifest is none, or fits another file no longer, or names one that never was: then a reason is enough.
    """
    if kind == "swapped file":
        name = rng.choice((TENSORS, STATE, MANIFEST, "all"))
        if name == "all":
            return wholly_swapped(newer, older), (newer.name,)
        return swapped(newer / name, older / name), REASONS if name == MANIFEST else (name,)
    name = rng.choices(FILES, (2, 1, 1))[0]
    if kind == "missing or extra file":
        more = f"extra{rng.randrange(1000)}"
        return (extra(newer / more), (more,)) if rng.random() < 0.5 else (missing(newer / name), (name,))
    makers = {"bit flip": flipped, "truncation": truncated, "zeroed page": zeroed}
    return makers[kind](newer / name, rng), REASONS if name == MANIFEST else (name,)


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """Damage of five kinds, in the shares of the target table, each mended again before the next."""
    job = Job(folder / "job", epochs=2)
    checkpoints = two_checkpoints(job, folder)
    older, newer = sorted(checkpoints.glob("sandwich-*"))
    step = int(older.name.rsplit("-", 1)[1])
    handler = Lines()
    logger = logging.getLogger("dynabert")
    logger.addHandler(handler)
    logger.propagate = False
    total = sum(KINDS.values())
    seen = {}
    for kind, share in KINDS.items():
        seen[kind] = 0
        n = max(1, share * trials // total)
        for _ in range(n):
            handler.lines.clear()
            changed, names = damage(kind, newer, older, rng)
            try:
                with changed:  # type: ignore[attr-defined]
                    found = newest_checkpoint(checkpoints, "sandwich")
                    got = found.progress.step if found else None
                    del found
            except Exception as error:
                result.check(False, f"{kind} of {names}: {type(error).__name__}: {error}")
                continue
            lines = handler.lines
            one_line = len(lines) == 1 and "\n" not in lines[0] and f"using {older.name}" in lines[0]
            good = one_line and any(name in lines[0] for name in names)
            if result.check(got == step and good, f"{kind} of {names}: step {got}, said {lines}"):
                seen[kind] += 1
        result.figures[kind.replace(" ", "_")] = f"{seen[kind]} of {n}"
    logger.removeHandler(handler)
    logger.propagate = True
    whole = newest_checkpoint(checkpoints, "sandwich")
    result.check(whole is not None and whole.progress.step > step, "the checkpoint was not mended: the test is wrong")


CHECK = Check("T5", "damaged checkpoints are seen and the one before is used", sum(KINDS.values()), run)

if __name__ == "__main__":
    main(CHECK)
