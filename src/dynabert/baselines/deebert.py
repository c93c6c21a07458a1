"""DeeBERT (Xin et al., ACL 2020): early exit by the entropy of ramps that learn from the labels.

Its first stage is ordinary fine-tuning, so it starts from the given teacher; the second trains a ramp after each layer
but the last, on the frozen network, by the sum of their cross-entropies.
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dynabert.baselines.exiting import ExitMethod
from dynabert.baselines.ramps import Score, fit, made
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.exits import Ramp, n_classes
from dynabert.hooks import Hooks
from dynabert.losses import label_loss
from dynabert.subnet import Subnet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from dynabert.batches import BatchSource

NAME = "deebert"
THRESHOLDS = (0.0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""The entropies of the published script."""


class PoolerRamp(Ramp):
    """A pooler of the first token, dropout and a classifier: what BERT has on top, after an inner layer.

    :param config: gives the hidden size, the dropout and the number of labels.
    """

    def __init__(self, config: "PretrainedConfig") -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, n_classes(config))

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits (batch, n_labels)."""
        return self.classifier(self.dropout(torch.tanh(self.dense(hidden[:, 0]))))

    def flops(self, seq_len: int) -> int:
        """Two for each multiply-add; only the first token counts."""
        return 2 * (self.dense.weight.numel() + self.classifier.weight.numel())


@torch.no_grad()
def new_ramps(
    elastic: ElasticModel, *, subnet: Subnet = Subnet(), pooler_of: "PreTrainedModel | None" = None, seed: int
) -> nn.ModuleList:
    """The ramps before training.

    :param elastic: the network they are for.
    :param subnet: the size of it.
    :param pooler_of: the model whose pooler each ramp starts from, the paper: the pre-trained encoder; by default the
        network itself. Where it has none (RoBERTa's classifiers) ramps start from random numbers.
    :param seed: of those.
    :raises SettingError: a regression.
    """
    ramps = made(elastic, subnet, PoolerRamp, seed=seed)
    pooler = (pooler_of or elastic.model).base_model.pooler
    if pooler is not None:
        for ramp in ramps:
            ramp.dense.load_state_dict(pooler.dense.state_dict())  # type: ignore[union-attr]
    return ramps


method_of = partial(ExitMethod, name=NAME, rule="entropy", thresholds=THRESHOLDS)
"""A network with trained ramps, as a method: takes the other fields of `ExitMethod`."""


def labels_loss(ramp: Tensor, top: Tensor, labels: Tensor | None, n_examples: float) -> Tensor:
    """Cross-entropy with the labels, whatever the task head says."""
    if labels is None:
        raise SettingError("deebert learns from labels but the batches have none; give labels, or choose fastbert")
    return label_loss(ramp, labels, n_examples)


def train(
    teacher: ElasticModel,
    batches: "BatchSource",
    *,
    training: Training,
    lr: float,
    budget_flops: float,
    subnet: Subnet = Subnet(),
    pooler_of: "PreTrainedModel | None" = None,
    thresholds: tuple[float, ...] = THRESHOLDS,
    evaluate: Score | None = None,
    hooks: Hooks | None = None,
) -> ExitMethod:
    """Train ramps on a fine-tuned network, which stays as it is.

    Differs from the paper's code: the frozen network runs without dropout while the ramps learn.

    :param teacher: the fine-tuned network; or DynaBERT, with a `subnet` of it.
    :param batches: rows with labels, by step.
    :param lr: peak learning rate of the ramps; the paper: that of fine-tuning, 2e-5.
    :param budget_flops: what training may spend.
    :param subnet: the size that gets the ramps.
    :param pooler_of: see `new_ramps`.
    :param thresholds: the operating points.
    :param evaluate: see `dynabert.baselines.ramps.train_ramps`.
    :raises SettingError: a regression, rows without labels, or a budget below one step.
    """
    ramps = new_ramps(teacher, subnet=subnet, pooler_of=pooler_of, seed=training.seed)
    spent = fit(
        teacher,
        ramps,
        batches,
        name=NAME,
        loss=labels_loss,
        lr=lr,
        budget_flops=budget_flops,
        training=training,
        subnet=subnet,
        evaluate=evaluate,
        hooks=hooks,
    )
    return method_of(elastic=teacher, ramps=ramps, subnet=subnet, thresholds=thresholds, spent=spent)
