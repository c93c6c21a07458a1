"""Views for training: matrix products in bf16, gradients added straight into the slices of fp32 masters.

A plain slice costs a full-size gradient in the backward of every Subnet, and autocast casts every weight again in every
forward. Here each step makes one low-precision copy of each weight, all views slice that copy, and the backward adds
into the active part of the master's gradient. Norms, residual sums, embeddings, pooler and task head stay in fp32.
"""

import logging
import platform
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynabert import attention
from dynabert.elastic import ElasticLinear, ElasticModel
from dynabert.errors import SettingError, one_of
from dynabert.processor import has_amx, has_vnni
from dynabert.subnet import Subnet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PRECISIONS: dict[str, torch.dtype | None] = {"bf16": torch.bfloat16, "fp32": None}
"""Data types of the matrix products, by name. The weights that are trained are fp32 in every case."""

AUTO = "auto"
"""Instead of a precision: bf16 where the device multiplies in it, else fp32."""

VIEWS_KEPT = 64
"""Views that a training loop keeps, the last used ones. A grid has fewer; random layers of a deep encoder far more."""

_LOWERED = "_dynabert_lowered"
"""Attribute of a tensor of features that keeps its conversion for as long as it lives itself."""

log = logging.getLogger("dynabert")


def has_bf16(device: "torch.device | str") -> bool:
    """Whether a device has instructions for products in bf16. Without them it emulates them, up to 80 times as slow."""
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        if platform.machine().lower() in ("x86_64", "amd64"):
            return bool(torch.cpu._is_avx512_bf16_supported())
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build of torch that cannot tell
        return False


def instructions() -> str:
    """What of this processor decides how fast it multiplies: the vectors that PyTorch uses, and their extensions."""
    extensions = {"vnni": has_vnni(), "bf16": has_bf16("cpu"), "amx": has_amx()}
    return " ".join([torch.backends.cpu.get_cpu_capability(), *(name for name, has in extensions.items() if has)])


def precision_on(device: "torch.device | str", wanted: str = AUTO) -> str:
    """The precision to compute in on a device.

    :param wanted: a name in `PRECISIONS`, which is taken, or `AUTO`.
    :raises SettingError: something else.
    """
    check_precision(wanted)
    if wanted != AUTO:
        return wanted
    return "bf16" if has_bf16(device) else "fp32"


def warn_if_emulated(precision: str, device: "torch.device | str") -> None:
    """Say it, once in a process, where a precision that was asked for will be slow."""
    if precision == "bf16" and not has_bf16(device):
        _warn_emulated(str(device))


@cache
def _warn_emulated(device: str) -> None:
    log.warning("this %s has no instructions for bf16: products take many times as long as in fp32", device)


def check_precision(precision: str) -> None:
    """Refuse what is no precision.

    :raises SettingError: neither in `PRECISIONS` nor `AUTO`.
    """
    if precision != AUTO and precision not in PRECISIONS:
        raise SettingError(one_of("precision", precision, (AUTO, *PRECISIONS)))


class _AddingLinear(torch.autograd.Function):
    """A linear map whose backward adds the weight's gradient into a slice of the master's, instead of returning it."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        features: Tensor,
        inputs: Tensor,
        master: Tensor,
        linear: "TrainingLinear",
    ) -> Tensor:
        weight, bias = linear.active(linear.low_weight, linear.low_bias)
        ctx.save_for_backward(inputs)
        ctx.linear, ctx.weight, ctx.input_dtype = linear, weight, features.dtype
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:  # noqa: ANN401
        (inputs,) = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        ctx.linear.add_gradient(rows, inputs.flatten(0, -2))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        # Flat rows: for (batch, seq, out) @ a slice, torch copies the slice once for every row of the batch.
        return (rows @ ctx.weight).to(ctx.input_dtype).view(inputs.shape), None, None, None


class TrainingLinear(ElasticLinear):
    """An `ElasticLinear` that multiplies a low-precision copy and adds its gradient into the master's slice.

    :param low_weight: copy of the full weight in the low precision, or None to multiply the master itself.
    :param low_bias: likewise.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        *,
        n_out: int,
        n_in: int,
        parts: int = 1,
        low_weight: Tensor | None = None,
        low_bias: Tensor | None = None,
    ) -> None:
        super().__init__(weight, bias, n_out=n_out, n_in=n_in, parts=parts)
        self.low_weight, self.low_bias = low_weight, low_bias

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out * parts) in the low precision."""
        return cast(Tensor, _AddingLinear.apply(features, self._lowered(features), self.weight, self))

    def _lowered(self, features: Tensor) -> Tensor:
        """The features in the low precision. Query, key and value have one input, which is converted once for them."""
        if self.low_weight is None or features.dtype == self.low_weight.dtype:
            return features.detach()
        version = None if features.is_inference() else features._version  # counts changes in place
        kept: tuple[int | None, Tensor] | None = getattr(features, _LOWERED, None)
        if kept is None or kept[0] != version:
            kept = (version, features.detach().to(self.low_weight.dtype))
            setattr(features, _LOWERED, kept)
        return kept[1]

    def add_gradient(self, grad: Tensor, inputs: Tensor) -> None:
        """Add the gradient of the active part into the masters' `.grad`.

        :param grad: of the outputs, shape (rows, n_out * parts).
        :param inputs: shape (rows, n_in).
        """
        if self.weight.requires_grad:
            _add_leading(_gradient_of(self.weight), grad.T @ inputs, self.parts)
        if self.bias is not None and self.bias.requires_grad:
            _add_leading(_gradient_of(self.bias), grad.sum(0), self.parts)  # summed in fp32, then rounded


class _AddingEmbedding(torch.autograd.Function):
    """A look-up whose backward adds into the rows that were used: a dense gradient is as large as the vocabulary."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: nn.Parameter, padding_idx: int | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(ids)
        ctx.master, ctx.padding_idx = weight, padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:  # noqa: ANN401
        (ids,) = ctx.saved_tensors
        rows, ids = grad.flatten(0, -2), ids.flatten()
        if ctx.padding_idx is not None:
            rows = rows.masked_fill((ids == ctx.padding_idx)[:, None], 0)
        _gradient_of(ctx.master).index_add_(0, ids, rows)
        return None, None, None


