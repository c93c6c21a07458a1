"""Loading a task's rows from local files or the Hugging Face hub, and giving each row one role.

Training uses `Roles.train`; whatever is chosen (a checkpoint, a threshold, a Subnet) is chosen on `Roles.select`, which
is split off the training file; `Roles.validation` is reported and never chosen on, but by `pick`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dynabert.errors import DataError, SettingError, StorageError, one_of
from dynabert.overlap import MIN_ROWS, overlap_free_split
from dynabert.readers import READERS, Table, read_table
from dynabert.seeds import permutation
from dynabert.tasks import Task

MAX_SELECT = 2000
"""Rows at most that are held out for choosing, unless a size is given; below 20,000 training rows it is a tenth."""


@dataclass(frozen=True)
class Rows:
    """Rows of one task.

    :param texts: one list for each text column of the task.
    :param labels: class numbers, or scores for a regression; None where there are none.
    :param ids: the number of each row in its file, from 0.
    """

    texts: tuple[list[str], ...]
    labels: list[int] | list[float] | None
    ids: list[int]

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (*self.texts, self.ids, *([] if self.labels is None else [self.labels]))}
        assert len(lengths) == 1, f"columns of different lengths: {lengths}"

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Iterable[int]) -> "Rows":
        """The rows at some positions (not ids), in the order given."""
        chosen = list(indices)
        texts = tuple([column[i] for i in chosen] for column in self.texts)
        labels = None if self.labels is None else [self.labels[i] for i in chosen]
        return Rows(texts, labels, [self.ids[i] for i in chosen])


@dataclass(frozen=True)
class Roles:
    """The rows of a task by what they may be used for.

    :param train: to train on and to score importance with.
    :param select: to choose with; shares no text with `train`.
    :param validation: to report on.
    :param n_set_aside: training rows left out of both, because their text overlaps with both.
    """

    train: Rows
    select: Rows
    validation: Rows
    n_set_aside: int

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ when any text, label or role differs."""
        parts = (fingerprint(rows) for rows in (self.train, self.select, self.validation))
        return sha256(" ".join(parts).encode()).hexdigest()[:16]


def fingerprint(rows: Rows) -> str:
    """16 hexadecimal digits of the sha256 over the texts and labels in their order."""
    digest = sha256(f"{len(rows.texts)} {len(rows)}".encode())
    for column in rows.texts:
        for text in column:
            data = text.encode()
            digest.update(f"{len(data)}:".encode() + data)
    digest.update(repr(rows.labels).encode())
    return digest.hexdigest()[:16]


