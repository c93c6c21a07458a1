"""PyTorch, eager or compiled: a Hugging Face folder."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from dynabert.engines import UNCALIBRATED, Example, Inputs, Int8, Options
from dynabert.loading import load, save_model
from dynabert.precision import has_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPILATIONS = 256
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchSession:
    """A model of PyTorch.

    :param run: the model, or what it was compiled to.
    :param n_threads: of a call; PyTorch has one number for the whole process, which is as before after each call.
    """

    def __init__(self, run: Callable[..., Any], *, n_threads: int) -> None:
        self.run, self.n_threads = run, n_threads
        self.n_fused: int | None = None

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Logits in float32, shape (batch, n_labels)."""
        before = torch.get_num_threads()
        if before != self.n_threads:
            torch.set_num_threads(self.n_threads)
        try:
            with torch.inference_mode():
                logits = self.run(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits
            return logits.float().numpy()
        finally:
            if before != self.n_threads:
                torch.set_num_threads(before)


class TorchEngine:
    """PyTorch as it stands."""

    _before_running: tuple[str, ...] = ()  # lines of an example
    version = torch.__version__

    def write(self, model: "PreTrainedModel", folder: Path, *, dtype: str, int8: Int8 = UNCALIBRATED) -> None:
        """Write the model; of its weights only fp32 is written, so that nothing is lost."""
        save_model(model, folder / "model")

    def open(self, folder: Path, *, dtype: str, n_threads: int) -> TorchSession:
        """Load the model and convert it."""
        model = load(folder / "model", head=None).eval()
        model.to(_TYPES[dtype])
        return TorchSession(self._ready(model), n_threads=n_threads)

    def options(self, *, dtype: str, n_threads: int) -> Options:
        """The type of weights and products, and the threads."""
        return {"dtype": str(_TYPES[dtype]), "num_threads": n_threads}

    def has(self, dtype: str) -> bool:
        """Without instructions for bf16 it is emulated, slowly."""
        return dtype != "bf16" or has_bf16("cpu")

    def example(self, file: str, *, dtype: str, n_threads: int) -> Example:
        """Load the folder with transformers; one with fewer heads brings its own code."""
        lines = (
            f"torch.set_num_threads({n_threads})",
            'model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/model", trust_remote_code=True)',
            f"model = model.to({_TYPES[dtype]}).eval()",
            *self._before_running,
            "with torch.inference_mode():",
            "    logits = model(**{name: torch.from_numpy(rows) for name, rows in inputs.items()}).logits",
            "logits = logits.float().numpy()",
        )
        imports = ("import torch", "from transformers import AutoModelForSequenceClassification")
        return Example(("torch", "transformers"), imports, lines)

    def _ready(self, model: "PreTrainedModel") -> Callable[..., Any]:
        return model


class CompiledTorchEngine(TorchEngine):
    """PyTorch through torch.compile, with lengths and batch sizes left open.

    All sizes are one class, whose forward TorchDynamo compiles anew for each; after eight it would silently run the
    others as they stand. So the limit is far away, and reaching it is an error.
    """

    _before_running = ("model = torch.compile(model, dynamic=True)",)

    def _ready(self, model: "PreTrainedModel") -> Callable[..., Any]:
        logging.getLogger("torch._inductor").setLevel(logging.ERROR)
        compiled = torch.compile(model, dynamic=True)
        patched = torch._dynamo.config.patch(recompile_limit=_COMPILATIONS, fail_on_recompile_limit_hit=True)
        return cast(Callable[..., Any], patched(compiled))
