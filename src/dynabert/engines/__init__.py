"""What runs a small model where it is deployed: one small protocol, and the table of what speaks it.

An engine writes a model to files of its own form and opens such files as a `Session`, a function from token ids to
logits. All optional packages are imported by the engine that needs them, at its first use; what writing alone needs
(PyTorch, ONNX, quantisers) is imported by writing alone, so that a machine that only runs files does without.
"""

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from dynabert.errors import SettingError, one_of
from dynabert.sweep import ENGINE_DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = Mapping[str, np.ndarray]
"""Arrays of int64, shape (batch, seq): input_ids, attention_mask, and token_type_ids where the model has types."""


Options = dict[str, str | int]
"""What an engine is told when it opens a file, in the engine's own words."""

log = logging.getLogger("dynabert")


class Session(Protocol):
    """A model that is ready to run."""

    @property
    def n_fused(self) -> int | None:
        """Attention layers that the engine computes in one kernel; None where it does not say.

        Counting may need packages that running does not.
        """

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Logits in float32, shape (batch, n_labels)."""


class Example(NamedTuple):
    """Python that runs a file without dynabert.

    :param packages: to install, as pip is told them: names, with the versions that will do.
    :param imports: lines.
    :param lines: from ``folder``, and ``inputs`` (arrays by name, int64), to ``logits``, an array.
    """

    packages: tuple[str, ...]
    imports: tuple[str, ...]
    lines: tuple[str, ...]


class Int8(NamedTuple):
    """How weights and activations become int8; other types do not ask.

    :param calibration: inputs whose activations give the ranges of a static int8.
    :param unquantised: layers, counted among the executed ones, whose products stay in fp32.
    """

    calibration: Sequence[Inputs] = ()
    unquantised: Sequence[int] = ()


UNCALIBRATED = Int8()


class Engine(Protocol):
    """One way to run a model."""

    @property
    def version(self) -> str:
        """Of the package that runs the model."""

    def write(self, model: "PreTrainedModel", folder: Path, *, dtype: str, int8: Int8 = UNCALIBRATED) -> None:
        """Write a model to a folder in the engine's own form.

        :param model: with a task head, on the CPU, in evaluation mode; a view or a model of its own.
        :param folder: which exists; the engine's files go there.
        :param dtype: of the products, one of the engine's in `dynabert.sweep.ENGINE_DTYPES`.
        """

    def open(self, folder: Path, *, dtype: str, n_threads: int) -> Session:
        """Make what `write` wrote ready to run.

        :param dtype: it was written with.
        :param n_threads: that one call may use.
        """

    def options(self, *, dtype: str, n_threads: int) -> Options:
        """What the engine is told by `open`: with other options the same files may compute something else."""

    def has(self, dtype: str) -> bool:
        """Whether this machine computes in a type as it stands; where not, it is emulated, or silently another one."""

    def example(self, file: str, *, dtype: str, n_threads: int) -> Example:
        """How others do what `open` does.

        :param file: what is opened, relative to the folder that was written; ``.`` is the folder itself.
        """


_MODULES = {
    "openvino": ("openvino_engine", "OpenvinoEngine"),
    "onnxruntime": ("onnxruntime_engine", "OnnxruntimeEngine"),
    "torch": ("torch_engine", "TorchEngine"),
    "torch-compile": ("torch_engine", "CompiledTorchEngine"),
}


def engine_of(name: str, dtype: str) -> Engine:
    """The engine of a name.

    :param name: a key of `dynabert.sweep.ENGINE_DTYPES`.
    :param dtype: that it must have.
    :raises SettingError: an unknown name, a dtype that it does not have, or a package that is not installed.
    """
    if name not in _MODULES:
        raise SettingError(one_of("engine", name, _MODULES))
    if dtype not in ENGINE_DTYPES[name]:
        raise SettingError(one_of(f"dtype of {name}", dtype, ENGINE_DTYPES[name]))
    module, cls = _MODULES[name]
    with needing(name):
        engine: Engine = getattr(importlib.import_module(f"dynabert.engines.{module}"), cls)()
    return engine


def engine_here(engine: str, dtype: str) -> Engine:
    """`engine_of`, with a warning where this machine does not compute in the type as it stands."""
    found = engine_of(engine, dtype)
    if not found.has(dtype):
        log.warning(
            "this processor has no instructions for %s: %s computes it another way, so times and outputs differ from "
            "those on a processor that has",
            dtype,
            engine,
        )
    return found


def computing_engine(engine: str, dtype: str) -> Engine:
    """`engine_of`, for what is measured and checked: in the type itself, or not at all.

    :raises SettingError: this machine does not compute in the type as it stands.
    """
    found = engine_of(engine, dtype)
    if not found.has(dtype):
        raise SettingError(
            f"this processor has no instructions for {dtype}, so what {engine} computes in it cannot be measured or "
            f"checked here; do it on one that has, or take fp32 or int8"
        )
    return found


@contextmanager
def needing(engine: str) -> Iterator[None]:
    """Say what to install, where the imports of an engine fail.

    :param engine: its name, which is that of the extra.
    :raises SettingError: a package that is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise SettingError(f"engine {engine} needs {error.name}; run: pip install 'dynabert[{engine}]'") from error


def input_names(model: "PreTrainedModel") -> tuple[str, ...]:
    """What a model is called with: types of tokens only where there is more than one."""
    types = ("token_type_ids",) if getattr(model.config, "type_vocab_size", 1) > 1 else ()
    return ("input_ids", "attention_mask", *types)


def example_inputs(model: "PreTrainedModel") -> dict[str, np.ndarray]:
    """Two rows of some tokens to trace a model with, one of them padded."""
    ids = np.arange(3, 35, dtype=np.int64).reshape(2, 16)
    mask = np.ones_like(ids)
    mask[1, 9:] = 0
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: given[name] for name in input_names(model)}


def completed(inputs: Inputs, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The inputs of some names, with zeros for types of tokens that are not given."""
    ids = inputs["input_ids"]
    return {name: inputs[name] if name in inputs else np.zeros_like(ids) for name in names}


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without the warnings and notes of exporters: of branches that an encoder does not take, of calls of their own.

    :param loggers: names of those that speak only of errors meanwhile.
    """
    noisy = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
