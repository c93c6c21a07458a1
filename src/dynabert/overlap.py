"""Splitting rows in two so that no text of one part stands inside a text of the other.

Many sets hold the same words several times: most training phrases of SST-2 are pieces of another training sentence, and
the premises of MNLI come three times. A random split then measures memory. Here texts are compared as sequences of
lower-case words, and what belongs together stays together.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dynabert.errors import DataError, SettingError
from dynabert.seeds import permutation

logger = logging.getLogger("dynabert")

MIN_WORDS = {1: 3, 2: 5}
"""Words a text needs before standing inside another counts, by the number of text columns. One column: shorter phrases
("very good") stand in too many sentences to tell anything about them, but equal texts of any length stay together. Two
columns: a shorter text counts for nothing, because as one half of a pair it does not determine the label; at 3 words,
phrases such as "that's all right" tie together 786 of 25,072 MNLI rows, at 5 words never more than 4."""

MIN_ROWS = 2
"""Rows that each part of a split, and each file, must have."""

_Words = tuple[int, ...]
_Texts = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Split:
    """Row numbers, ascending, of the two parts and of the rows that overlap with both and belong to none."""

    train: list[int]
    select: list[int]
    set_aside: list[int]


def overlap_free_split(texts: _Texts, labels: Sequence[object], *, size: int, seed: int) -> Split:
    """Choose at random about `size` rows that share no text with the rows left for training.

    Every text has *containers*: the largest texts that it stands inside, or itself. A row is selected when all its
    containers are among those drawn, trained on when none is, and set aside otherwise. For pairs, the containers of a
    row's two texts are drawn together, so nothing is set aside. Where pairs hang together so much that less than half
    of `size` can be drawn, only the first column counts (then only the second), and a warning is logged.

    :param texts: one or two columns of texts.
    :param labels: one for each row; the selected rows get at least two different ones where that is possible.
    :param size: rows to select, at least 2; never exceeded, and reached unless the texts hang together too much.
    :param seed: the split is a function of the texts, labels, size and this.
    :return: the row numbers of each part.
    :raises SettingError: a size below 2, or one that leaves fewer than 2 rows to train on.
    :raises DataError: the texts overlap so much that a part would have fewer than 2 rows.
    """
    n_rows = len(labels)
    if not MIN_ROWS <= size <= n_rows - MIN_ROWS:
        raise SettingError(
            f"cannot hold out {size} of {n_rows} training rows: both parts need at least {MIN_ROWS}; "
            f"give at least {2 * MIN_ROWS} rows and a size from {MIN_ROWS} to rows - {MIN_ROWS}"
        )
    splits: list[Split] = []
    for columns in [(0,)] if len(texts) == 1 else [(0, 1), (0,), (1,)]:
        split = _draw(_units_of_rows(texts, columns), labels, size=size, seed=seed)
        splits.append(split)
        if 2 * len(split.select) >= size:
            break
    best = max(splits, key=lambda split: len(split.select))
    if best is not splits[0]:
        column = ("first", "second")[splits.index(best) - 1]
        logger.warning(f"texts recur in so many pairs that the split keeps only those of the {column} column apart")
    if min(len(best.train), len(best.select)) < MIN_ROWS:
        raise DataError(
            f"the {n_rows} training rows overlap in their texts so much that {size} cannot be held out "
            f"(found {len(best.select)}, leaving {len(best.train)}); give rows with more different texts"
        )
    return best


def words_of(text: str) -> tuple[str, ...]:
    """A text as it is compared: lower case, letters and digits only (the symbols where there is nothing else)."""
    lowered = text.lower()
    return tuple(re.findall(r"\w+", lowered)) or tuple(lowered.split())


def _units_of_rows(texts: _Texts, columns: tuple[int, ...]) -> list[list[int]]:
    """For each row the units it belongs to: containers of its one text, or the one group that its pair is tied to."""
    min_words = MIN_WORDS[len(texts)]
    numbers: dict[str, int] = {}
    known: dict[_Words, int] = {}
    keys: list[list[int]] = []
    for row in zip(*(texts[column] for column in columns), strict=True):
        coded = [tuple(numbers.setdefault(word, len(numbers)) for word in words_of(text)) for text in row]
        keys.append([known.setdefault(sequence, len(known)) for sequence in coded])
    sequences = list(known)
    containers = _containers(sequences, min_words)
    if len(texts) == 1:
        return [containers[key] for (key,) in keys]
    ties: list[list[int]] = []
    pairs: dict[tuple[int, ...], int] = {}
    for row_keys in keys:
        tied = [unit for key in row_keys if len(sequences[key]) >= min_words for unit in containers[key]]
        # A row of nothing but short texts is tied to its equals alone.
        ties.append(tied or [len(sequences) + pairs.setdefault(tuple(row_keys), len(pairs))])
    return [[group] for group in _groups(ties, len(sequences) + len(pairs))]


def _containers(sequences: Sequence[_Words], min_words: int) -> list[list[int]]:
    """For each of some distinct word sequences, which of the largest ones hold it (itself where none does)."""
    longest_first = sorted(range(len(sequences)), key=lambda text: -len(sequences[text]))
    starting: dict[_Words, list[tuple[int, int, int]]] = defaultdict(list)
    for text in longest_first:
        words = sequences[text]
        if len(words) >= min_words:
            starting[words[:min_words]].append((len(words), words[-1], text))
    held_by: list[list[int]] = [[] for _ in sequences]
    for holder in longest_first:
        if held_by[holder]:
            continue  # whatever it holds, its own holders hold as well, and they came first
        words = sequences[holder]
        for start in range(len(words) - min_words + 1):
            for length, last, text in starting.get(words[start : start + min_words], ()):
                end = start + length
                # The last word rejects nearly all candidates before the slice is made.
                if end > len(words) or text == holder or words[end - 1] != last:
                    continue
                if words[start:end] == sequences[text] and holder not in held_by[text][-1:]:
                    held_by[text].append(holder)
    return [holders or [text] for text, holders in enumerate(held_by)]


def _groups(ties: list[list[int]], n_units: int) -> list[int]:
    """For each row the group of units that chains of rows tie together (a union-find with path halving)."""
    parent = list(range(n_units))

    def root(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    for tied in ties:
        for unit in tied[1:]:
            parent[root(unit)] = root(tied[0])
    return [root(tied[0]) for tied in ties]


def _draw(units: list[list[int]], labels: Sequence[object], *, size: int, seed: int) -> Split:
    """Draw units in random order, passing over those that would select too many rows, and sort the rows by them."""
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, row_units in enumerate(units):
        for unit in row_units:
            rows_of[unit].append(row)
    names = list(rows_of)
    order = [names[i] for i in permutation(len(names), seed, "split")]
    split = _fill(units, rows_of, order, size)
    found = {labels[row] for row in split.select}
    if len(found) == 1:
        others = (unit for unit in order if any(labels[row] not in found for row in rows_of[unit]))
        for first in (unit for unit, _ in zip(others, range(20), strict=False)):
            second = _fill(units, rows_of, [first, *(unit for unit in order if unit != first)], size)
            if len({labels[row] for row in second.select}) > 1:
                return second
    return split


def _fill(units: list[list[int]], rows_of: dict[int, list[int]], order: list[int], size: int) -> Split:
    missing = [len(row_units) for row_units in units]
    n_selected = 0
    for unit in order:
        gain = sum(missing[row] == 1 for row in rows_of[unit])
        if n_selected + gain > size:
            continue
        n_selected += gain
        for row in rows_of[unit]:
            missing[row] -= 1
        if n_selected == size:
            break
    split = Split([], [], [])
    for row, (left, row_units) in enumerate(zip(missing, units, strict=True)):
        part = split.select if left == 0 else split.train if left == len(row_units) else split.set_aside
        part.append(row)
    return split
