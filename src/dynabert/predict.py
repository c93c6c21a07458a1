"""Texts in, labels out: what an extracted model, or any model folder of a known family, says of some lines."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch

from dynabert.data import is_text
from dynabert.elastic import longest_input
from dynabert.errors import DataError, ModelFileError, SettingError
from dynabert.exported import ExportIndex, fetch_export, open_export
from dynabert.loading import load, load_tokenizer
from dynabert.measure import threads
from dynabert.model_files import ELASTIC, resolve


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text.

    :param text: as it was given; the two of a pair joined by a tab.
    :param label: the name of the class; None for a regression.
    :param score: probability of that class, or the score of a regression.
    """

    text: str
    label: str | None
    score: float


def predict_lines(
    folder: str | Path,
    lines: Iterable[str],
    *,
    subnet: str | None = None,
    batch_size: int = 32,
    n_threads: int | None = None,
) -> Iterator[Prediction]:
    """Predict texts one by one, in their order, reading no further ahead than one batch.

    :param folder: a model folder or hub name with a tokenizer and a classification head, or an exported folder.
    :param lines: one text, or two separated by a tab, each; empty lines are left out.
    :param subnet: which size, where an exported folder has several.
    :param batch_size: texts that are run together.
    :param n_threads: of a call; None takes what PyTorch is set to.
    :raises ModelFileError: a model without a task head, or one that cannot be loaded.
    :raises SettingError: a size that the folder does not have, or no threads.
    :raises DataError: a line with more than two texts, or one that is no text.
    """
    if n_threads is not None and n_threads < 1:
        raise SettingError(f"threads {n_threads} must be 1 or more")
    exported = fetch_export(folder)
    run = _model(folder, subnet, n_threads) if exported is None else _exported(exported, subnet, n_threads)
    folder = exported or folder
    tokenizer, texts = load_tokenizer(folder), text_lines(lines)
    limit = min(run.max_length, tokenizer.model_max_length)
    while chunk := list(islice(texts, batch_size)):
        columns = columns_of(chunk)
        inputs = tokenizer(*columns, padding=True, truncation="longest_first", max_length=limit, return_tensors="np")
        logits = run.logits({name: np.asarray(column, dtype=np.int64) for name, column in inputs.items()})
        if logits.shape[-1] == 1:
            yield from (Prediction(line, None, float(row[0])) for line, row in zip(chunk, logits, strict=True))
            continue
        for line, row in zip(chunk, torch.from_numpy(logits).softmax(-1), strict=True):
            best = int(row.argmax())
            yield Prediction(line, run.labels[best], float(row[best]))


@dataclass(frozen=True)
class _Runnable:
    """A model to predict with, whatever runs it.

    :param logits: of arrays of token ids.
    :param labels: names of the classes.
    :param max_length: tokens that it takes at most.
    """

    logits: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    labels: Mapping[int, str]
    max_length: int


def _model(folder: str | Path, subnet: str | None, n_threads: int | None) -> _Runnable:
    if subnet is not None and not (resolve(folder) / ELASTIC).exists():
        raise SettingError(f"{folder} is one model; leave --subnet out, or give an elastic or exported folder")
    model = load(folder, head=None, subnet=subnet)
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise ModelFileError(f"{folder} has no classification head; give a fine-tuned or an extracted model")

    def logits(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode(), threads(n_threads):
            return model(**{name: torch.from_numpy(column) for name, column in inputs.items()}).logits.numpy()

    labels = {int(index): str(name) for index, name in (model.config.id2label or {}).items()}
    return _Runnable(logits, labels, longest_input(model))


def _exported(folder: str | Path, subnet: str | None, n_threads: int | None) -> _Runnable:
    session = open_export(folder, subnet=subnet, n_threads=n_threads or torch.get_num_threads())
    index = ExportIndex.of(folder)
    return _Runnable(session, index.labels, index.max_length)


def text_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines that are not empty, without their line ends, each checked to be text.

    :raises DataError: a line that is none.
    """
    source = iter(lines)
    for number in count(1):
        try:
            line = next(source)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} or one after it is not UTF-8 ({error.reason}); convert it first") from error
        if not is_text(line):
            raise DataError(f"line {number} holds a NUL or bytes that are not UTF-8; mend or drop it")
        if line.strip():
            yield line.rstrip("\r\n")


def columns_of(lines: Iterable[str]) -> list[list[str]]:
    """The texts of some lines, a column of them; or two, where a tab separates the two texts of each line.

    :raises DataError: a line with more than two texts, or lines of both kinds.
    """
    pairs = [_parts(line) for line in lines]
    if len({len(pair) for pair in pairs}) > 1:
        raise DataError("some lines hold one text and some a tab-separated pair; give one kind at a time")
    return [list(column) for column in zip(*pairs, strict=True)]


def _parts(line: str) -> list[str]:
    parts = line.split("\t")
    if len(parts) > 2:
        raise DataError(f"a line has {len(parts)} tab-separated texts: {line[:60]!r}; give one, or a pair")
    return parts
