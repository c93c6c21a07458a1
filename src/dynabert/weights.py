"""Match the tensors of a checkpoint with those of a model: each one named, measured, and only then read."""

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dynabert.errors import ModelFileError
from dynabert.files import storage_errors
from dynabert.model_files import MIB, one_line
from dynabert.slicing import Ranges

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("dynabert")

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ENCODER = ("embeddings.", "encoder.")
_BASE = (*_ENCODER, "pooler.")
_MOST_SPREAD = 10.0
_BUFFERS = ("position_ids", "token_type_ids")
_CHUNK_BYTES = 4 * MIB


class _Scratch:
    """Memory that all tensors of a checkpoint are read through, one after the other.

    Scratch of its own for each tensor would leave holes between the tensors that are kept, of a third of their size.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def of(self, n_bytes: int) -> Tensor:
        """So many bytes, whose content lasts until the next call."""
        if n_bytes > len(self._bytes):
            self._bytes = torch.empty(max(n_bytes, _CHUNK_BYTES), dtype=torch.uint8)
        return self._bytes[:n_bytes]


@dataclass(frozen=True)
class _File:
    """A weight file.

    :param file: it, open for reading, unbuffered.
    """

    path: Path
    file: BinaryIO
    scratch: _Scratch

    def rows(self, name: str, start: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Numbers that lie behind each other, valid until any tensor of the checkpoint is read.

        :param name: of the tensor, for messages.
        :param start: where they begin, in bytes.
        :raises ModelFileError: the file ends before they do.
        :raises StorageError: an I/O error.
        """
        scratch = self.scratch.of(prod(shape) * dtype.itemsize)
        rest = scratch.numpy().data
        with storage_errors(self.path):
            while rest:
                n_read = os.preadv(self.file.fileno(), [rest], start)
                if not n_read:
                    raise ModelFileError(f"{self.path} ends within {name!r:.120}; use another copy of it")
                rest, start = rest[n_read:], start + n_read
        return scratch.view(dtype).view(shape)


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint, or the ranges of it that are wanted, not yet read.

    :param name: its own name, of which messages speak.
    :param file: that it lies in.
    :param full: its sizes in the file.
    :param dtype: its safetensors type.
    :param start: where its numbers begin, in bytes.
    :param ranges: for each of the leading axes, two at most, what is wanted; the rest is wanted whole.
    """

    name: str
    file: _File
    full: tuple[int, ...]
    dtype: str
    start: int
    ranges: tuple[Ranges, ...] = ()

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of what is wanted."""
        kept = tuple(sum(part.stop - part.start for part in parts) for parts in self.ranges)
        return kept + self.full[len(kept) :]

    def read(self) -> Tensor:
        """A copy of its own in float32; the file can change or go afterwards.

        Only the rows that are wanted are read, a few megabytes at a time into memory that is used again: mapping the
        file instead would count every page that was touched as memory of this process.
        """
        if self.dtype not in _FLOATS:
            raise ModelFileError(
                f"{self.path}: {self.name!r:.120} holds {self.dtype} numbers; give the unquantised model"
            )
        wanted = torch.empty(self.shape, dtype=torch.float32)
        if not wanted.numel():
            return wanted
        rows, columns = self._as_matrix()
        width = prod(self.full[1:])
        matrix = wanted.view(-1, sum(part.stop - part.start for part in columns))
        dtype, written = _FLOATS[self.dtype], 0
        row_bytes = width * dtype.itemsize
        at_once = max(1, _CHUNK_BYTES // row_bytes)
        for part in rows:
            for first in range(part.start, part.stop, at_once):
                shape = (min(at_once, part.stop - first), width)
                chunk = self.file.rows(self.name, self.start + first * row_bytes, shape, dtype)
                target, column = matrix[written : written + len(chunk)], 0
                for kept in columns:
                    target[:, column : column + kept.stop - kept.start] = chunk[:, kept]
                    column += kept.stop - kept.start
                written += len(chunk)
        return wanted

    def _as_matrix(self) -> tuple[Ranges, Ranges]:
        """What is wanted of the tensor when all its axes but the first are laid side by side."""
        rows = self.ranges[0] if self.ranges else (slice(0, self.full[0] if self.full else 1),)
        columns = self.ranges[1] if len(self.ranges) > 1 else (slice(0, prod(self.full[1:])),)
        return rows, columns


@contextmanager
def open_weights(paths: Sequence[Path], prefix: str) -> Iterator[dict[str, Stored]]:
    """The tensors of safetensors files, by what they are in a model whatever its head.

    A key is a name inside the encoder without the prefix that task models put before it, or the full name of a tensor
    of the head; the old names gamma and beta of norms are weight and bias. One thread at a time may read them.

    :param paths: the files of one checkpoint.
    :param prefix: name of the encoder inside task models, ``bert``.
    :raises ModelFileError: a damaged file, or a tensor that is there twice.
    """
    with ExitStack() as stack:
        stored: dict[str, Stored] = {}
        scratch = _Scratch()
        for path in paths:
            for tensor in _tensors_of(path, stack, scratch):
                key = key_of(tensor.name, prefix)
                if key in stored:
                    raise ModelFileError(
                        f"{path}: {tensor.name!r:.120} is there twice; use another copy of the checkpoint"
                    )
                stored[key] = tensor
        yield stored


def _tensors_of(path: Path, stack: ExitStack, scratch: _Scratch) -> list[Stored]:
    """The tensors of one file, which stays open. The safetensors library checks the header; then it is read."""
    try:
        with safe_open(path, framework="pt"):
            opened = stack.enter_context(path.open("rb", buffering=0))
            n_header = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(n_header))
    except (SafetensorError, OSError, ValueError) as error:
        raise _not_safetensors(path, error) from error
    header.pop("__metadata__", None)
    file = _File(path, opened, scratch)
    return [
        Stored(name, file, tuple(about["shape"]), about["dtype"], 8 + n_header + about["data_offsets"][0])
        for name, about in header.items()
    ]


