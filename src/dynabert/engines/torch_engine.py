"""PyTorch, eager or compiled: a Hugging Face folder."""

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynabert.engines import Inputs
from dynabert.loading import load, save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# All models of a process share eight compiled forms, and what comes after those runs eagerly, unless each has its own.
# Older releases of PyTorch cannot do that.
_ALONE: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
)

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchSession:
    """A model of PyTorch.

    :param run: the model, or what it was compiled to.
    :param n_threads: of a call; PyTorch has one number for the whole process, set before each call.
    """

    def __init__(self, run: Callable[..., Any], *, n_threads: int) -> None:
        self.run, self.n_threads = run, n_threads
        self.n_fused: int | None = None

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Logits in float32, shape (batch, n_labels)."""
        if torch.get_num_threads() != self.n_threads:
            torch.set_num_threads(self.n_threads)
        with torch.inference_mode():
            logits = self.run(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits
        return logits.float().numpy()


class TorchEngine:
    """PyTorch as it stands."""

    version = torch.__version__

    def write(
        self,
        model: "PreTrainedModel",
        folder: Path,
        *,
        dtype: str,
        calibration: Sequence[Inputs] = (),
        unquantised: Sequence[int] = (),
    ) -> None:
        """Write the model; of its weights only fp32 is written, so that nothing is lost."""
        save_model(model, folder / "model")

    def open(self, folder: Path, *, dtype: str, n_threads: int) -> TorchSession:
        """Load the model and convert it."""
        model = load(folder / "model", head=None).eval()
        model.to(_TYPES[dtype])
        return TorchSession(self._ready(model), n_threads=n_threads)

    def _ready(self, model: "PreTrainedModel") -> Callable[..., Any]:
        return model


class CompiledTorchEngine(TorchEngine):
    """PyTorch through torch.compile, with lengths and batch sizes left open."""

    def _ready(self, model: "PreTrainedModel") -> Callable[..., Any]:
        logging.getLogger("torch._inductor").setLevel(logging.ERROR)
        return torch.compile(model, dynamic=True, **_ALONE)
