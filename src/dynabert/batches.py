"""Token ids of rows, and batches of them that are a pure function of (seed, step, rank).

Padding is most of the cost of a batch of mixed lengths, so rows of similar length make a step (`dynabert.steps`), and
each micro-batch is padded to its own longest row. Nothing here has a state that a resumed run would have to restore.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from dynabert.data import Rows
from dynabert.errors import DataError, SettingError
from dynabert.steps import Steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 4096  # rows given to the tokenizer at once: its own threads work inside a chunk


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids.

    :param input_ids: an int32 array of shape (tokens,) for each row, special tokens included, no padding.
    :param type_ids: likewise, the text each token belongs to; None where the tokenizer makes none.
    :param labels: shape (rows,): int64 class numbers, or float32 scores for a regression; None where there are none.
    :param ids: int64, shape (rows,): the number of each row in its file.
    """

    input_ids: list[np.ndarray]
    type_ids: list[np.ndarray] | None
    labels: np.ndarray | None
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


def encode(tokenizer: "PreTrainedTokenizerBase", rows: Rows, max_length: int = 128) -> Encoded:
    """Tokenize rows, cutting the longer text of a pair first.

    :param tokenizer: a fast tokenizer of transformers.
    :param rows: with one or two text columns.
    :param max_length: tokens at most, special tokens included.
    :return: ragged token ids, in the order of the rows.
    :raises SettingError: a slow tokenizer, or no room for text beside the special tokens.
    """
    if not tokenizer.is_fast:
        raise SettingError(f"{type(tokenizer).__name__} is not a fast tokenizer; load it with AutoTokenizer")
    n_special = tokenizer.num_special_tokens_to_add(pair=len(rows.texts) == 2)
    if max_length < n_special + len(rows.texts):
        raise SettingError(f"max_length {max_length} leaves no room beside {n_special} special tokens; 128 is usual")
    input_ids: list[np.ndarray] = []
    type_ids: list[np.ndarray] = []
    for start in range(0, len(rows), _CHUNK):
        columns = [column[start : start + _CHUNK] for column in rows.texts]
        coded = tokenizer(*columns, truncation="longest_first", max_length=max_length, return_attention_mask=False)
        input_ids += [np.array(tokens, dtype=np.int32) for tokens in coded["input_ids"]]
        type_ids += [np.array(types, dtype=np.int32) for types in coded.get("token_type_ids", ())]
    labels = None if rows.labels is None else np.array(rows.labels)
    if labels is not None:
        labels = labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)
    return Encoded(input_ids, type_ids or None, labels, np.array(rows.ids, dtype=np.int64))


@dataclass(frozen=True)
class Sizes:
    """Sizes of a whole step, over all its micro-batches and ranks.

    :param examples: rows.
    :param tokens: without padding.
    :param padded_tokens: with the padding of each micro-batch to its own longest row.
    """

    examples: int
    tokens: int
    padded_tokens: int


