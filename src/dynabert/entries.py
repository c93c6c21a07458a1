"""Strict reading of the JSON files that studies and searches leave in a run folder. No torch.

What is not as it was written is one line: the file, the place in it, the value, and what to run again.
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dynabert.errors import ModelFileError
from dynabert.files import read_json

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Entry:
    """A table or a list of such a file.

    :param values: as read; those of a list by their place, "0", "1" and so on.
    :param what: what a message calls it.
    :param again: what to do where something is wrong, as "compare again".
    """

    values: Mapping[str, Any]
    what: str
    again: str

    @classmethod
    def of(cls, path: Path, again: str) -> "Entry":
        """The table that a file holds.

        :raises ModelFileError: no JSON, or no table.
        :raises StorageError: it cannot be read.
        """
        try:
            saved = read_json(path)
        except ModelFileError as error:
            raise ModelFileError(f"{error}, or {again}") from error
        if not isinstance(saved, dict):
            raise ModelFileError(f"{path} is not a table; {again}")
        return cls(saved, str(path), again)

    def wrong(self, why: str) -> ModelFileError:
        """The error that says what is wrong with it."""
        return ModelFileError(f"{self.what}: {why}; {self.again}")

    def get(self, name: str, kind: type[Kind], default: Kind | None = None) -> Kind:
        """A value of a type; whole numbers are numbers too.

        :param default: where there is none of that name; without it, that is an error.
        :raises ModelFileError: of another type, NaN or infinite.
        """
        value = self.values.get(name, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
            raise self.wrong(f"{name} {reprlib.repr(value)} is not of type {kind.__name__}")
        return value

    def optional(self, name: str, kind: type[Kind]) -> Kind | None:
        """Likewise; None where it is null, or not there."""
        return None if self.values.get(name) is None else self.get(name, kind)

    def each(self, kind: type[Kind], *names: str) -> tuple[Kind, ...]:
        """Several values of one type, in the order of the names."""
        return tuple(self.get(name, kind) for name in names)

    def table(self, name: str) -> "Entry":
        """A table in it."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.wrong(f"{name} {reprlib.repr(value)} is not a table")
        return Entry(value, f"{self.what}: {name}", self.again)

    def table_or_none(self, name: str) -> "Entry | None":
        """Likewise; None where it is null, or not there."""
        return None if self.values.get(name) is None else self.table(name)

    def listed(self, name: str, n: int | None = None) -> "Entry":
        """A list in it.

        :param n: how long it must be.
        """
        value = self.values.get(name)
        if not isinstance(value, list) or n not in (None, len(value)):
            raise self.wrong(f"{name} {reprlib.repr(value)} is not a list{'' if n is None else f' of {n}'}")
        return Entry({str(place): entry for place, entry in enumerate(value)}, f"{self.what}: {name}", self.again)

    def rows(self, name: str) -> "list[Entry]":
        """A list of tables in it."""
        found = self.listed(name)
        return [found.table(place) for place in found.values]

    def all(self, name: str, kind: type[Kind], n: int | None = None) -> tuple[Kind, ...]:
        """A list in it, whose values are of one type."""
        found = self.listed(name, n)
        return found.each(kind, *found.values)

    def some(self, name: str, kind: type[Kind]) -> tuple[Kind, ...]:
        """Likewise; an empty one is an error."""
        found = self.all(name, kind)
        if not found:
            raise self.wrong(f"{name} is an empty list")
        return found
