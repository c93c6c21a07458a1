"""Cascades: each row gets the answer of the first size that is sure of it, as it would alone."""

from itertools import permutations

import numpy as np
import pytest
from helpers import FAMILY_NAMES, tiny_model
from small_rows import batches

from dynabert.baselines import ElasticMethod
from dynabert.baselines.cascades import best_cascades
from dynabert.baselines.exiting import CascadeMethod
from dynabert.cascade import Cascade
from dynabert.elastic import ElasticModel, count_params
from dynabert.errors import SettingError
from dynabert.exits import NEVER, exits_at, uncertainty
from dynabert.measure import labels_of, predict
from dynabert.subnet import Subnet, SubnetGrid, encoder_flops
from dynabert.tasks import TASKS

SIZES = (Subnet(0.5, 0.5), Subnet(0.5, 1.0), Subnet())
GRID = SubnetGrid((1.0, 0.5), (1.0, 0.5))


def rows(size=8):
    return batches(40, seed=3, shuffle=False, batch_size=size)


def cascade(family="bert", sizes=SIZES):
    return Cascade(ElasticModel(tiny_model(family), GRID), sizes)


def middle(runner):
    """A threshold at which every size answers some rows."""
    logits = runner.all_exits(rows())
    for threshold in np.quantile(uncertainty(logits, runner.rule), np.linspace(0.1, 0.9, 17)):
        if len(set(exits_at(logits, float(threshold), runner.rule).n_layers)) == 3:
            return float(threshold)
    raise AssertionError("no threshold uses all three sizes, so these rows show little")


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_each_row_gets_what_it_would_alone(family):
    runner = cascade(family)
    threshold, expected = middle(runner), {}
    for batch in rows(1):
        for number, size in enumerate(runner.sizes):
            logits = predict(runner.elastic.at(size), [batch])
            if number == 2 or uncertainty(logits, "normalised")[0] <= threshold:
                expected[int(batch.ids)] = (logits[0], number)
                break
    logits, stages = zip(*(expected[number] for number in sorted(expected)), strict=True)
    assert set(stages) == {0, 1, 2}
    for size in (1, 7, 40):
        got = runner.predict(rows(size), threshold)
        np.testing.assert_allclose(got.logits, logits, atol=1e-5)
        assert got.n_layers.tolist() == [(2, 6, 10)[stage] for stage in stages]
    assert runner.elastic.model.training is False


def test_the_two_ends_are_the_smallest_and_the_largest_size():
    runner = cascade()
    for threshold, size, n_layers in ((NEVER, SIZES[-1], 10), (1.0, SIZES[0], 2)):
        got = runner.predict(rows(), threshold)
        np.testing.assert_allclose(got.logits, predict(runner.elastic.at(size), rows()), atol=1e-6)
        assert set(got.n_layers.tolist()) == {n_layers}


def test_costs_are_those_of_all_sizes_that_a_row_went_through():
    runner = cascade()
    each = [encoder_flops(runner.elastic.shape, runner.elastic.slices(size)) for size in SIZES]
    assert runner.flops.tolist() == [each[0], each[0] + each[1], sum(each)]
    method = CascadeMethod(
        name="cascade", elastic=runner.elastic, sizes=SIZES, rule="normalised", thresholds=(middle(runner),)
    )
    (point,) = method.points()
    assert point.startswith("w0.5-d0.5+w0.5-d1+w1-d1@s0.")
    got, run = method.predict(point, rows()), method.answer(point, rows())
    np.testing.assert_allclose(got.logits, run.logits, atol=1e-5)
    assert got.n_layers.tolist() == run.n_layers.tolist()
    assert got.flops.tolist() == [
        each[0] if n == 2 else each[0] + each[1] if n == 6 else sum(each) for n in run.n_layers
    ]
    assert method.n_params(point) == count_params(runner.elastic.model)


def test_memory_is_that_of_all_weights_that_any_size_has():
    elastic = ElasticModel(tiny_model("bert"), GRID)

    def n_params(*sizes):
        method = CascadeMethod(name="cascade", elastic=elastic, sizes=sizes, rule="normalised", thresholds=(0.5,))
        return method.n_params(method.points()[0])

    # Some layers of full width, and all four of half the width: the other layers need no more than that.
    crossed = (Subnet(0.5, 1.0), Subnet(1.0, 0.75))
    alone = [count_params(elastic.at(size)) for size in crossed]
    assert max(alone) < n_params(*crossed) < min(sum(alone), count_params(elastic.model))
    assert n_params(Subnet(0.5, 0.5), Subnet(1.0, 0.5)) == count_params(elastic.at(Subnet(1.0, 0.5)))


@pytest.mark.parametrize("share", [2.0, 1.4, 0.9, 0.5, 0.3])
def test_the_best_pair_is_that_of_brute_force(share):
    elastic = ElasticModel(tiny_model("bert", n_labels=3), GRID)
    labels, names = labels_of(rows()), [size.name for size in GRID]
    costs = {size.name: encoder_flops(elastic.shape, elastic.slices(size)) for size in GRID}
    budget = share * max(costs.values())
    logits = {size.name: predict(elastic.at(size), rows()) for size in GRID}
    best = []
    for first, last in permutations(names, 2):
        if costs[first] >= costs[last] or costs[first] > budget:
            continue
        unsure = uncertainty(logits[first], "normalised")
        for threshold in sorted({NEVER, *np.unique(unsure)}):  # the most careful one within the budget
            goes_on = unsure > threshold
            if (cost := costs[first] + goes_on.mean() * costs[last]) <= budget:
                answers = np.where(goes_on[:, None], logits[last], logits[first]).argmax(1)
                best.append((threshold != NEVER, np.mean(answers == labels), -cost, f"{first}+{last}"))
                break
    found = best_cascades(
        ElasticMethod(name="dynabert", elastic=elastic), rows(), TASKS["mnli"], budgets=[budget], name="cascade"
    )
    (point,) = found.points()
    got = found.predict(point, rows())
    assert point.startswith(max(best)[-1])
    assert point.endswith("@s-1") is (share == 2), "both sizes for the answer of one, only where all pairs are"
    assert np.mean(got.logits.argmax(1) == labels) == max(best)[1]
    assert got.flops.mean() == pytest.approx(-max(best)[2]) and got.flops.mean() <= budget


def test_what_is_no_cascade_is_refused():
    for sizes in ((), (Subnet(),), (Subnet(), Subnet(0.5, 1.0)), (Subnet(0.5, 1.0), Subnet(0.5, 1.0))):
        with pytest.raises(SettingError, match="is no cascade; give two or more sizes"):
            cascade(sizes=sizes)
    with pytest.raises(SettingError, match="regression"):
        Cascade(ElasticModel(tiny_model("bert", n_labels=1), GRID), SIZES)
    method = ElasticMethod(name="dynabert", elastic=ElasticModel(tiny_model("bert"), GRID))
    with pytest.raises(SettingError, match="no two sizes of dynabert"):
        best_cascades(method, rows(), TASKS["mnli"], budgets=[10.0], name="cascade")


def test_names_are_as_good_as_sizes():
    named, sized = cascade(sizes=("w0.5-d0.5", "w1-d1")), cascade(sizes=(Subnet(0.5, 0.5), Subnet()))
    assert named.name == "w0.5-d0.5+w1-d1" and named.sizes == sized.sizes
    logits = named.all_exits(rows())
    exited = exits_at(logits, 0.5, "normalised")
    np.testing.assert_allclose(named.predict(rows(), 0.5).logits, exited.logits, atol=1e-5)