def key_of(name: str, prefix: str) -> str:
    """What a tensor is in a model whatever its head, see `open_weights`."""
    key = name.removeprefix(f"{prefix}.")
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if key.endswith(old):
            key = key.removesuffix(old) + new
    return key


def count_layers(stored: dict[str, Stored]) -> int:
    """How many encoder layers a checkpoint has tensors for."""
    numbers = (re.match(r"encoder\.layer\.(\d{1,9})\.", key) for key in stored)
    return len({match[1] for match in numbers if match})


def read_state(
    stored: dict[str, Stored],
    skeleton: "PreTrainedModel",
    *,
    where: Path,
    replaced: frozenset[str] = frozenset(),
    seed: int = 0,
) -> dict[str, Tensor]:
    """The whole state of a model: read from a checkpoint, and where that lacks the head or pooler, new.

    :param stored: from `open_weights`, without what must not be used.
    :param skeleton: the model on the meta device, which gives names and shapes.
    :param where: the folder, for messages.
    :param replaced: keys of the head to make new though the checkpoint has them.
    :param seed: of the numbers that new tensors start from.
    :return: float32 tensors by the names of the model, tied ones left out.
    :raises ModelFileError: an encoder tensor that is missing, left over or of another shape, or part of a head.
    """
    names, shapes = _named(skeleton)
    new = [key for key in names if key in replaced or key not in stored]
    check_state(stored, skeleton, where=where, replaced=replaced)
    if new:
        logger.info("%s has no fitting %s: random numbers of seed %d stand in", where, ", ".join(new), seed)
    generator = torch.Generator().manual_seed(seed)
    spread = skeleton.config.initializer_range
    if not 0 <= spread <= _MOST_SPREAD:
        raise ModelFileError(f"{where}: initializer_range {spread} in config.json is outside 0 to {_MOST_SPREAD}")
    made = {key: _new_tensor(key, shapes[key], spread, generator) for key in new}
    return {name: made[key] if key in made else stored[key].read() for key, name in names.items()}


def missing_head(stored: dict[str, Stored], skeleton: "PreTrainedModel") -> list[str]:
    """What a model has beside its encoder that a checkpoint lacks, by key.

    :param stored: from `open_weights`.
    :param skeleton: the model on the meta device, which gives names and shapes.
    """
    names, _ = _named(skeleton)
    own = f"{skeleton.base_model_prefix}."
    return [key for key, name in names.items() if not name.startswith(own) and key not in stored]


def check_state(
    stored: dict[str, Stored], skeleton: "PreTrainedModel", *, where: Path, replaced: frozenset[str] = frozenset()
) -> None:
    """Refuse a checkpoint that does not fit a model; for the parameters and errors see `read_state`."""
    _, shapes = _named(skeleton)
    _check_new({key for key in shapes if key not in stored} - replaced, shapes, where)
    for key, tensor in stored.items():
        if key not in shapes:
            _check_left_over(key, tensor)
        elif key not in replaced and tensor.shape != shapes[key]:
            raise ModelFileError(
                f"{tensor.path}: {tensor.name!r:.120} has shape {list(tensor.shape)}, not {list(shapes[key])} as its "
                f"config.json says; use another copy of the checkpoint"
            )


def _named(skeleton: "PreTrainedModel") -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Of each tensor of a model but the tied ones its name and its sizes, by key."""
    tensors, tied = skeleton.state_dict(), skeleton.all_tied_weights_keys
    names = {key_of(name, skeleton.base_model_prefix): name for name in tensors if name not in tied}
    return names, {key: tuple(tensors[name].shape) for key, name in names.items()}


def _check_new(new: set[str], shapes: dict[str, tuple[int, ...]], where: Path) -> None:
    """Refuse to make up a part of the encoder, or part of a head or pooler where the checkpoint has the rest."""
    has_head = any(key not in new and not key.startswith(_BASE) for key in shapes)
    for key in sorted(new):
        part = key.split(".")[0] + "."
        whole = all(other in new for other in shapes if other.startswith(part))
        if key.startswith(_ENCODER) or not whole or (part == "pooler." and has_head):
            raise ModelFileError(f"{where} lacks the tensor {key}; use another copy of the checkpoint")


def _check_left_over(key: str, tensor: Stored) -> None:
    """Refuse a checkpoint that computes something else: the encoder has a tensor that ours has no place for."""
    if key.startswith(_ENCODER) and not key.endswith(_BUFFERS):
        raise ModelFileError(
            f"{tensor.path}: {tensor.name!r:.120} has no place in the model that its config.json describes; "
            f"use another copy of the checkpoint"
        )


def _new_tensor(key: str, shape: tuple[int, ...], spread: float, generator: torch.Generator) -> Tensor:
    """The published initialisation: maps normal with deviation `spread`, biases 0, norms 1."""
    if len(shape) > 1:
        return torch.empty(shape).normal_(0.0, spread, generator=generator)
    return torch.zeros(shape) if key.endswith("bias") else torch.ones(shape)


def head_keys(stored: dict[str, Stored]) -> list[str]:
    """The keys that belong to a task head, not to the encoder or its pooler."""
    return [key for key in stored if not key.startswith(_BASE)]


def _not_safetensors(path: Path, error: Exception) -> ModelFileError:
    reason = one_line(error, 80)
    return ModelFileError(f"{path} is truncated or not a safetensors file ({reason}); use another copy of it")
