"""Strict reading: what is not as it was written is one line, with the file, the place, the value and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dynabert.entries import Entry
from dynabert.errors import ModelFileError

SAVED = {"n": 3, "x": 0.5, "name": "a", "rows": [{"x": 1}], "pair": [1, 2.5], "none": None, "empty": []}


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    (tmp_path / "found.json").write_text(json.dumps(SAVED))
    return Entry.of(tmp_path / "found.json", "find again")


def test_values_come_in_their_types(entry: Entry) -> None:
    assert entry.each(float, "n", "x") == (3.0, 0.5) and entry.get("name", str) == "a"
    assert [row.get("x", float) for row in entry.rows("rows")] == [1.0]
    assert entry.all("pair", float, 2) == entry.some("pair", float) == (1.0, 2.5)
    assert entry.all("empty", int) == ()


def test_what_may_be_missing_is_none_or_its_default(entry: Entry) -> None:
    assert entry.optional("none", float) is None and entry.optional("other", float) is None
    assert entry.table_or_none("none") is None and entry.table_or_none("other") is None
    assert entry.get("other", bool, False) is False


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda entry: entry.get("x", int), "x 0.5 is not of type int"),
        (lambda entry: entry.get("other", str), "other None is not of type str"),
        (lambda entry: entry.get("none", float, 1.0), "none None is not of type float"),
        (lambda entry: entry.table("name"), "name 'a' is not a table"),
        (lambda entry: entry.table_or_none("pair"), r"pair \[1, 2.5\] is not a table"),
        (lambda entry: entry.all("pair", float, 3), r"pair \[1, 2.5\] is not a list of 3"),
        (lambda entry: entry.all("pair", int), "pair: 1 2.5 is not of type int"),
        (lambda entry: entry.some("empty", int), "empty is an empty list"),
        (lambda entry: entry.rows("pair"), "pair: 0 1 is not a table"),
        (lambda entry: entry.rows("rows")[0].get("y", float), "rows: 0: y None is not of type float"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_to_do(
    entry: Entry, read: Callable[[Entry], object], said: str
) -> None:
    with pytest.raises(ModelFileError, match=rf"found\.json: {said}; find again"):
        read(entry)


@pytest.mark.parametrize("text", ["{", "[]", "NaN"])
def test_a_file_that_holds_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"found\.json.* find again"):
        Entry.of(tmp_path / "found.json", "find again")
