"""The masked-language-model phase: what is hidden, and what it trains."""

import numpy as np
import pytest
import torch
from helpers import PAD_ID, tiny_model
from small_rows import WORDS, batches, masked_model

from dynabert.baselines.masked import UNASKED, MaskedBatches, MaskedEncoder, Vocabulary, pretrained_on
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.hooks import Hooks
from dynabert.subnet import SubnetGrid

TRAINING = Training(precision="fp32", log_every=1)


def test_fifteen_percent_are_asked_for_and_eighty_of_them_hidden():
    source = batches(2000, seed=1, batch_size=500)
    masked = MaskedBatches(source, WORDS, seed=4)
    asked, hidden, changed, words = 0, 0, 0, 0
    for step in range(len(source)):
        (before,), (after,) = source.micro_batches(step), masked.micro_batches(step)
        ids, new = before.inputs["input_ids"], after.inputs["input_ids"]
        chosen = after.labels != UNASKED
        assert torch.equal(after.labels[chosen], ids[chosen]) and torch.equal(new[~chosen], ids[~chosen])
        assert not bool((chosen & ((ids == PAD_ID) | (ids < 4))).any()), "no padding, no special tokens"
        assert after.whole.examples == int(chosen.sum())
        words += int((ids >= 4).sum())
        asked += int(chosen.sum())
        hidden += int((new[chosen] == 3).sum())
        changed += int(((new != 3) & (new != ids) & chosen).sum())
    assert asked / words == pytest.approx(0.15, abs=0.01)
    assert hidden / asked == pytest.approx(0.8, abs=0.03)
    assert changed / asked == pytest.approx(0.1, abs=0.03)


def test_what_is_hidden_is_a_function_of_seed_and_step():
    source = batches(40, seed=1)

    def labels(seed, step):
        return MaskedBatches(source, WORDS, seed=seed).micro_batches(step)[0].labels

    assert torch.equal(labels(1, 2), labels(1, 2))
    assert not torch.equal(labels(1, 2), labels(2, 2))
    epoch = len(source)
    assert labels(1, 0).shape != labels(1, epoch).shape or not torch.equal(labels(1, 0), labels(1, epoch))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_encoder_learns_and_the_task_head_stays(family):
    losses = []

    class Losses(Hooks):
        def stepped(self, report):
            losses.extend(terms["labels"] for terms in report.losses.values())

    start = ElasticModel(tiny_model(family))
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    learned, spent = pretrained_on(
        batches(200, seed=1),
        start,
        masked=MaskedEncoder(masked_model(start), WORDS),
        training=TRAINING,
        lr=3e-3,
        budget_flops=2.5e9,
        hooks=Losses(),
    )
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.3
    assert spent.n_steps == len(losses)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.model.state_dict().items())
    for name, tensor in learned.model.state_dict().items():
        is_encoder = "encoder" in name or ("embeddings" in name and "position_ids" not in name)
        assert torch.equal(tensor, before[name]) != is_encoder, name


def test_the_first_loss_is_the_cross_entropy_of_the_hidden_tokens():
    start, heard = ElasticModel(tiny_model("bert")), []

    class Losses(Hooks):
        def stepped(self, report):
            heard.extend(terms["labels"] for terms in report.losses.values())

    source, model = batches(40, seed=1), masked_model(start)
    (batch,) = MaskedBatches(source, WORDS, seed=TRAINING.seed).micro_batches(0)
    with torch.no_grad():
        expected = float(model(**batch.inputs, labels=batch.labels).loss)  # transformers: the mean over asked tokens
    settings = {"training": TRAINING, "lr": 1e-3, "budget_flops": 3e8, "rate": 0.0, "hooks": Losses()}
    pretrained_on(source, start, masked=MaskedEncoder(model, WORDS), **settings)
    assert heard[0] == pytest.approx(expected, rel=1e-5)


def test_another_encoder_and_a_tokenizer_without_a_mask_are_refused():
    start = ElasticModel(tiny_model("bert"))
    other = masked_model(ElasticModel(tiny_model("bert", n_layers=2), SubnetGrid((1.0,), (1.0,))))
    with pytest.raises(SettingError, match="load the same checkpoint"):
        pretrained_on(
            batches(8, seed=1), start, masked=MaskedEncoder(other, WORDS), training=TRAINING, lr=1e-3, budget_flops=1e9
        )

    class NoMask:
        mask_token_id = None

    with pytest.raises(SettingError, match="no mask token"):
        Vocabulary.of(NoMask())
