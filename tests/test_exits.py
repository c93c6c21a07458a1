"""Early exit: batched it is what each row alone would get, and thresholds are chosen as they say."""

import numpy as np
import pytest
import torch
from helpers import FAMILY_NAMES, PAD_ID, VOCAB, tiny_batch, tiny_model
from reference import baselines as plain
from scipy.stats import binomtest

from dynabert.baselines import deebert, fastbert
from dynabert.baselines.ramps import made
from dynabert.batches import Batches, Encoded
from dynabert.elastic import ElasticModel
from dynabert.errors import DataError, SettingError
from dynabert.exits import (
    NEVER,
    RULES,
    EarlyExit,
    candidates,
    exit_flops,
    exits_at,
    fastest_agreeing,
    most_careful,
    rows_that_show,
    uncertainty,
)
from dynabert.measure import predict
from dynabert.subnet import Subnet

KINDS = {
    "deebert": (deebert.PoolerRamp, plain.deebert_ramp),
    "fastbert": (fastbert.StudentHead, plain.fastbert_head),
}
N_ROWS = 40


def encoded(n_rows: int = N_ROWS) -> Encoded:
    """Rows of 2 to 12 tokens whose ids are neither from 0 nor in order."""
    random = np.random.default_rng(3)
    tokens = [random.integers(2, VOCAB, random.integers(2, 13)).astype(np.int32) for _ in range(n_rows)]
    return Encoded(tokens, None, random.integers(0, 3, n_rows), random.permutation(n_rows) * 3 + 7)


def batches(batch_size: int) -> Batches:
    return Batches(encoded(), batch_size=batch_size, seed=0, pad_id=PAD_ID, shuffle=False)


def random_ramps(elastic: ElasticModel, kind: str, subnet: Subnet = Subnet()) -> torch.nn.ModuleList:
    """Ramps whose answers are of very different sureness."""
    ramps = made(elastic, subnet, KINDS[kind][0], seed=1).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for ramp in ramps:
            for parameter in ramp.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 1.5 * parameter.shape[-1] ** -0.5)
            ramp.classifier.weight *= 2
    return ramps


def early(family: str = "bert", kind: str = "deebert", rule: str = "entropy", subnet: Subnet = Subnet()) -> EarlyExit:
    elastic = ElasticModel(tiny_model(family))
    return EarlyExit(elastic.at(subnet), elastic.family, random_ramps(elastic, kind, subnet), rule=rule)


def middle(exits: EarlyExit) -> float:
    """A threshold at which rows leave at every layer."""
    return float(np.quantile(uncertainty(exits.all_exits(batches(8))[:-1], exits.rule), 0.35))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_each_row_leaves_where_it_would_alone(family, kind, rule):
    exits = early(family, kind, rule)
    threshold = middle(exits)
    weights = [dict(ramp.named_parameters()) for ramp in exits.ramps]
    alone = {}
    for batch in batches(1):
        for number, inputs in plain.rows_of(batch):
            alone[number] = plain.exit_of_row(tiny_model(family), weights, KINDS[kind][1], inputs, threshold, rule)
    expected = [alone[number] for number in sorted(alone)]
    for size in (1, 7, N_ROWS):
        got = exits.predict(batches(size), threshold)
        assert got.n_layers.tolist() == [n_layers for n_layers, _ in expected]
        np.testing.assert_allclose(got.logits, torch.stack([logits for _, logits in expected]), atol=1e-5)
    assert {1, 4} < set(got.n_layers.tolist()), "rows leave at several layers, or this test shows little"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_two_ends_are_the_whole_model_and_the_first_ramp(family, rule):
    exits = early(family, "fastbert", rule, Subnet(0.5, 0.75))
    whole = exits.predict(batches(7), NEVER)
    assert set(whole.n_layers.tolist()) == {3}
    assert np.array_equal(whole.logits, predict(exits.view, batches(7)))
    if rule == "entropy":
        assert np.array_equal(exits.predict(batches(7), 0.0).logits, whole.logits), "DeeBERT's 0 never exits"
    first = exits.predict(batches(7), 1.0 if rule == "normalised" else 1.1)
    assert set(first.n_layers.tolist()) == {1}
    assert np.array_equal(first.logits, exits.all_exits(batches(7))[0])


