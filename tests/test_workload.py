"""FLOPs of training steps, by which times are compared."""

from dataclasses import replace

import pytest
from helpers import tiny_model

from dynabert.baselines.layerdrop import LayerDrop
from dynabert.elastic import ElasticModel
from dynabert.recipes import RECIPES, TEACHER, Schedule
from dynabert.subnet import Subnet, SubnetGrid, encoder_flops
from dynabert.workload import StepRows, mean_step_flops, planned_stages, step_flops

WIDTH, DEPTH = RECIPES["two-stage"].stages
GRID = SubnetGrid((1.0, 0.5), (1.0, 0.5))


@pytest.fixture(scope="module")
def elastic():
    return ElasticModel(tiny_model("bert"), GRID)


def forward(elastic, width, depth, seq=128):
    return encoder_flops(elastic.shape, elastic.slices(Subnet(width, depth)), seq)


def test_a_student_costs_three_forward_passes_and_a_teacher_one(elastic):
    full, half = forward(elastic, 1, 1), forward(elastic, 0.5, 1)
    assert step_flops(TEACHER, elastic, seed=0, step=0) == 3 * full
    assert step_flops(WIDTH, elastic, seed=0, step=0) == 3 * (full + half) + full
    whole = sum(forward(elastic, width, depth) for width in (1, 0.5) for depth in (1, 0.5))
    assert step_flops(DEPTH, elastic, seed=0, step=0) == 3 * whole + full + half
    assert step_flops(TEACHER, elastic, seed=0, step=0, seq=7) == 3 * forward(elastic, 1, 1, 7)


def test_the_default_recipe_costs_0_85_of_the_papers():
    elastic, rows = ElasticModel(tiny_model("bert", n_layers=12, n_heads=12, hidden=48)), StepRows(32, 64)

    def cost(name):
        return sum(stage.epochs * mean_step_flops(stage, elastic, rows, seed=0) for stage in RECIPES[name].stages)

    assert cost("default") / cost("paper") == pytest.approx(0.85, abs=0.02)


def test_a_schedule_that_changes_costs_its_mean():
    elastic = ElasticModel(tiny_model("bert"), SubnetGrid((1.0, 0.75, 0.5), (1.0, 0.5)))
    ladder = replace(DEPTH, schedule=Schedule("ladder"), epochs=2)
    (planned,) = planned_stages([ladder], elastic, steps_per_epoch=8, seed=0)
    steps = [step_flops(ladder, elastic, seed=0, step=step) for step in range(16)]
    assert (planned.name, planned.n_steps) == ("depth", 16)
    assert planned.flops == sum(steps) / 16 and len(set(steps)) > 2


@pytest.mark.parametrize("schedule", ["sandwich", "layerdrop"])
def test_the_mean_of_random_steps_is_that_of_many(schedule):
    elastic = ElasticModel(tiny_model("bert", n_layers=12, n_heads=12, hidden=48))
    (sandwich,) = RECIPES["default"].stages
    stage = sandwich if schedule == "sandwich" else replace(TEACHER, schedule=LayerDrop(elastic.shape, 0.5))
    many = [step_flops(stage, elastic, seed=1, step=step, seq=20) for step in range(3000)]
    assert mean_step_flops(stage, elastic, StepRows(32, 20), seed=1) == pytest.approx(32 * sum(many) / 3000, rel=0.02)