@dataclass(frozen=True)
class Batch:
    """Rows that go through the network together: one micro-batch of a step on one rank.

    :param inputs: int64 tensors of shape (batch, seq), ready for a model's forward: input_ids, attention_mask, and
        token_type_ids where the tokenizer makes them.
    :param labels: shape (batch,): int64 class numbers, or float32 scores; None where there are none.
    :param ids: int64, shape (batch,): the number of each row in its file.
    :param whole: sizes of the step that the batch is a part of; None where it is all of it.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    ids: torch.Tensor
    whole: Sizes | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, first: int, size: int) -> "Batch":
        """So many of its rows from one on, likewise `rows`."""
        return self.rows(slice(first, first + size))

    def rows(self, rows: "slice | torch.Tensor") -> "Batch":
        """Some of its rows, by place, without the padding that none of them needs."""
        longest = int(self.inputs["attention_mask"][rows].sum(-1).max())
        inputs = {name: column[rows][:, :longest] for name, column in self.inputs.items()}
        return Batch(inputs, None if self.labels is None else self.labels[rows], self.ids[rows])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        labels = None if self.labels is None else self.labels.to(device)
        return Batch(inputs, labels, self.ids.to(device), self.whole)


class BatchSource(Protocol):
    """Training rows by step, for one rank: `Batches` is one."""

    def __len__(self) -> int:
        """Steps in one epoch."""

    def micro_batches(self, step: int) -> Sequence[Batch]:
        """The micro-batches of a step on this rank, the same number of them in every step and on every rank.

        :param step: counted over all epochs; the rows are a pure function of it.
        """


class Batches:
    """All batches of some rows, each a pure function of (seed, step, rank).

    Every row comes once in each epoch over all ranks together. The rows of a step (see `dynabert.steps.Steps`) are
    dealt out to ``world * accumulate`` micro-batches, of which rank r takes those from ``r * accumulate`` on. Two ranks
    and one rank that accumulates twice thus see the very same micro-batches, and one rank that does neither the same
    rows in one batch.

    Iterating gives the micro-batches of the first epoch.

    :param encoded: the rows.
    :param batch_size: rows of one step, over all ranks and micro-batches.
    :param max_tokens: instead of `batch_size`: as many rows as leave each micro-batch at most this many tokens, padding
        included.
    :param seed: of the order.
    :param pad_id: the tokenizer's padding token.
    :param shuffle: a new order for each epoch, with rows of similar lengths together. False, to evaluate: always the
        same order, longest rows first, so that too little memory shows at once.
    :param rank: this process, from 0.
    :param world: how many processes there are.
    :param accumulate: micro-batches of a step on each rank.
    :param pad_to: pad to this many tokens instead of to the longest row of the batch (the published procedure).
    :raises SettingError: sizes that do not fit the rows or each other, or a row longer than `pad_to`.
    :raises DataError: no rows.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        seed: int,
        pad_id: int,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        pad_to: int | None = None,
    ) -> None:
        if not len(encoded):
            raise DataError("there are no rows to make batches of; check the data files")
        if accumulate < 1:
            raise SettingError(f"accumulate {accumulate} is below 1; 1 is usual")
        if not 0 <= rank < world:
            raise SettingError(f"rank {rank} of {world} is not one of the ranks from 0 to {world - 1}")
        self._encoded, self._pad_id, self._pad_to = encoded, pad_id, pad_to
        self._lengths = np.array([len(tokens) for tokens in encoded.input_ids])
        if pad_to is not None and max_tokens is not None:
            raise SettingError("pad_to fixes the tokens of a row, so max_tokens does not go with it; give batch_size")
        if pad_to is not None and self._lengths.max() > pad_to:
            raise SettingError(f"pad_to {pad_to} is below the longest row, {self._lengths.max()} tokens; raise it")
        self._first, self._accumulate = rank * accumulate, accumulate
        self._steps = Steps(
            self._lengths,
            parts=world * accumulate,
            seed=seed,
            shuffle=shuffle,
            batch_size=batch_size,
            max_tokens=max_tokens,
        )

    def __len__(self) -> int:
        """Steps in one epoch, the same on every rank; with `max_tokens` those of the first epoch."""
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for step in range(len(self)) for batch in self.micro_batches(step))

    def micro_batches(self, step: int) -> tuple[Batch, ...]:
        """The micro-batches of one step on this rank.

        :param step: from 0, counted on over the epochs.
        :return: `accumulate` of them, each padded on the right to its own longest row.
        :raises SettingError: a step below 0.
        """
        parts = self._steps.rows(step)
        sizes = Sizes(
            examples=sum(len(rows) for rows in parts),
            tokens=sum(int(self._lengths[rows].sum()) for rows in parts),
            padded_tokens=sum(math.prod(self._padded_shape(rows)) for rows in parts),
        )
        return tuple(self._batch(rows, sizes) for rows in parts[self._first : self._first + self._accumulate])

    def at(self, step: int) -> Batch:
        """The batch of one step, where a rank takes its rows in one piece.

        :raises SettingError: a step below 0, or rows that are taken in several micro-batches.
        """
        if self._accumulate > 1:
            raise SettingError(f"a step has {self._accumulate} micro-batches here; ask for micro_batches(step)")
        return self.micro_batches(step)[0]

    def _batch(self, rows: np.ndarray, whole: Sizes) -> Batch:
        labels = self._encoded.labels
        return Batch(
            self._pad(rows),
            None if labels is None else torch.from_numpy(labels[rows]),
            torch.from_numpy(self._encoded.ids[rows]),
            whole,
        )

    def shape(self, step: int) -> tuple[int, int]:
        """Rows of one step on this rank, and tokens of its longest micro-batch with padding, without making any."""
        mine = self._steps.rows(step)[self._first : self._first + self._accumulate]
        return sum(len(rows) for rows in mine), max(self._padded_shape(rows)[1] for rows in mine)

    def _padded_shape(self, rows: np.ndarray) -> tuple[int, int]:
        return len(rows), self._pad_to or int(self._lengths[rows].max())

    def _pad(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        shape = self._padded_shape(rows)
        columns = {
            "input_ids": np.full(shape, self._pad_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
        }
        if self._encoded.type_ids is not None:
            columns["token_type_ids"] = np.zeros(shape, dtype=np.int64)
        for place, row in enumerate(rows):
            n_tokens = self._lengths[row]
            columns["input_ids"][place, :n_tokens] = self._encoded.input_ids[row]
            columns["attention_mask"][place, :n_tokens] = 1
            if self._encoded.type_ids is not None:
                columns["token_type_ids"][place, :n_tokens] = self._encoded.type_ids[row]
        return {name: torch.from_numpy(column) for name, column in columns.items()}


def in_row_order(parts: Sequence[np.ndarray], ids: Sequence[np.ndarray]) -> np.ndarray:
    """What was computed batch by batch as one array, in the order of ascending row ids.

    :param parts: of each batch, shape (batch, ...).
    :param ids: of each batch, shape (batch,).
    :return: shape (rows, ...).
    :raises DataError: no rows.
    """
    if not ids:
        raise DataError("there are no rows to measure on; check the data files")
    return np.concatenate(parts)[np.argsort(np.concatenate(ids), kind="stable")]
