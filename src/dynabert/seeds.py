"""Randomness by counter: every random choice comes from a hash of what it is for, so no state has to be saved."""

from hashlib import blake2b

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A seed for one purpose, the same in every process and on every machine.

    :param parts: what the randomness is for, for instance ``derive_seed(seed, "dropout", step, subnet.name)``. The
        order counts, and ``1`` differs from ``"1"``.
    :return: an integer in [0, 2^63).
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        kind, text = ("s", part) if isinstance(part, str) else ("i", str(int(part)))
        data = text.encode()
        digest.update(f"{kind}{len(data)}:".encode() + data)
    return int.from_bytes(digest.digest(), "big") >> 1


def permutation(n: int, *parts: int | str) -> np.ndarray:
    """A random order of 0 .. n - 1.

    It sorts the raw output of a bit generator, which numpy keeps stable over its versions (its shuffle is not).

    :param n: how many.
    :param parts: what the order is for, see `derive_seed`.
    :return: int64, shape (n,).
    """
    raw = np.random.PCG64(derive_seed(*parts)).random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64)
