"""Match the tensors of a checkpoint with those of a model: each one named, measured, and only then read."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dynabert.errors import ModelFileError
from dynabert.model_files import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("dynabert")

_FLOATS = ("F64", "F32", "F16", "BF16")
_ENCODER = ("embeddings.", "encoder.")
_BASE = (*_ENCODER, "pooler.")
_MOST_SPREAD = 10.0
_BUFFERS = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint, not yet read: its own name, where it lies, its sizes and safetensors type."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: str
    file: Any

    def read(self) -> Tensor:
        """A copy of its own in float32; the file can change or go afterwards."""
        if self.dtype not in _FLOATS:
            raise ModelFileError(
                f"{self.path}: {self.name!r:.120} holds {self.dtype} numbers; give the unquantised model"
            )
        try:
            return self.file.get_tensor(self.name).to(torch.float32, copy=True)
        except SafetensorError as error:
            raise _not_safetensors(self.path, error) from error


@contextmanager
def open_weights(paths: Sequence[Path], prefix: str) -> Iterator[dict[str, Stored]]:
    """The tensors of safetensors files, by what they are in a model whatever its head.

    A key is a name inside the encoder without the prefix that task models put before it, or the full name of a tensor
    of the head; the old names gamma and beta of norms are weight and bias.

    :param paths: the files of one checkpoint.
    :param prefix: name of the encoder inside task models, ``bert``.
    :raises ModelFileError: a damaged file, or a tensor that is there twice.
    """
    with ExitStack() as stack:
        stored: dict[str, Stored] = {}
        for path in paths:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
                for name in file.keys():  # noqa: SIM118 (it is not a dict and cannot be iterated)
                    part = file.get_slice(name)
                    key = key_of(name, prefix)
                    if key in stored:
                        raise ModelFileError(
                            f"{path}: {name!r:.120} is there twice; use another copy of the checkpoint"
                        )
                    stored[key] = Stored(name, path, tuple(part.get_shape()), str(part.get_dtype()), file)
            except (SafetensorError, OSError) as error:
                raise _not_safetensors(path, error) from error
        yield stored


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
    tied = skeleton.all_tied_weights_keys
    names = {key_of(name, skeleton.base_model_prefix): name for name in skeleton.state_dict() if name not in tied}
    shapes = {key: tuple(skeleton.state_dict()[name].shape) for key, name in names.items()}
    new = [key for key in names if key in replaced or key not in stored]
    _check_new(set(new) - replaced, shapes, where)
    for key, tensor in stored.items():
        if key not in shapes:
            _check_left_over(key, tensor)
        elif key not in replaced and tensor.shape != shapes[key]:
            raise ModelFileError(
                f"{tensor.path}: {tensor.name!r:.120} has shape {list(tensor.shape)}, not {list(shapes[key])} as its "
                f"config.json says; use another copy of the checkpoint"
            )
    if new:
        logger.info("%s has no fitting %s: random numbers of seed %d stand in", where, ", ".join(new), seed)
    generator = torch.Generator().manual_seed(seed)
    spread = skeleton.config.initializer_range
    if not 0 <= spread <= _MOST_SPREAD:
        raise ModelFileError(f"{where}: initializer_range {spread} in config.json is outside 0 to {_MOST_SPREAD}")
    made = {key: _new_tensor(key, shapes[key], spread, generator) for key in new}
    return {name: made[key] if key in made else stored[key].read() for key, name in names.items()}


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
