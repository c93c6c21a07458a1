"""Which rows make each training step: a pure function of (seed, step), the same on every rank. No torch.

A step's rows are dealt out to its *parts*: one for each micro-batch of each rank. Rows of similar length stand together
in a step, and part v takes every parts-th of them from the v-th on, so that all parts have nearly the same work.
"""

import numpy as np

from dynabert.errors import SettingError
from dynabert.seeds import permutation

POOL = 50
"""Steps whose rows are sorted by length together: large enough to fill them evenly, small enough to stay random."""


class Steps:
    """The rows of every step, over all epochs. Each row comes once in each epoch, and no part is ever without rows.

    With `batch_size` a step takes that many rows; those left over at the end of an epoch make a smaller step, or join
    another one where they are fewer than the parts.

    With `max_tokens` a step takes as many rows as fit: no part of it has more than that many tokens, padding included.
    How many steps an epoch has then depends on how its rows fall; epochs are planned in order, so that each has its
    own length and still begins where the one before ends.

    :param lengths: tokens of each row, shape (rows,).
    :param parts: micro-batches that a step is dealt out to, over all ranks.
    :param seed: of the order.
    :param shuffle: a new order for each epoch; False: always the same, longest rows first.
    :raises SettingError: sizes that do not fit the rows or each other.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        parts: int,
        seed: int,
        shuffle: bool = True,
        batch_size: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        _check(lengths, parts, batch_size, max_tokens)
        self._lengths, self._parts, self._seed, self._shuffle = lengths, parts, seed, shuffle
        self._batch_size, self._max_tokens = batch_size, max_tokens
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])
        self._n_steps: list[int] = []  # of each epoch that has been planned

    def __len__(self) -> int:
        """Steps of the first epoch; with `max_tokens` a later one may have a few more or fewer."""
        return self._length_of(0)

    def rows(self, step: int) -> list[np.ndarray]:
        """The rows of one step, by part.

        :param step: from 0, counted on over the epochs.
        :return: for each part the places of its rows, int64.
        :raises SettingError: a step below 0.
        """
        if step < 0:
            raise SettingError(f"step {step} is below 0; steps count from 0")
        epoch, place = divmod(step, len(self))
        if self._shuffle and self._max_tokens is not None:
            epoch, place = 0, step
            while place >= self._length_of(epoch):
                place -= self._length_of(epoch)
                epoch += 1
        rows = self._epoch(epoch)[place]
        return [rows[part :: self._parts] for part in range(self._parts)]

    def _length_of(self, epoch: int) -> int:
        while len(self._n_steps) <= epoch:
            self._n_steps.append(len(self._epoch(len(self._n_steps))))
        return self._n_steps[epoch]

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """The rows of each step of one epoch; the last epoch asked for is kept."""
        kept, plan = self._plan
        key = epoch if self._shuffle else 0
        if kept != key:
            plan = self._shuffled(key) if self._shuffle else self._cut(np.argsort(-self._lengths, kind="stable"))
            self._plan = (key, plan)
        return plan

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        order = permutation(len(self._lengths), self._seed, "rows", epoch)
        pool_size = POOL * self._usual_rows()
        pools = [order[start : start + pool_size] for start in range(0, len(order), pool_size)]
        sorted_pools = [pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools]
        if self._max_tokens is not None:  # up, then down: where a step reaches over two pools, lengths do not jump
            sorted_pools = [pool[:: -1 if number % 2 else 1] for number, pool in enumerate(sorted_pools)]
        steps = self._cut(np.concatenate(sorted_pools))
        return [steps[i] for i in permutation(len(steps), self._seed, "steps", epoch)]

    def _usual_rows(self) -> int:
        if self._batch_size is not None:
            return self._batch_size
        assert self._max_tokens is not None, "checked on construction"
        return max(1, int(self._parts * self._max_tokens / self._lengths.mean()))

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        if self._batch_size is not None:
            starts = self._starts_by_rows(len(rows), self._batch_size)
        else:
            starts = self._starts_by_tokens(rows)
        return np.split(rows, starts[1:])

    def _starts_by_rows(self, n_rows: int, batch_size: int) -> list[int]:
        starts = list(range(0, n_rows, batch_size))
        return starts if n_rows - starts[-1] >= self._parts else starts[:1] + starts[1:-1]

    def _starts_by_tokens(self, rows: np.ndarray) -> list[int]:
        """Where each step begins: it goes on while its largest part, padded to its longest row, has room."""
        assert self._max_tokens is not None, "checked on construction"
        starts, longest = [0], 0
        for place, length in enumerate(self._lengths[rows].tolist()):
            longest = max(longest, length)
            if -(-(place + 1 - starts[-1]) // self._parts) * longest > self._max_tokens:
                starts.append(place)
                longest = length
        left = len(rows) - starts[-1]
        if left < self._parts and len(starts) > 1:
            if len(rows) - starts[-2] >= 2 * self._parts:
                starts[-1] = len(rows) - self._parts  # one row for each part: it fits, as every row does
            else:
                starts.pop()  # at most two rows for each part, which fit too
        return starts


def _check(lengths: np.ndarray, parts: int, batch_size: int | None, max_tokens: int | None) -> None:
    if (batch_size is None) == (max_tokens is None):
        raise SettingError("give batch_size or max_tokens, one of them; batch_size 32 is usual")
    if batch_size is not None and batch_size < 1:
        raise SettingError(f"batch size {batch_size} is below 1; 32 is usual")
    if len(lengths) < parts:
        raise SettingError(f"{parts} micro-batches a step do not fit {len(lengths)} rows; give each at least one row")
    if batch_size is not None and batch_size < parts:
        raise SettingError(
            f"batch size {batch_size} is below the {parts} micro-batches of a step (processes x accumulate); "
            "raise it, or use fewer"
        )
    longest = int(lengths.max())
    needed = longest * min(2, parts)
    if max_tokens is not None and max_tokens < needed:
        raise SettingError(
            f"max_tokens {max_tokens} is too few for rows of up to {longest} tokens; give at least {needed}"
        )
