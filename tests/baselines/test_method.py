"""One door for every method, and one Sweep of each."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model
from small_rows import WORDS, batches, masked_model

from dynabert.baselines import METHODS, ElasticMethod, MaskedEncoder, plain, relatives, sweep_of, train_method
from dynabert.baselines.method import Spent
from dynabert.distill import Training
from dynabert.elastic import ElasticModel, count_params
from dynabert.errors import SettingError
from dynabert.exits import NEVER, fastest_agreeing
from dynabert.hooks import Hooks
from dynabert.measure import measure, predict
from dynabert.subnet import Subnet, SubnetGrid, encoder_flops
from dynabert.sweep import Sweep
from dynabert.tasks import TASKS

TRAINING = Training(precision="fp32", log_every=1)
MNLI, STSB = TASKS["mnli"], TASKS["stsb"]
GRID = SubnetGrid((1.0, 0.5), (1.0, 0.5))
EXITS = ("deebert", "fastbert")


def trained(name, *, family="bert", n_labels=3, budget_flops=6e8, **given):
    teacher = ElasticModel(tiny_model(family, seed=1, n_labels=n_labels), GRID)
    start = ElasticModel(tiny_model(family, seed=2, n_labels=n_labels), GRID)
    given = {"masked": lambda: MaskedEncoder(masked_model(start), WORDS)} | given
    return teacher, train_method(
        name,
        teacher,
        start,
        train=batches(40, seed=1, n_labels=n_labels),
        select=held_out(n_labels),
        task=MNLI if n_labels > 1 else STSB,
        budget_flops=budget_flops,
        training=TRAINING,
        lr=1e-3,
        **given,
    )


def held_out(n_labels=3):
    return batches(24, seed=2, shuffle=False, n_labels=n_labels)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_trained_within_its_budget_and_measured(name, family, tmp_path):
    teacher, method = trained(name, family=family)
    assert method.name == name and 0 < method.training_flops <= 6e8 and method.n_steps > 0
    reference = predict(teacher.at(Subnet()), held_out())
    sweep = sweep_of(method, held_out(), task=MNLI, reference=reference)
    assert tuple(row.subnet for row in sweep.rows) == method.points()
    for row in sweep.rows:
        answers = method.predict(row.subnet, held_out())
        assert answers.logits.shape == (24, 3) and answers.logits.dtype == np.float32
        assert answers.n_layers.shape == answers.flops.shape == (24,)
        assert row.n_layers == answers.n_layers.mean() and row.cost.flops == round(answers.flops.mean())
        assert row.quality.agreement == np.mean(answers.logits.argmax(1) == reference.argmax(1))
        assert row.of_layers == 4 and row.cost.latency_ms is None
    sweep.to_json(tmp_path / "sweep.json")
    assert Sweep.from_json(tmp_path / "sweep.json") == sweep


@pytest.mark.parametrize("name", METHODS)
def test_a_regression_is_trained_or_refused(name):
    if name in EXITS:
        with pytest.raises(SettingError, match="regression"):
            trained(name, n_labels=1)
    else:
        _, method = trained(name, n_labels=1)
        assert method.predict(method.points()[-1], held_out(1)).logits.shape == (24, 1)


def test_dynabert_as_a_method_has_the_rows_of_measure():
    elastic = ElasticModel(tiny_model("bert"), GRID)
    reference = predict(tiny_model("bert", seed=3), held_out())
    method = ElasticMethod(name="dynabert", elastic=elastic, spent=Spent(1e9, 10) + Spent(1e9, 5))
    assert (method.training_flops, method.n_steps) == (2e9, 15)
    sweep = sweep_of(method, held_out(), task=MNLI, reference=reference)
    assert sweep.rows == measure(elastic, held_out(), task=MNLI, reference=reference, latency=None).rows


def test_costs_of_early_exit_count_the_ramps_that_were_passed():
    teacher, method = trained("fastbert")
    layer = encoder_flops(teacher.shape, teacher.slices(Subnet())) // 4
    ramp = method.ramps[0].flops(128)
    assert method.flops_by_exit().tolist() == [
        layer + ramp,
        2 * (layer + ramp),
        3 * (layer + ramp),
        4 * layer + 3 * ramp,
    ]
    assert method.predict("s0", held_out()).flops.tolist() == [4 * layer + 3 * ramp] * 24
    of_ramps = sum(parameter.numel() for parameter in method.ramps.parameters())
    assert method.n_params("s0") == count_params(teacher.model) + of_ramps


@pytest.mark.parametrize("name", EXITS)
def test_points_of_early_exit_are_those_of_a_run(name):
    _, method = trained(name)
    rows = held_out()
    for point, threshold in zip(method.points(), method.thresholds, strict=True):
        run = method.exits.predict(rows, threshold)
        got = method.predict(point, rows)
        assert got.n_layers.tolist() == run.n_layers.tolist()
        np.testing.assert_allclose(got.logits, run.logits, atol=1e-5)


def test_rows_that_are_asked_for_again_are_computed_once(monkeypatch):
    _, method = trained("deebert")
    calls = []
    real = type(method.exits).all_exits
    monkeypatch.setattr(type(method.exits), "all_exits", lambda self, rows: calls.append(1) or real(self, rows))
    sweep_of(method, held_out(), task=MNLI, reference=np.eye(3)[np.zeros(24, int)])
    assert len(calls) == 1
    other = batches(24, seed=5, shuffle=False)
    assert not np.array_equal(method.predict("s0", other).logits, method.predict("s0", held_out()).logits)


def test_thresholds_are_calibrated_on_held_out_rows():
    _, method = trained("deebert")
    logits = method.all_exits(held_out())
    asked = (0.5, 0.8)
    found = [fastest_agreeing(logits, share, rule=method.rule) for share in asked]
    calibrated = replace(method, thresholds=tuple(found))
    for share, point in zip(asked, calibrated.points(), strict=True):
        assert np.mean(calibrated.predict(point, held_out()).logits.argmax(1) == logits[-1].argmax(1)) >= share
    assert found[1] <= found[0]
    assert fastest_agreeing(logits, 1.0, rule=method.rule) == NEVER  # no sample shows that all rows agree


def test_training_is_a_function_of_its_inputs_and_changes_none_of_them():
    for name in ("deebert", "layerdrop", "first-layers-distilled"):
        (teacher, one), (_, two) = trained(name), trained(name)
        last = one.points()[-1]
        assert np.array_equal(one.predict(last, held_out()).logits, two.predict(last, held_out()).logits)
        for mine, fresh in zip(teacher.model.parameters(), tiny_model("bert", seed=1).parameters(), strict=True):
            assert torch.equal(mine, fresh), name


def test_thresholds_that_agree_in_many_digits_are_points_of_their_own():
    _, method = trained("deebert")
    near = replace(method, thresholds=(0.1, 0.1234567, 0.1234568))
    assert near.points() == ("s0.1", "s0.1234567", "s0.1234568")
    assert near.predict("s0.1234568", held_out()).logits.shape == (24, 3)


def test_methods_of_one_training_differ_in_what_is_chosen_afterwards():
    assert relatives("layerdrop") == ("layerdrop-validated",) and relatives("layerdrop-validated") == ("layerdrop",)
    assert not relatives("layerdrop-0.5") and not relatives("alone")
    rows = plain.TaskRows(batches(40, seed=1), held_out(), MNLI)
    (_, one), (_, other) = trained("layerdrop"), trained("layerdrop-validated")
    for method, name, expected in ((one, "layerdrop-validated", other), (other, "layerdrop", one)):
        chosen = METHODS[name].choose(method, rows)
        assert chosen.name == name and chosen.points() == expected.points()
        for point in chosen.points():
            assert np.array_equal(chosen.predict(point, held_out()).logits, expected.predict(point, held_out()).logits)


def test_a_masked_phase_takes_half_of_the_budget_and_needs_an_encoder():
    (_, without), (_, after) = trained("layerdrop"), trained("layerdrop-masked")
    assert 0.8 < after.training_flops / without.training_flops <= 1.05
    last = without.points()[-1]
    assert not np.array_equal(after.predict(last, held_out()).logits, without.predict(last, held_out()).logits)
    steps = []

    class Steps(Hooks):
        def stepped(self, report):
            steps.append(report.stage)

    trained("layerdrop-masked", hooks=Steps())
    assert list(dict.fromkeys(steps)) == ["masked", "layerdrop"]
    assert 0.5 < steps.count("masked") / steps.count("layerdrop") < 2
    with pytest.raises(SettingError, match="give masked, or take layerdrop"):
        trained("layerdrop-masked", masked=None)


def test_unknown_names_name_the_known_ones():
    _, method = trained("deebert")
    with pytest.raises(SettingError, match=r"unknown point of deebert 's0\.11'.*did you mean"):
        method.predict("s0.11", held_out())
    with pytest.raises(SettingError, match="did you mean 'layerdrop'"):
        trained("layerdop")
    with pytest.raises(SettingError, match="does not pay one training step"):
        trained("layerdrop", budget_flops=10.0)
