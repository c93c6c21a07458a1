"""Token ids of rows, and batches of them that are a pure function of (seed, step, rank).

Padding is most of the cost of a batch of mixed lengths, so rows are sorted by length inside pools of many batches
before they are cut into batches, and each batch is padded to its own longest row. Nothing here has a state that a
resumed run would have to restore.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynabert.data import Rows
from dynabert.errors import DataError, SettingError
from dynabert.seeds import permutation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOL = 50
"""Batches whose rows are sorted by length together: large enough to fill them evenly, small enough to stay random."""

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
class Batch:
    """The rows of one step on one rank.

    :param inputs: int64 tensors of shape (batch, seq), ready for a model's forward: input_ids, attention_mask, and
        token_type_ids where the tokenizer makes them.
    :param labels: shape (batch,): int64 class numbers, or float32 scores; None where there are none.
    :param ids: int64, shape (batch,): the number of each row in its file.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, None if self.labels is None else self.labels.to(device), self.ids.to(device))


class Batches:
    """All batches of some rows, each a pure function of (seed, step, rank).

    Every row comes once in each epoch over all ranks together. A step takes ``batch_size * world`` rows, of which rank
    r takes every world-th from the r-th on, so N ranks of B rows see what one rank of N * B rows sees. The rows left
    over make a smaller batch. Only where they are fewer than the ranks do they join another batch, so that no rank is
    ever without rows.

    Iterating gives the steps of the first epoch.

    :param encoded: the rows.
    :param batch_size: rows of one step on one rank.
    :param seed: of the order.
    :param pad_id: the tokenizer's padding token.
    :param shuffle: a new order for each epoch, with rows of similar lengths together. False, to evaluate: always the
        same order, longest rows first, so that too little memory shows at once.
    :param rank: this process, from 0.
    :param world: how many processes there are.
    :param pad_to: pad to this many tokens instead of to the longest row of the batch (the published procedure).
    :raises SettingError: a size below 1, a rank outside the world, more ranks than rows, or a row longer than `pad_to`.
    :raises DataError: no rows.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_size: int,
        seed: int,
        pad_id: int,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        pad_to: int | None = None,
    ) -> None:
        if not len(encoded):
            raise DataError("there are no rows to make batches of; check the data files")
        if batch_size < 1:
            raise SettingError(f"batch size {batch_size} is below 1; 32 is usual")
        if not 0 <= rank < world <= len(encoded):
            raise SettingError(f"rank {rank} of {world} does not fit {len(encoded)} rows; give each rank at least one")
        self._encoded, self._seed, self._pad_id, self._shuffle = encoded, seed, pad_id, shuffle
        self._rank, self._world, self._pad_to = rank, world, pad_to
        self._lengths = np.array([len(tokens) for tokens in encoded.input_ids])
        if pad_to is not None and self._lengths.max() > pad_to:
            raise SettingError(f"pad_to {pad_to} is below the longest row, {self._lengths.max()} tokens; raise it")
        self._global_size = batch_size * world
        starts = np.arange(0, len(encoded), self._global_size)
        self._cuts = starts[1:] if len(encoded) - starts[-1] >= world else starts[1:-1]
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        """Steps in one epoch, the same on every rank."""
        return len(self._cuts) + 1

    def __iter__(self) -> Iterator[Batch]:
        return (self.at(step) for step in range(len(self)))

    def at(self, step: int) -> Batch:
        """The batch of one step.

        :param step: from 0, counted on over the epochs.
        :return: this rank's rows of it, padded on the right.
        :raises SettingError: a step below 0.
        """
        rows = self._rows(step)
        labels = self._encoded.labels
        return Batch(
            self._pad(rows),
            None if labels is None else torch.from_numpy(labels[rows]),
            torch.from_numpy(self._encoded.ids[rows]),
        )

    def shape(self, step: int) -> tuple[int, int]:
        """Rows and tokens, padding included, of the batch of one step, without making it."""
        return self._padded_shape(self._rows(step))

    def _rows(self, step: int) -> np.ndarray:
        if step < 0:
            raise SettingError(f"step {step} is below 0; steps count from 0")
        epoch, place = divmod(step, len(self))
        return self._epoch_plan(epoch)[place][self._rank :: self._world]

    def _padded_shape(self, rows: np.ndarray) -> tuple[int, int]:
        return len(rows), self._pad_to or int(self._lengths[rows].max())

    def _epoch_plan(self, epoch: int) -> list[np.ndarray]:
        """The rows of each step of one epoch, over all ranks; the last epoch asked for is kept."""
        kept, plan = self._plan
        key = epoch if self._shuffle else 0
        if kept != key:
            plan = self._shuffled_plan(key) if self._shuffle else self._sorted_plan()
            self._plan = (key, plan)
        return plan

    def _shuffled_plan(self, epoch: int) -> list[np.ndarray]:
        order = permutation(len(self._encoded), self._seed, "rows", epoch)
        pool_size = POOL * self._global_size
        pools = [order[start : start + pool_size] for start in range(0, len(order), pool_size)]
        by_length = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        steps = np.split(by_length, self._cuts)
        return [steps[i] for i in permutation(len(steps), self._seed, "steps", epoch)]

    def _sorted_plan(self) -> list[np.ndarray]:
        return np.split(np.argsort(-self._lengths, kind="stable"), self._cuts)

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
