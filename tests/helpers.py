"""Tiny models and batches that the tests of every module use."""

from dataclasses import replace

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

from dynabert.batches import Batch

FAMILY_NAMES = ("bert", "roberta", "xlm-roberta", "camembert")
PAD_ID = 1  # of all tiny models, so that one batch fits every family
VOCAB = 48


def tiny_model(
    family: str,
    *,
    seed: int = 0,
    n_labels: int = 3,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    dropout: float = 0.0,
    n_layers: int = 4,
    n_heads: int = 4,
    hidden: int = 64,
    n_neurons: int = 64,
) -> PreTrainedModel:
    """A sequence classifier of a family in eval mode, a few ten thousand weights, every one of them random.

    Norms, biases and the row of the padding token are random too: at their usual 1 and 0 they would hide a part that is
    left out, doubled or taken from the wrong place. One label makes it a regression.
    """
    config = CONFIG_MAPPING[family](
        vocab_size=VOCAB,
        hidden_size=hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        intermediate_size=n_neurons,
        max_position_embeddings=40,  # room for RoBERTa's positions, which start after the padding id
        type_vocab_size=2,
        pad_token_id=PAD_ID,
        bos_token_id=0,
        eos_token_id=2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=n_labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
        _randomize(model)
    return model.to(dtype).eval()


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.3)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(std=1.5 * module.in_features**-0.5)  # large enough that attention is not even
            module.bias.normal_(std=0.3)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.5)


def tiny_batch(seed: int = 0, batch: int = 5, seq: int = 11, *, n_labels: int = 3) -> Batch:
    """Rows of different lengths, the first one full and the others padded on the right, with labels and row ids.

    The labels are classes below `n_labels`, or float32 scores for one label.
    """
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, seq, (batch,), generator=random)
    lengths[0] = seq
    mask = (torch.arange(seq) < lengths[:, None]).long()
    tokens = torch.randint(PAD_ID + 1, VOCAB, (batch, seq), generator=random)
    types = (torch.arange(seq) >= lengths[:, None] // 2).long() * mask
    if n_labels == 1:
        labels = torch.rand(batch, generator=random) * 5
    else:
        labels = torch.randint(0, n_labels, (batch,), generator=random)
    inputs = {"input_ids": tokens * mask + PAD_ID * (1 - mask), "attention_mask": mask, "token_type_ids": types}
    return Batch(inputs, labels, 100 * seed + torch.arange(batch))


class TinyBatches:
    """Training batches of different shapes, the same ones in every epoch: what `train_stage` draws from."""

    def __init__(self, n_steps: int = 4, *, n_labels: int = 3, dtype: torch.dtype = torch.float32) -> None:
        drawn = [tiny_batch(seed, batch=3 + seed % 4, seq=5 + seed % 4, n_labels=n_labels) for seed in range(n_steps)]
        self.list = drawn if n_labels > 1 else [replace(batch, labels=batch.labels.to(dtype)) for batch in drawn]

    def __len__(self) -> int:
        return len(self.list)

    def at(self, step: int) -> Batch:
        return self.list[step % len(self.list)]

    def micro_batches(self, step: int) -> tuple[Batch]:
        return (self.at(step),)
