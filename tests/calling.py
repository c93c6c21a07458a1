"""The command line, called as its user does, in this process."""

import sys

import pytest

from dynabert import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of one command."""
    monkeypatch.setattr(sys, "argv", ["dynabert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)
