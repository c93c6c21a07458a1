"""What all tests of studies share."""

import pytest

from dynabert.studies import trials


@pytest.fixture(autouse=True)
def few_timed_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of so small a network say nothing, and would take half of the tests' time."""
    monkeypatch.setattr(trials, "_REPEATS", 1)
    monkeypatch.setattr(trials, "_TIMED", {1: 2, 32: 1})
