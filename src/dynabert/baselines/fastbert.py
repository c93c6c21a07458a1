"""FastBERT (Liu et al., ACL 2020): early exit at student heads that learn from the task head of the last layer.

Its first stage is ordinary fine-tuning, so it starts from the given teacher; the second is self-distillation on the
frozen network and needs no labels.
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynabert.baselines.exiting import ExitMethod
from dynabert.baselines.ramps import Score, fit, made
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.exits import Ramp, n_classes
from dynabert.hooks import Hooks
from dynabert.losses import kl_divergence
from dynabert.subnet import Subnet

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from dynabert.batches import BatchSource

NAME = "fastbert"
SPEEDS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Operating points: the largest normalised entropy at which a row leaves. The paper reports 0.1, 0.5 and 0.8."""

WIDTH, N_HEADS = 128, 2


class StudentHead(Ramp):
    """Down to 128 features, tanh, self-attention of 2 heads, the first token, 128 features, tanh, the classes.

    Only the first token is read of the attention's result, so only its query is computed.

    :param config: gives the hidden size, the dropout of attention and the number of labels.
    """

    def __init__(self, config: "PretrainedConfig") -> None:
        super().__init__()
        self.down = nn.Linear(config.hidden_size, WIDTH)
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, n_classes(config))
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits (batch, n_labels)."""
        features = torch.tanh(self.down(hidden))
        query, key, value = (
            linear(part).unflatten(-1, (N_HEADS, -1)).transpose(1, 2)
            for linear, part in ((self.query, features[:, :1]), (self.key, features), (self.value, features))
        )
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask.bool()[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        first = self.output(attended.transpose(1, 2).flatten(-2))[:, 0]
        return self.classifier(torch.tanh(self.dense(first)))

    def flops(self, seq_len: int) -> int:
        """Two for each multiply-add: what every token needs, what the first one needs, and the attention products."""
        each = sum(linear.weight.numel() for linear in (self.down, self.key, self.value))
        first = sum(linear.weight.numel() for linear in (self.query, self.output, self.dense, self.classifier))
        return 2 * (seq_len * each + first + 2 * seq_len * WIDTH)


def new_ramps(elastic: ElasticModel, *, subnet: Subnet = Subnet(), seed: int) -> nn.ModuleList:
    """The student heads before training.

    :param elastic: the network they are for.
    :param subnet: the size of it.
    :param seed: of their weights.
    :raises SettingError: a regression, or a size of one layer.
    """
    return made(elastic, subnet, StudentHead, seed=seed)


method_of = partial(ExitMethod, name=NAME, rule="normalised", thresholds=SPEEDS)
"""A network with trained student heads, as a method: takes the other fields of `ExitMethod`."""


def teacher_loss(ramp: Tensor, top: Tensor, labels: Tensor | None, n_examples: float) -> Tensor:
    """KL(task head || student head), as the published code has it; labels are not looked at."""
    return kl_divergence(ramp, top, n_examples)


def train(
    teacher: ElasticModel,
    batches: "BatchSource",
    *,
    training: Training,
    lr: float,
    budget_flops: float,
    subnet: Subnet = Subnet(),
    thresholds: tuple[float, ...] = SPEEDS,
    evaluate: Score | None = None,
    hooks: Hooks | None = None,
) -> ExitMethod:
    """Train student heads on a fine-tuned network, which stays as it is.

    Differs from the paper's code: the frozen network runs without dropout while the heads learn.

    :param teacher: the fine-tuned network; or DynaBERT, with a `subnet` of it.
    :param batches: rows, by step; labels are not used.
    :param lr: peak learning rate of the student heads; the paper: ten times that of fine-tuning.
    :param budget_flops: what training may spend.
    :param subnet: the size that gets the heads.
    :param thresholds: the operating points.
    :param evaluate: see `dynabert.baselines.ramps.train_ramps`.
    :raises SettingError: a regression, or a budget below one step.
    """
    ramps = new_ramps(teacher, subnet=subnet, seed=training.seed)
    spent = fit(
        teacher,
        ramps,
        batches,
        name=NAME,
        loss=teacher_loss,
        lr=lr,
        budget_flops=budget_flops,
        training=training,
        subnet=subnet,
        evaluate=evaluate,
        hooks=hooks,
    )
    return method_of(elastic=teacher, ramps=ramps, subnet=subnet, thresholds=thresholds, spent=spent)
