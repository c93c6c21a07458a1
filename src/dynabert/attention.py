"""Dropout and attention of the training views on a CPU.

A stock dropout draws one random number for each element, one at a time; on a CPU that alone is a fifth of a training
step of long rows, and it keeps attention out of its fused kernel, whose replacement is slower still. Here one 64-bit
random number decides over four elements, and attention with dropout is four plain products and a softmax, in the
precision of its inputs. Everything is drawn from torch's default generator, so `torch.manual_seed` repeats it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "dynabert_training"
"""The name under which the attention is registered with transformers; views have it in their configuration."""

_LEVELS = 1 << 15
"""Dropout rates are multiples of 1 / 32768: each element is decided by 15 of the 64 bits."""
_ONE = 0x3F80
"""The bits of 1.0 in bfloat16."""


def kept_share(rate: float) -> float:
    """The share of elements that `keep_mask` really keeps: 1 - rate, in steps of 1 / 32768."""
    return 1 - round(rate * _LEVELS) / _LEVELS


def keep_mask(shape: torch.Size, rate: float) -> Tensor:
    """Ones where an element stays and zeros where it is dropped, each drawn for itself.

    :param shape: of the mask.
    :param rate: share of zeros, in [0, 1).
    :return: bfloat16, on the CPU; products with it have the type of the other factor.
    """
    n = shape.numel()
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_().view(torch.int16)[:n]
    # Of each 16 bits the upper one is not random everywhere (random_ gives 63). Without it, the sign of (rate - bits)
    # says who stays: shifted over all bits it selects the bits of 1.0 or none.
    bits.bitwise_and_(_LEVELS - 1).neg_().add_(round(rate * _LEVELS) - 1).bitwise_right_shift_(15).bitwise_and_(_ONE)
    return bits.view(torch.bfloat16).view(shape)


class TrainingDropout(nn.Module):
    """Dropout by `keep_mask`; does nothing in eval mode.

    :param p: share of elements that become zero; the others grow so that the mean stays. Named as in `nn.Dropout`,
        because the attention modules of transformers read it there.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, features: Tensor) -> Tensor:
        """Drop elements of a tensor of any shape."""
        if not self.training or self.p == 0:
            return features
        share = kept_share(self.p)
        return features * keep_mask(features.shape, self.p) * (1 / share if share else 0.0)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,  # noqa: ANN401 (what transformers hands to every attention function)
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, with dropout by `keep_mask`.

    :param query: (batch, heads, seq, head_dim); key and value likewise.
    :param attention_mask: added to the scores, (batch, 1, 1, seq), as `padding_mask` makes it; None without padding.
    :param dropout: rate of the attention probabilities.
    :param scaling: of the scores; 1 / sqrt(head_dim) by default.
    :return: (batch, seq, heads, head_dim), and no probabilities.
    """
    if dropout == 0 and query.dtype != torch.bfloat16:
        # The stock kernel, so that a full view in fp32 computes bit for bit what the stock model does.
        mask = None if attention_mask is None else attention_mask.to(query.dtype)
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=False)
    scores = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    probabilities = scores.softmax(-1)
    if dropout:
        probabilities = probabilities * keep_mask(probabilities.shape, dropout)
        share = kept_share(dropout)
        value = value * (1 / share if share else 0.0)
    return (probabilities @ value).transpose(1, 2), None


def padding_mask(*, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:  # noqa: ANN401
    """What `attention` adds to its scores: the lowest number where a key is padding.

    :param attention_mask: (batch, seq), True for tokens; None for no padding.
    :return: (batch, 1, 1, seq), or None where there is no padding at all.
    """
    if attention_mask is None or bool(attention_mask.all()):
        return None
    lowest = torch.finfo(torch.bfloat16).min
    return torch.zeros(attention_mask.shape).masked_fill_(~attention_mask, lowest)[:, None, None, :]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, padding_mask)