@pytest.mark.parametrize("rule", RULES)
def test_exits_of_all_logits_are_those_of_a_run(rule):
    exits = early("roberta", "fastbert", rule)
    logits = exits.all_exits(batches(6))
    assert logits.shape == (4, N_ROWS, 3) and logits.dtype == np.float32
    for threshold in (NEVER, middle(exits), 0.5, 2.0):
        got, run = exits_at(logits, threshold, rule), exits.predict(batches(6), threshold)
        assert got.n_layers.tolist() == run.n_layers.tolist()
        np.testing.assert_allclose(got.logits, run.logits, atol=1e-5)


class SureOfLongRows(torch.nn.Module):
    """A ramp at which rows of more tokens than a limit leave."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        is_long = (attention_mask.sum(1) > self.limit).float()
        return torch.stack([20 * is_long, 0 * is_long, 0 * is_long], dim=1)


def test_survivors_lose_the_padding_of_those_who_left():
    elastic, limits = ElasticModel(tiny_model("bert")), (9, 6, 3)
    exits = EarlyExit(elastic.at(Subnet()), elastic.family, torch.nn.ModuleList(map(SureOfLongRows, limits)))
    seen = []
    for layer in exits.stack.layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:2])))
    exits.predict(batches(N_ROWS), 0.5)
    lengths = np.array([len(tokens) for tokens in encoded().input_ids])
    staying = [lengths[lengths <= limit] for limit in (99, *limits)]
    assert seen == [(len(rows), rows.max()) for rows in staying]


def test_modes_are_left_as_they_were_and_dropout_is_off():
    elastic = ElasticModel(tiny_model("bert", dropout=0.5).train())
    ramps = random_ramps(elastic, "fastbert").train()
    exits = EarlyExit(elastic.at(Subnet()), elastic.family, ramps)
    assert np.array_equal(exits.predict([tiny_batch()], 0.5).logits, exits.predict([tiny_batch()], 0.5).logits)
    assert exits.view.training and ramps.training


def test_uncertainty_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [1, 1, 1]], np.float32))
    expected = np.array([1.5 * np.log(2), np.log(3)])
    np.testing.assert_allclose(uncertainty(logits, "entropy"), expected, rtol=1e-6)
    np.testing.assert_allclose(uncertainty(logits, "normalised"), expected / np.log(3), rtol=1e-6)
    extreme = uncertainty(np.array([[1e4, 0.0, -1e4]], np.float32), "normalised")
    assert extreme.tolist() == [0.0]


def test_the_rules_differ_at_the_threshold_itself():
    even = np.zeros((2, 1, 4), np.float32)
    assert exits_at(even, float(uncertainty(even, "entropy")[0, 0]), "entropy").n_layers.tolist() == [2]
    assert exits_at(even, 1.0, "normalised").n_layers.tolist() == [1]


def some_logits() -> np.ndarray:
    return many_logits(np.random.default_rng(0), 300)


def many_logits(random: np.random.Generator, n_rows: int) -> np.ndarray:
    """Three exits, of which later ones agree more with the last."""
    top = random.normal(size=(n_rows, 3)) * 2
    parts = [(top + random.normal(size=top.shape) * noise) * scale for noise, scale in ((3, 0.5), (1, 1.0))]
    return np.stack([*parts, top]).astype(np.float32)


def test_the_rows_that_show_an_agreement_are_those_of_the_exact_interval():
    """Fewer agree by chance in 95 of 100 samples where the truth is just the share that is asked for."""
    for share, n_rows in ((0.99, 500), (0.9, 60), (0.5, 7)):
        needed = rows_that_show(share, n_rows)
        for agreeing in (needed - 1, needed, n_rows):
            low = binomtest(agreeing, n_rows, alternative="greater").proportion_ci(0.95, "exact").low
            assert (low >= share) == (agreeing >= needed)
    assert rows_that_show(0.99, 298) is None and rows_that_show(0.99, 299) == 299
    assert rows_that_show(1.0, 10_000) is None, "no sample shows that all agree"
    assert rows_that_show(0.0, 10) == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("agreement", [0.97, 0.9, 0.0])
def test_thresholds_rise_until_the_rows_no_longer_show_the_agreement(rule, agreement):
    logits = some_logits()
    needed = rows_that_show(agreement, logits.shape[1])

    def agreeing(threshold):
        return np.sum(exits_at(logits, threshold, rule).logits.argmax(-1) == logits[-1].argmax(-1))

    found = fastest_agreeing(logits, agreement, rule=rule)
    tried = [threshold for threshold in candidates(logits, rule) if threshold <= found]
    assert found > NEVER and all(agreeing(threshold) >= needed for threshold in tried)
    faster = [threshold for threshold in candidates(logits, rule) if threshold > found]
    assert bool(faster) == (agreement > 0)
    assert not faster or agreeing(faster[0]) < needed
    assert fastest_agreeing(logits, 1.0, rule=rule) == NEVER
    assert fastest_agreeing(logits, agreement, rule=rule, thresholds=[3.0]) == (NEVER if agreement else 3.0)


def test_a_stack_that_does_not_agree_with_the_reference_has_no_threshold():
    logits = some_logits()
    other = np.roll(logits[-1], 1, axis=-1)
    assert fastest_agreeing(logits, 0.9, rule="entropy", reference=other) is None
    assert fastest_agreeing(logits, 0.99, rule="entropy", reference=logits[-1]) >= NEVER, "all of 300 rows show it"
    assert fastest_agreeing(logits[:, :298], 0.99, rule="entropy", reference=logits[-1, :298]) is None


def test_a_promised_agreement_holds_on_new_rows():
    """Calibrated on 300 rows a hundred times: on thirty thousand others the agreement is missed in few of them."""
    everything = many_logits(np.random.default_rng(1), 30_000)
    missed = 0
    for seed in range(100):
        threshold = fastest_agreeing(many_logits(np.random.default_rng(seed + 2), 300), 0.9, rule="entropy")
        answers = exits_at(everything, threshold, "entropy").logits.argmax(-1)
        missed += np.mean(answers == everything[-1].argmax(-1)) < 0.9
    assert missed <= 11, "5 are expected, and more than 11 come once in 250 times"


@pytest.mark.parametrize("rule", RULES)
def test_the_most_careful_threshold_within_a_budget(rule):
    logits, by_exit = some_logits(), exit_flops([100, 100, 100], [7, 9])
    assert by_exit.tolist() == [107, 216, 316]
    found = most_careful(logits, 200, flops_by_exit=by_exit, rule=rule)

    def cost(threshold):
        return by_exit[exits_at(logits, threshold, rule).n_layers - 1].mean()

    careful = [threshold for threshold in candidates(logits, rule) if threshold < found]
    assert cost(found) <= 200 < min(map(cost, careful))
    assert most_careful(logits, 316, flops_by_exit=by_exit, rule=rule) == NEVER
    with pytest.raises(SettingError, match=r"below the 107"):
        most_careful(logits, 100, flops_by_exit=by_exit, rule=rule)


def test_what_cannot_be_is_said():
    elastic = ElasticModel(tiny_model("bert"))
    ramps = random_ramps(elastic, "deebert")
    with pytest.raises(SettingError, match="regression"):
        EarlyExit(tiny_model("bert", n_labels=1), elastic.family, ramps)
    with pytest.raises(SettingError, match="3 ramps do not fit 2 layers"):
        EarlyExit(elastic.at(Subnet(1, 0.5)), elastic.family, ramps)
    with pytest.raises(SettingError, match="did you mean 'entropy'"):
        EarlyExit(elastic.at(Subnet()), elastic.family, ramps, rule="entropie")
    exits = EarlyExit(elastic.at(Subnet()), elastic.family, ramps)
    with pytest.raises(DataError, match="no rows"):
        exits.predict([], 0.5)
    with pytest.raises(SettingError, match="share of the rows"):
        fastest_agreeing(some_logits(), 90, rule="entropy")
    with pytest.raises(DataError, match="no exits"):
        fastest_agreeing(some_logits()[:1], 0.9, rule="entropy")
