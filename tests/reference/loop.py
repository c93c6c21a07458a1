"""A plain, slow reference of the training loop, to compare the fast one with.

It is written from the paper and shares no code with what it checks: every Subnet is a real small network, filled anew
in each step with copies of the leading rows and columns; gradients come from plain autograd and are added back to the
full network by index; losses are spelled out in loops. Of dynabert it uses only the names of Subnets and the seeds; it
reads the same random numbers in the same order, so that both drop the same elements.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from dynabert.seeds import derive_seed
from dynabert.subnet import Subnet

HEAD_ROWS = ("attention.self.query", "attention.self.key", "attention.self.value")
HEAD_COLUMNS = ("attention.output.dense",)
NEURON_ROWS = ("intermediate.dense",)
NEURON_COLUMNS = ("output.dense",)


@dataclass(frozen=True)
class Plan:
    """What a reference stage does.

    :param subnets: (width, depth) of each student of a step, in order, by step.
    :param weights: (logits, hidden, embeddings, labels).
    :param published: the sums of the published code, or the averages that repair it.
    """

    stage: str
    n_steps: int
    subnets: Callable[[int], list[tuple[float, float]]]
    weights: tuple[float, float, float, float]
    matching_teacher_width: bool
    published: bool
    lr: float
    clip: float = 1.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    seed: int = 42


@dataclass
class Record:
    """What one step did: the terms of each student by name, the norm before clipping, and the weights after it."""

    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    norm: float = 0.0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def drop(features: torch.Tensor, rate: float) -> torch.Tensor:
    """Dropout: one 64-bit number decides over four elements, the lower 15 bits of each quarter over one."""
    if rate == 0:
        return features
    numbers = torch.empty(math.ceil(features.numel() / 4), dtype=torch.int64).random_()
    quarters = torch.stack([(numbers >> shift) & 0x7FFF for shift in (0, 16, 32, 48)], dim=1)
    fates = quarters.flatten()[: features.numel()].view(features.shape)
    threshold = round(rate * 0x8000)
    return torch.where(fates >= threshold, features / (1 - threshold / 0x8000), 0.0)


class Dropout(nn.Module):
    """`drop` in training mode, nothing in eval mode. `p`: the rate, which the attention modules read."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return drop(features, self.p) if self.training else features


def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=1.0, **_):
    """Softmax of the scaled products, padding left out, with `drop` on the probabilities."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -math.inf)
    probabilities = drop(torch.softmax(scores, dim=-1), dropout)
    return torch.einsum("bhqk,bhkd->bqhd", probabilities, value), None


AttentionInterface.register("reference", attention)
AttentionMaskInterface.register("reference", sdpa_mask)


def kept_by_depth(depth: float, n_layers: int) -> list[int]:
    """The layers that the published code executes."""
    return [math.floor(i / depth) for i in range(round(n_layers * depth))]


def build_cut(full: nn.Module, width: float, depth: float) -> tuple[nn.Module, dict[str, str]]:
    """A real small network of the shapes of a Subnet, not yet filled with weights.

    :return: the network, and for each parameter its name in the full one.
    """
    config = full.config
    n_heads = round(config.num_attention_heads * width)
    head_dim = config.hidden_size // config.num_attention_heads
    attended, neurons = n_heads * head_dim, config.intermediate_size * n_heads // config.num_attention_heads
    layers = kept_by_depth(depth, config.num_hidden_layers)
    small = copy.deepcopy(full)
    small.zero_grad()
    small.set_attn_implementation("reference")
    for path, module in list(small.named_modules()):
        if isinstance(module, nn.Dropout):
            small.set_submodule(path, Dropout(module.p))
    small.base_model.encoder.layer = nn.ModuleList([small.base_model.encoder.layer[index] for index in layers])
    for layer in small.base_model.encoder.layer:
        for path in HEAD_ROWS:
            shrink(layer, path, rows=attended)
        for path in HEAD_COLUMNS:
            shrink(layer, path, columns=attended)
        for path in NEURON_ROWS:
            shrink(layer, path, rows=neurons)
        for path in NEURON_COLUMNS:
            shrink(layer, path, columns=neurons)
    return small, {name: name_in_full(name, layers) for name, _ in small.named_parameters()}


def shrink(layer: nn.Module, path: str, *, rows: int | None = None, columns: int | None = None) -> None:
    """Put a small linear with its own weights in the place of a large one."""
    parent_path, _, last = path.rpartition(".")
    parent = layer.get_submodule(parent_path)
    old = getattr(parent, last)
    setattr(parent, last, nn.Linear(columns or old.in_features, rows or old.out_features, dtype=old.weight.dtype))


def leading_part(large: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """The rows and columns of a large tensor that a small one was copied from: the first ones."""
    if small.ndim == 1:
        return large[: small.shape[0]]
    return large[: small.shape[0], : small.shape[1]]


@torch.no_grad()
def fill(small: nn.Module, origin: dict[str, str], masters: dict[str, nn.Parameter]) -> None:
    """Copy the weights of the full network into a small one, which forgets its gradients."""
    for name, parameter in small.named_parameters():
        parameter.copy_(leading_part(masters[origin[name]], parameter))
        parameter.grad = None


def name_in_full(name: str, layers: list[int]) -> str:
    """The name that a parameter of the small network has in the full one."""
    words = name.split(".")
    if "layer" in words:
        place = words.index("layer") + 1
        words[place] = str(layers[int(words[place])])
    return ".".join(words)


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """SCE(student, teacher), the mean over the examples."""
    total = student.new_zeros(())
    for row in range(student.shape[0]):
        normalizer = torch.logsumexp(student[row], dim=0)
        target = torch.exp(teacher[row]) / torch.exp(teacher[row]).sum()
        for label in range(student.shape[1]):
            total = total - target[label] * (student[row, label] - normalizer)
    return total / student.shape[0]


def score_error(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of one score for each example."""
    total = student.new_zeros(())
    for row in range(student.shape[0]):
        total = total + (student[row, 0] - target[row]) ** 2
    return total / student.shape[0]


