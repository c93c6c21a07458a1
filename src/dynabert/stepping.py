"""What a step of every training loop has: its random numbers, its learning rate, its optimizer and the clipping."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dynabert.seeds import derive_seed


def learning_rate(step: int, *, n_steps: int, peak: float, warmup: float = 0.0) -> float:
    """Linear warm-up, then linear decay to zero: a function of the step alone.

    :param step: from 0.
    :param n_steps: of the whole training.
    :param peak: the highest rate.
    :param warmup: share of the steps over which it rises.
    """
    warm = round(warmup * n_steps)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (n_steps - step) / (n_steps - warm)


def clip(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Clip the gradient of some weights together; the norm before. Most of the time nothing has to be multiplied."""
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    total = nn.utils.get_total_norm([parameter.grad for parameter in learning if parameter.grad is not None])
    if not total <= limit:
        nn.utils.clip_grads_with_norm_(learning, limit, total)
    return float(total)


def adamw(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """The optimizer of all training, with its usual betas and epsilon."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def take(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One step of an optimizer at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """A block whose random numbers are a function of what they are for; the generators are then as they were before.

    :param device: where they are drawn.
    :param parts: what they are for, see `derive_seed`.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(*parts))
        yield