def load_task(
    task: Task,
    folder: Path | None = None,
    *,
    validation: str | None = None,
    select_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Roles:
    """Load a task that is in the table.

    :param task: for instance ``TASKS["sst2"]``.
    :param folder: holds ``train.*`` and ``validation.*`` or ``dev.*`` (see `READERS` for the suffixes), itself or in a
        subfolder of the task's name. None: from the hub, or its cache on this machine.
    :param validation: which split to report on, where a task has several: mnli has ``matched`` (the default) and
        ``mismatched``.
    :param select_size: rows to hold out for choosing; by default a tenth, at most 2,000.
    :param limit: train on a random part of that many rows, taken after the split.
    :param seed: of the split and of `limit`. Keep it when the seed of training varies, so that runs can be paired.
    :return: the rows by role.
    :raises SettingError: an unknown split, a size that does not fit, or a task that the hub does not have.
    :raises DataError: files that are missing or cannot be used; the hub not reached.
    """
    splits = {name.removeprefix("validation_"): name for name in task.validations}
    if validation is not None and validation not in splits:
        raise SettingError(one_of(f"validation split of {task.name}", validation, splits))
    reported = task.validations[0] if validation is None else splits[validation]
    if folder is None:
        train, held = _from_hub(task, "train"), _from_hub(task, reported)
    else:
        train, held = _from_folder(task, Path(folder), reported)
    rows, reports = _rows(task, train, at_least=2 * MIN_ROWS), _rows(task, held)
    return _roles(rows, reports, select_size=select_size, limit=limit, seed=seed)


def load_files(
    train: Path,
    validation: Path,
    *,
    text: str,
    text_pair: str | None = None,
    label: str,
    metric: str | None = None,
    select_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Task, Roles]:
    """Load your own data.

    The task is a regression where the training labels are numbers and one is written with a decimal point (or `metric`
    is that of a regression); otherwise each distinct label is a class, in ascending order.

    :param train: a file, see `READERS`.
    :param validation: the file to report on; its labels must occur in `train` unless they are scores.
    :param text: name of the text column.
    :param text_pair: name of a second text column.
    :param label: name of the label column.
    :param metric: a name in `tasks.METRICS`; by default accuracy, or Pearson's correlation for a regression.
    :param select_size: see `load_task`.
    :param limit: see `load_task`.
    :param seed: see `load_task`.
    :return: the task that the files describe, and their rows by role.
    :raises SettingError: a metric that does not fit the labels, or a size that does not fit.
    :raises DataError: files that cannot be used.
    """
    texts = (text,) if text_pair is None else (text, text_pair)
    if len({*texts, label}) <= len(texts):
        raise SettingError(f"columns {', '.join((*texts, label))}: one is given twice; give different ones")
    tables = [read_table(Path(path), (*texts, label)) for path in (train, validation)]
    labels = None if metric == "pearson_spearman" else _class_names(tables[0], label)
    if labels is None:
        task = Task("files", texts, label, metric=metric or "pearson_spearman")
    else:
        task = Task("files", texts, label, labels, metric or "accuracy")
    # Numbers are no names here: which class a number means is known of a task in the table alone.
    rows = _rows(task, tables[0], at_least=2 * MIN_ROWS, numbered=False)
    reports = _rows(task, tables[1], numbered=False)
    return task, _roles(rows, reports, select_size=select_size, limit=limit, seed=seed)


def split_roles(rows: Rows, *, size: int, seed: int) -> tuple[Rows, Rows, int]:
    """Split labelled rows so that no text of one part stands inside a text of the other, see `overlap_free_split`.

    :param rows: with labels.
    :param size: rows to hold out.
    :param seed: of the random choice.
    :return: the rows to train on, the rows to choose with, and how many overlap with both and are in neither.
    :raises SettingError: a size below 2, or one that leaves fewer than 2 rows.
    :raises DataError: the texts overlap too much.
    """
    assert rows.labels is not None, "roles are for labelled rows"
    split = overlap_free_split(rows.texts, rows.labels, size=size, seed=seed)
    return rows.take(split.train), rows.take(split.select), len(split.set_aside)


def _roles(rows: Rows, validation: Rows, *, select_size: int | None, limit: int | None, seed: int) -> Roles:
    if limit is not None and limit < MIN_ROWS:
        raise SettingError(f"limit {limit} is below {MIN_ROWS} training rows; give more, or none to train on all")
    size = min(MAX_SELECT, max(MIN_ROWS, len(rows) // 10)) if select_size is None else select_size
    train, select, n_set_aside = split_roles(rows, size=size, seed=seed)
    if limit is not None and limit < len(train):
        train = train.take(sorted(permutation(len(train), seed, "limit")[:limit].tolist()))
    return Roles(train, select, validation, n_set_aside)


def _from_hub(task: Task, split: str) -> Table:
    if task.hub is None:
        raise SettingError(f"task {task.name} is read from files only; give its folder with --data DIR")
    source = f"{task.hub}/{task.name} {split}"
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{source}: needs datasets; run pip install 'dynabert[train]', or give --data DIR") from None
    try:
        rows = load_dataset(task.hub, task.name)[split]
        return Table(source, {name: rows[name][:] for name in (*task.texts, task.label)})
    # Without a network this can be one of a dozen errors of datasets, huggingface_hub, httpx or the file system.
    except Exception as error:
        reason = (str(error).strip().partition("\n")[0] or type(error).__name__)[:80]
        raise DataError(f"{source}: not available here ({reason}); give a local folder with --data DIR") from error


def _from_folder(task: Task, folder: Path, reported: str) -> tuple[Table, Table]:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; --data DIR holds train.* and validation.*, or {task.name}/ with them"
        )
    inner = folder / task.name
    place = inner if inner.is_dir() else folder
    names = [reported, reported.replace("validation", "dev")]
    if reported == task.validations[0]:
        names += ["validation", "dev"]
    wanted = (*task.texts, task.label)
    return read_table(_find(place, ["train"]), wanted), read_table(_find(place, names), wanted)


def _find(folder: Path, names: Sequence[str]) -> Path:
    """The one file of the first of some names; a hub repository's ``train-00000-of-00001`` counts as ``train``."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix in READERS)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed ({error.strerror}); check the permissions") from error
    for name in names:
        known = re.compile(rf"{re.escape(name)}(-00000-of-00001)?")
        found = [file for file in files if known.fullmatch(file.stem)]
        if len(found) > 1:
            shown = ", ".join(file.name for file in found)
            raise DataError(f"{folder}: {len(found)} files for one role ({shown}); keep one of them")
        if found:
            return found[0]
    wanted = " or ".join(f"{name}.*" for name in dict.fromkeys(names))
    raise DataError(f"{folder}: no {wanted}; put one there as {', '.join(READERS)}")


def _rows(task: Task, table: Table, *, at_least: int = MIN_ROWS, numbered: bool = True) -> Rows:
    if len(table) < at_least:
        raise DataError(
            f"{table.source}: {len(table)} rows; at least {at_least} are needed "
            f"({MIN_ROWS} to report on; {MIN_ROWS} to train on and {MIN_ROWS} to hold out)"
        )
    texts = tuple(_texts(table, name) for name in task.texts)
    labels = _scores(table, task.label) if task.is_regression else _classes(table, task, numbered=numbered)
    return Rows(texts, labels, list(range(len(table))))


def _texts(table: Table, column: str) -> list[str]:
    """The texts of a column. An empty one is a text; a missing one is not."""
    texts: list[str] = []
    for row, value in enumerate(table.columns[column]):
        if not isinstance(value, str):
            raise DataError(f"{table.place(row)}: {column} is {_short(value)}, not text; mend or drop this row")
        if not is_text(value):
            raise DataError(f"{table.place(row)}: {column} holds a NUL or half a character; mend or drop this row")
        texts.append(value)
    return texts


def is_text(value: str) -> bool:
    """Whether a string can be tokenized: no NUL, no half of a character as JSON or other encodings can leave."""
    if "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _classes(table: Table, task: Task, *, numbered: bool) -> list[int]:
    numbers = {name: number for number, name in enumerate(task.labels)}
    numbered = numbered and not any(_is_integer(name) for name in task.labels)
    if numbered:
        numbers |= {str(number): number for number in range(len(task.labels))}
    classes: list[int] = []
    for row, value in enumerate(table.columns[task.label]):
        name = _class_name(value)
        if name not in numbers:
            known = ", ".join(task.labels[:8]) + (", ..." if len(task.labels) > 8 else "")
            if numbered and name == "-1":
                raise DataError(f"{table.place(row)}: label -1 marks a hidden label; use a split with labels ({known})")
            known += f" or 0 to {task.n_labels - 1}" if numbered else ""
            raise DataError(f"{table.place(row)}: label {_short(value)} is none of {known}; mend this row")
        classes.append(numbers[name])
    return classes


def _scores(table: Table, column: str) -> list[float]:
    scores: list[float] = []
    for row, value in enumerate(table.columns[column]):
        number = _number(value)
        if number is None:
            raise DataError(f"{table.place(row)}: label {_short(value)} is not a finite number; mend or drop this row")
        scores.append(number)
    return scores


def _class_names(table: Table, column: str) -> tuple[str, ...] | None:
    """The distinct labels in ascending order, as numbers where all are; None where they are scores."""
    names: dict[str, None] = {}
    n_numbers = n_decimals = 0
    for row, value in enumerate(table.columns[column]):
        name = _class_name(value)
        if not name or name.lower() == "nan":
            raise DataError(f"{table.place(row)}: label {_short(value)} is empty; mend or drop this row")
        names[name] = None
        n_numbers += _number(value) is not None
        n_decimals += isinstance(value, float) or not _is_integer(name)
    if n_numbers == len(table) and n_decimals:
        return None
    by_number = all(_is_integer(name) for name in names)
    if len(table) < 2 * MIN_ROWS:
        raise DataError(f"{table.source}: too few rows ({len(table)}) to train on; give at least {2 * MIN_ROWS}")
    if len(names) < 2:
        raise DataError(f"{table.source}: every row of column {column!r} has the same label; at least 2 are needed")
    if 2 * len(names) > len(table) and len(names) > 10:
        raise DataError(
            f"{table.source}: {len(names)} different labels in {len(table)} rows of column {column!r} are no classes; "
            "for a regression write the scores with a decimal point, as in 3.0"
        )
    return tuple(sorted(names, key=int) if by_number else sorted(names))


def _class_name(value: object) -> str:
    """How a label is looked up: text as it stands, a whole number by its digits; empty for no label."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    if not math.isfinite(value):
        return ""
    return str(int(value)) if value == int(value) else str(value)


def _is_integer(name: str) -> bool:
    return re.fullmatch(r"-?\d{1,18}", name, re.ASCII) is not None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
