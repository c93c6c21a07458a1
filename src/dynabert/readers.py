"""Reading columns from parquet, CSV, TSV and JSON Lines, with every complaint naming the file and the line.

The policy for text files: UTF-8 and nothing else (a byte-order mark at the start is dropped), lines end in LF or CR LF,
blank lines are skipped, every row has as many fields as the header. CSV quotes as RFC 4180 does; TSV has no quoting, so
that a lone quote is a character like any other. Compressed files are not unpacked.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dynabert.errors import DataError, StorageError

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is refused before it is read whole: it is no table of texts."""


@dataclass(frozen=True)
class Table:
    """Some columns of one file.

    :param source: the file, or another name for where the rows come from.
    :param columns: the values of each column, all of the same length.
    :param lines: the line (from 1) where each row starts; empty for a source without lines.
    """

    source: str
    columns: dict[str, list[object]]
    lines: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def place(self, row: int) -> str:
        """Where a row stands, for an error: ``train.tsv:12``, or ``train.parquet row 11`` (rows count from 0)."""
        return f"{self.source}:{self.lines[row]}" if self.lines else f"{self.source} row {row}"


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """Read some columns of a file, whose kind its suffix tells.

    :param path: a file whose suffix is in `READERS`.
    :param columns: the columns to read; others are not looked at.
    :return: the values as the file has them: strings from CSV and TSV, typed values from the others.
    :raises DataError: no such file, an unknown suffix, a missing column, or content that breaks the policy above.
    :raises StorageError: the file exists and cannot be read.
    """
    if path.suffix not in READERS:
        raise DataError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; known: {', '.join(READERS)}")
    try:
        return READERS[path.suffix](path, columns)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(f"{path}: no such file; check the name") from None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({error.strerror or error}); check the disk and permissions"
        ) from error


def _read_parquet(path: Path, columns: Sequence[str]) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: parquet needs pyarrow; run pip install 'dynabert[train]'") from None
    unreadable = (pyarrow.ArrowException, OSError, ValueError)
    with path.open("rb") as file:
        try:
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
        except unreadable as error:
            raise _bad_parquet(path, error) from error
        _check_columns(str(path), columns, names)
        try:
            values = table.read(columns=list(columns))
            return Table(str(path), {name: values[name].to_pylist() for name in columns})
        except unreadable as error:
            raise _bad_parquet(path, error) from error


def _bad_parquet(path: Path, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0][:100]
    return DataError(f"{path}: not a readable parquet file ({reason}); write or copy it again")


def _read_tsv(path: Path, columns: Sequence[str]) -> Table:
    with path.open("rb") as file:
        return _from_records(path, columns, ((line, text.split("\t")) for line, text in _lines(path, file) if text))


def _read_csv(path: Path, columns: Sequence[str]) -> Table:
    with path.open("rb") as file:
        return _from_records(path, columns, _csv_records(path, file))


def _csv_records(path: Path, file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((text + "\n" for _, text in _lines(path, file)), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}:{start}: not CSV ({error}); a quote inside a quoted field is doubled") from None
        if record is None:
            return
        if record:
            yield start, record


def _from_records(path: Path, columns: Sequence[str], records: Iterator[tuple[int, list[str]]]) -> Table:
    _, header = next(records, (0, []))
    if not header:
        raise DataError(f"{path}: the file is empty; it needs a header line with the column names")
    _check_columns(str(path), columns, header)
    lines: list[int] = []
    values: dict[str, list[object]] = {name: [] for name in columns}
    places = [(values[name], header.index(name)) for name in columns]
    for line, record in records:
        if len(record) != len(header):
            raise DataError(f"{path}:{line}: {len(record)} fields where the header has {len(header)}; mend this line")
        lines.append(line)
        for column, place in places:
            column.append(record[place])
    return Table(str(path), values, lines)


def _read_jsonl(path: Path, columns: Sequence[str]) -> Table:
    lines: list[int] = []
    values: dict[str, list[object]] = {name: [] for name in columns}
    with path.open("rb") as file:
        for line, text in _lines(path, file):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else error
                raise DataError(f"{path}:{line}: not JSON ({reason}); each line is one object") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}:{line}: {type(record).__name__} where each line is one JSON object")
            _check_columns(f"{path}:{line}", columns, list(record))
            lines.append(line)
            for name in columns:
                values[name].append(record[name])
    return Table(str(path), values, lines)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and texts of the lines, without their ends."""
    line = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        if len(raw) > MAX_LINE_BYTES:
            raise DataError(f"{path}:{line}: longer than {MAX_LINE_BYTES // 2**20} MiB; break the file into lines")
        try:
            text = raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{line}: not UTF-8 (byte {error.start + 1} of the line); save it as UTF-8"
            ) from None
        if "\0" in text:
            raise DataError(f"{path}:{line}: holds a NUL character; save it as UTF-8 text")
        yield line, text


def _check_columns(place: str, wanted: Sequence[str], present: list[str]) -> None:
    for name in wanted:
        if name not in present:
            shown = ", ".join(present[:12]) + (", ..." if len(present) > 12 else "")
            raise DataError(f"{place}: no column {name!r}; its columns: {shown or 'none'}")
        if present.count(name) > 1:
            raise DataError(f"{place}: {present.count(name)} columns are called {name!r}; rename all but one")


READERS: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    ".parquet": _read_parquet,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
"""A reader for each kind of file, by suffix."""
