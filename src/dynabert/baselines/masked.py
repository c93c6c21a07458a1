"""A masked-language-model phase before fine-tuning, with LayerDrop: the encoder learns to be whole without some layers.

The authors of LayerDrop do this for the whole of pre-training; here it continues from a pre-trained encoder, on text
without labels, for as long as a budget lasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynabert.baselines.fitting import fit_subnets, steps_within
from dynabert.baselines.layerdrop import LayerDrop
from dynabert.baselines.method import Spent
from dynabert.batches import Batch, BatchSource, Sizes
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.hooks import Hooks
from dynabert.recipes import TEACHER
from dynabert.seeds import derive_seed
from dynabert.subnet import SubnetGrid

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MASKED, AS_MASK, AS_RANDOM = 0.15, 0.8, 0.1
"""Share of the tokens that are asked for; of these, the share that is hidden, and that becomes a random token."""

UNASKED = -100
"""Label of a token that is not asked for."""


@dataclass(frozen=True)
class Vocabulary:
    """What masking has to know of a tokenizer.

    :param mask_id: the token that hides another.
    :param special_ids: tokens that are never hidden.
    :param size: random tokens are drawn below it.
    """

    mask_id: int
    special_ids: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary":
        """That of a tokenizer.

        :raises SettingError: one without a mask token.
        """
        if tokenizer.mask_token_id is None:
            raise SettingError(f"{type(tokenizer).__name__} has no mask token; leave the masked phase out")
        return cls(tokenizer.mask_token_id, tuple(tokenizer.all_special_ids), len(tokenizer))


@dataclass(frozen=True)
class MaskedEncoder:
    """A pre-trained encoder as its masked-language-model phase needs it.

    :param model: with its head over the vocabulary: ``load(…, head="ForMaskedLM")``.
    :param vocabulary: of its tokenizer.
    """

    model: "PreTrainedModel"
    vocabulary: Vocabulary


class MaskedBatches:
    """Batches whose labels are their own hidden tokens, a pure function of (seed, step): in one process.

    :param batches: of any rows; their labels are not looked at.
    :param vocabulary: of their tokenizer.
    :param seed: of what is hidden.
    """

    def __init__(self, batches: BatchSource, vocabulary: Vocabulary, *, seed: int) -> None:
        self._batches, self._vocabulary, self._seed = batches, vocabulary, seed

    def __len__(self) -> int:
        """Steps in one epoch."""
        return len(self._batches)

    def micro_batches(self, step: int) -> Sequence[Batch]:
        """The micro-batches of a step. Their labels are (batch, seq), the step's size in examples what is asked for."""
        hidden = [self._hidden(batch, step, number) for number, batch in enumerate(self._batches.micro_batches(step))]
        masks = [batch.inputs["attention_mask"] for batch in hidden]
        n_asked = sum(int((batch.labels != UNASKED).sum()) for batch in hidden if batch.labels is not None)
        sizes = Sizes(max(1, n_asked), sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks))
        return [replace(batch, whole=sizes) for batch in hidden]

    def _hidden(self, batch: Batch, step: int, number: int) -> Batch:
        ids, words = batch.inputs["input_ids"], self._vocabulary
        draws = np.random.PCG64(derive_seed(self._seed, "masked", step, number)).random_raw(3 * ids.numel())
        asked, kind, token = torch.from_numpy(draws / 2.0**64).view(3, *ids.shape)
        special = torch.isin(ids, torch.tensor(words.special_ids))
        chosen = (asked < MASKED) & batch.inputs["attention_mask"].bool() & ~special
        random = (token * words.size).long()
        changed = torch.where(kind < AS_MASK, words.mask_id, torch.where(kind < AS_MASK + AS_RANDOM, random, ids))
        inputs = {**batch.inputs, "input_ids": torch.where(chosen, changed, ids)}
        return replace(batch, inputs=inputs, labels=ids.masked_fill(~chosen, UNASKED))


def pretrained_on(
    text: BatchSource,
    start: ElasticModel,
    *,
    masked: MaskedEncoder,
    training: Training,
    lr: float,
    budget_flops: float,
    rate: float = 0.2,
    hooks: Hooks | None = None,
) -> tuple[ElasticModel, Spent]:
    """A copy of an encoder that has gone on with masked-language-model training while its layers were dropped.

    :param text: rows, by step; no labels needed.
    :param start: the pre-trained encoder with a fresh task head, which stays fresh.
    :param masked: the same checkpoint. Trained in place; its head is needed no longer.
    :param rate: see `LayerDrop`.
    :return: the copy, and what was spent; the head over the vocabulary is not counted, as in all FLOPs here.
    :raises SettingError: a model of another shape, or a budget below one step.
    """
    elastic = ElasticModel(masked.model, SubnetGrid((1.0,), (1.0,)))
    elastic.to(start.model.device)
    if elastic.shape != start.shape:
        raise SettingError(f"the masked model has sizes {elastic.shape}, not {start.shape}; load the same checkpoint")
    stage = replace(TEACHER, name="masked", schedule=LayerDrop(start.shape, rate), lr=lr)
    batches = MaskedBatches(text, masked.vocabulary, seed=training.seed)
    n_steps = steps_within(budget_flops, [stage], elastic, batches, seed=training.seed)
    spent = fit_subnets(elastic, stage, batches, n_steps=n_steps, training=training, hooks=hooks)
    copy = start.copy()
    learned = {**copy.model.base_model.state_dict(), **masked.model.base_model.state_dict()}
    copy.model.base_model.load_state_dict(learned)
    return copy, spent