def state_error(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, published: bool) -> torch.Tensor:
    """MSE over all elements as published, or over the elements of real tokens."""
    total, count = student.new_zeros(()), 0
    for row in range(student.shape[0]):
        n_tokens = student.shape[1] if published else int(mask[row].sum())  # padding is on the right
        total = total + ((student[row, :n_tokens] - teacher[row, :n_tokens]) ** 2).sum()
        count += n_tokens * student.shape[2]
    return total / count


def hard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, or the squared error of a regression."""
    if logits.shape[1] == 1:
        return score_error(logits, labels)
    total = logits.new_zeros(())
    for row in range(logits.shape[0]):
        total = total + torch.logsumexp(logits[row], dim=0) - logits[row, labels[row]]
    return total / logits.shape[0]


def terms_of(student, teacher, batch, plan: Plan, depth: float, n_layers: int) -> dict[str, torch.Tensor]:
    """The unweighted loss terms of one student."""
    logits, hidden, embeddings, labels = plan.weights
    mask = batch.inputs["attention_mask"]
    terms = {}
    regression = student.logits.shape[1] == 1
    if logits and not regression:
        terms["logits"] = soft_cross_entropy(student.logits, teacher.logits)
    if logits and regression and not plan.published:
        terms["logits"] = score_error(student.logits, teacher.logits[:, 0])
    if embeddings:
        terms["embeddings"] = state_error(student.hidden_states[0], teacher.hidden_states[0], mask, plan.published)
    if hidden:
        # The input of each kept layer learns from the teacher's input of that layer, the last output from the last.
        kept = kept_by_depth(depth, n_layers)
        pairs = [(place, kept[place]) for place in range(1, len(kept))] + [(len(kept), n_layers)]
        errors = [
            state_error(student.hidden_states[mine], teacher.hidden_states[theirs], mask, plan.published)
            for mine, theirs in pairs
        ]
        terms["hidden"] = sum(errors[1:], errors[0]) / (1 if plan.published else len(errors))
    if labels:
        terms["labels"] = hard_loss(student.logits, batch.labels)
    return terms


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up from one share of the peak, then linear decay to zero after the last step."""
    warm = round(plan.warmup * plan.n_steps)
    if step < warm:
        return plan.lr * (step + 1) / warm
    return plan.lr * (plan.n_steps - step) / (plan.n_steps - warm)


def run_stage(model: nn.Module, teacher: nn.Module | None, batches: list, plan: Plan) -> Iterator[Record]:
    """Train a stock model in place through one stage, and tell after each step what it did.

    :param model: stock, full size.
    :param teacher: stock, full size, never changed; None where only labels are learned from.
    :param batches: one for each step.
    """
    masters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        masters.values(), lr=plan.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=plan.weight_decay
    )
    n_layers = model.config.num_hidden_layers
    tutors, students = {}, {}
    for step in range(plan.n_steps):
        record, subnets = Record(), plan.subnets(step)
        for parameter in masters.values():
            parameter.grad = torch.zeros_like(parameter)
        for width, depth in subnets:
            target = None
            if teacher is not None:
                tutor_width = width if plan.matching_teacher_width else 1.0
                if tutor_width not in tutors:
                    tutor, origin = build_cut(teacher, tutor_width, 1.0)
                    fill(tutor, origin, dict(teacher.named_parameters()))
                    tutors[tutor_width] = tutor.eval()
                with torch.no_grad():
                    target = tutors[tutor_width](**batches[step].inputs, output_hidden_states=True)
            if (width, depth) not in students:
                students[width, depth] = build_cut(model, width, depth)
            student, origin = students[width, depth]
            fill(student, origin, masters)
            name = Subnet(width, depth).name
            torch.manual_seed(derive_seed(plan.seed, "dropout", plan.stage, step, name))
            output = student.train()(**batches[step].inputs, output_hidden_states=True)
            terms = terms_of(output, target, batches[step], plan, depth, n_layers)
            weights = dict(zip(("logits", "hidden", "embeddings", "labels"), plan.weights, strict=True))
            loss = sum(weights[term] * value for term, value in terms.items())
            (loss if plan.published else loss / len(subnets)).backward()
            add_gradients(student, origin, masters)
            record.losses[name] = {term: value.item() for term, value in terms.items()}
        record.norm = clip(masters.values(), plan.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        optimizer.step()
        record.weights = {name: parameter.detach().clone() for name, parameter in masters.items()}
        yield record


def add_gradients(small: nn.Module, origin: dict[str, str], masters: dict[str, nn.Parameter]) -> None:
    """Add the gradients of a small network to those of the rows and columns that it was copied from."""
    for name, parameter in small.named_parameters():
        if parameter.grad is not None:
            leading_part(masters[origin[name]].grad, parameter).add_(parameter.grad)


def clip(parameters, largest: float) -> float:
    """Scale all gradients together down to a norm; return the norm before."""
    parameters = list(parameters)
    norm = math.sqrt(sum(float((parameter.grad.double() ** 2).sum()) for parameter in parameters))
    if norm > largest:
        for parameter in parameters:
            parameter.grad *= largest / (norm + 1e-6)
    return norm
