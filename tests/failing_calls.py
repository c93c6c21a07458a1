"""Failures injected at system calls, and how often those are made."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def patch_nth(patch: pytest.MonkeyPatch, call: str, nth: int, code: int, *, ever_after: bool = False) -> None:
    """Make the nth use of an `os` function raise; with `ever_after` the later ones too."""
    real, count = getattr(os, call), 0

    def failing(*args: Any, **settings: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth or (ever_after and count > nth):
            raise OSError(code, os.strerror(code))
        return real(*args, **settings)

    patch.setattr(os, call, failing)


def uses(call: str, action: Callable[[], object]) -> int:
    """How often an action uses an `os` function."""
    real, count = getattr(os, call), 0

    def counting(*args: Any, **settings: Any) -> Any:
        nonlocal count
        count += 1
        return real(*args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, counting)
        action()
    return count