class TrainingEmbedding(nn.Module):
    """A look-up table that shares a Parameter and adds its gradient into the rows that were used."""

    def __init__(self, source: nn.Embedding) -> None:
        super().__init__()
        self.weight = source.weight
        self.padding_idx = source.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (batch, seq) to (batch, seq, hidden)."""
        if not self.weight.requires_grad:
            return F.embedding(ids, self.weight)
        return cast(Tensor, _AddingEmbedding.apply(ids, self.weight, self.padding_idx))


def _gradient_of(master: nn.Parameter) -> Tensor:
    if master.grad is None:
        master.grad = torch.zeros_like(master)
    return master.grad


def _add_leading(total: Tensor, part: Tensor, parts: int) -> None:
    """Add a part's gradient to where `leading` took the part from: the leading rows of every block, leading columns."""
    blocks = total.unflatten(0, (parts, -1))
    part = part.unflatten(0, (parts, -1))
    blocks[tuple(slice(size) for size in part.shape)].add_(part)


class TrainingViews:
    """The views of an `ElasticModel` that a training loop uses. Call `refresh` after each change of the weights.

    :param elastic: holds the fp32 masters; its Parameters get the gradients.
    :param precision: a name in `PRECISIONS`, or `AUTO`.
    :raises SettingError: an unknown precision.
    """

    def __init__(self, elastic: ElasticModel, *, precision: str = AUTO) -> None:
        self.precision = precision_on(elastic.model.device, precision)
        self.elastic = elastic
        self._views: dict[Subnet, PreTrainedModel] = {}
        self._low: dict[int, Tensor] = {}
        self._masters: list[Tensor] = []
        dtype = PRECISIONS[self.precision]
        if dtype is not None:
            self._copy_weights(dtype)

    def _copy_weights(self, dtype: torch.dtype) -> None:
        full = self.elastic.make_view(self.elastic.slices(Subnet()))
        for module in full.modules():
            if isinstance(module, ElasticLinear):
                for master in (module.weight, module.bias):
                    if master is not None and id(master) not in self._low:
                        self._low[id(master)] = master.detach().to(dtype)
                        self._masters.append(master.detach())

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the masters into the low-precision weights: once a step, after the optimizer."""
        if self._masters:
            torch._foreach_copy_(list(self._low.values()), self._masters)

    def at(self, subnet: Subnet) -> "PreTrainedModel":
        """The training view of a Subnet, cached. Set its mode with `.train()` or `.eval()` before use."""
        view = self._views.pop(subnet, None) or self._made(subnet)
        self._views[subnet] = view  # the last used one stands last
        if len(self._views) > VIEWS_KEPT:
            del self._views[next(iter(self._views))]
        return view

    def _made(self, subnet: Subnet) -> "PreTrainedModel":
        view = self.elastic.make_view(self.elastic.slices(subnet), linear=self._linear)
        on_cpu = self.elastic.model.device.type == "cpu"
        if on_cpu:
            view.set_attn_implementation(attention.NAME)
        elif self._low and view.config._attn_implementation == "eager":
            # Eager attention adds an fp32 mask to low-precision products and then cannot multiply the values.
            view.set_attn_implementation("sdpa")
        for name, module in list(view.named_modules()):
            if isinstance(module, nn.Embedding):
                view.set_submodule(name, TrainingEmbedding(module))
            elif type(module) is nn.Dropout and on_cpu:
                view.set_submodule(name, attention.TrainingDropout(module.p))
        return view

    def _linear(self, weight: nn.Parameter, bias: nn.Parameter | None, **sizes: int) -> TrainingLinear:
        low_weight = self._low.get(id(weight))
        low_bias = None if bias is None else self._low.get(id(bias))
        return TrainingLinear(weight, bias, low_weight=low_weight, low_bias=low_bias, **sizes)
