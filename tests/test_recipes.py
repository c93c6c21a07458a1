"""Training plans as data: what each stage trains, and from whom it learns."""

from collections import Counter
from dataclasses import replace

import pytest

from dynabert.errors import SettingError
from dynabert.losses import PUBLISHED, LossWeights, Reduction
from dynabert.recipes import FINETUNE, RECIPES, TEACHER, Recipe, Schedule, Stage, present_name, recipe_of
from dynabert.subnet import EncoderShape, LayerSlice, Subnet, SubnetGrid, encoder_flops

GRID = SubnetGrid()
LABELS_ALONE = LossWeights(logits=0, hidden=0, embeddings=0, labels=1)


def stage(**changes):
    return Stage(**{"name": "some", "subnets": "grid", "weights": LossWeights(), **changes})


# Which Subnets a step trains.


def test_all_of_them_in_every_step_largest_first():
    for step in (0, 7):
        assert Schedule().subnets(GRID, 42, step) == tuple(GRID)
    assert (list(GRID)[0], list(GRID)[-1]) == (GRID.largest, GRID.smallest)  # noqa: RUF015


@pytest.mark.parametrize("n_random", [0, 1, 2, 5])
def test_a_sandwich_has_the_largest_the_smallest_and_some_between(n_random):
    every = list(GRID)
    for step in range(20):
        chosen = Schedule("sandwich", n_random).subnets(GRID, 42, step)
        assert len(chosen) == len(set(chosen)) == 2 + n_random
        assert chosen[0] == GRID.largest and chosen[-1] == GRID.smallest
        assert [every.index(subnet) for subnet in chosen] == sorted(every.index(subnet) for subnet in chosen)
        assert chosen == Schedule("sandwich", n_random).subnets(GRID, 42, step)  # a pure function


def test_a_sandwich_draws_every_middle_subnet_equally_often():
    n_steps = 500
    drawn = Counter(s for step in range(n_steps) for s in Schedule("sandwich", 2).subnets(GRID, 1, step)[1:-1])
    assert set(drawn) == set(GRID) - {GRID.largest, GRID.smallest}
    expected = n_steps * 2 / 10
    assert all(abs(count - expected) < 5 * expected**0.5 for count in drawn.values())


def test_a_sandwich_depends_on_seed_and_step():
    draws = {(seed, step): Schedule("sandwich").subnets(GRID, seed, step) for seed in (0, 1) for step in range(8)}
    assert len({draws[0, step] for step in range(8)}) > 3
    assert any(draws[0, step] != draws[1, step] for step in range(8))


@pytest.mark.parametrize("n_random", [0, 1, 3])
def test_a_light_sandwich_has_the_smallest_and_draws_from_all_others(n_random):
    n_steps, every = 600, list(GRID)
    drawn = Counter()
    for step in range(n_steps):
        *others, last = Schedule("light", n_random).subnets(GRID, 1, step)
        assert last == GRID.smallest and len(set(others)) == n_random and last not in others
        assert [every.index(subnet) for subnet in others] == sorted(every.index(subnet) for subnet in others)
        drawn.update(others)
    expected = n_steps * n_random / (len(GRID) - 1)
    assert all(abs(drawn[subnet] - expected) < 5 * expected**0.5 + 1 for subnet in every[:-1]), (
        "the largest like others"
    )


def test_a_ladder_goes_down_by_one_rung_in_each_step():
    shape = EncoderShape(n_layers=12, n_heads=12, head_dim=64, hidden=768, n_neurons=3072)
    steps = [Schedule("ladder").subnets(GRID, 42, step) for step in range(len(GRID) - 2)]
    assert all(chosen[0] == GRID.largest and chosen[-1] == GRID.smallest and len(chosen) == 3 for chosen in steps)
    flops = [encoder_flops(shape, chosen[1].slices(shape)) for chosen in steps]
    assert flops == sorted(flops, reverse=True) and len(set(flops)) > 5


def test_a_ladder_trains_every_subnet_in_between_equally_often_and_draws_nothing():
    n_rounds, n_middle = 3, len(GRID) - 2
    climbed = Counter(Schedule("ladder").subnets(GRID, 1, step)[1] for step in range(n_rounds * n_middle))
    assert climbed == {subnet: n_rounds for subnet in GRID if subnet not in (GRID.largest, GRID.smallest)}
    for step in range(n_middle):
        expected = Schedule("ladder").subnets(GRID, 7, step + 5 * n_middle)
        assert Schedule("ladder").subnets(GRID, 1, step) == expected, "neither the seed nor the round matters"


@pytest.mark.parametrize(("widths", "depths"), [((1,), (1,)), ((1, 0.5), (1,)), ((1,), (1, 0.5, 0.25))])
def test_a_ladder_of_a_grid_with_few_rungs(widths, depths):
    grid = SubnetGrid(widths, depths)
    assert Schedule("ladder").subnets(grid, 0, 5) == tuple(grid)


def test_a_small_grid_is_trained_whole():
    grid = SubnetGrid((1, 0.5), (1, 0.5))
    assert Schedule("sandwich", 2).subnets(grid, 0, 0) == tuple(grid)
    alone = SubnetGrid((1,), (1,))
    assert alone.largest in Schedule("sandwich", 0).subnets(alone, 0, 0)
    assert tuple(alone) == Schedule("light").subnets(alone, 0, 0)


def test_schedules_are_checked():
    with pytest.raises(SettingError, match=r"unknown schedule 'sandwhich' \(did you mean 'sandwich'\?\)"):
        Schedule("sandwhich")
    with pytest.raises(SettingError, match="n_random -1"):
        Schedule("sandwich", -1)


# Stages.


def test_the_part_of_the_grid_that_a_stage_trains():
    assert list(stage(subnets="full").grid(GRID)) == [Subnet()]
    assert list(stage(subnets="widths").grid(GRID)) == [Subnet(width) for width in (1, 0.75, 0.5, 0.25)]
    assert stage(subnets="grid").grid(GRID) == GRID


def test_the_teacher_of_a_student():
    assert stage(teacher_width="matching").teacher_of(Subnet(0.5, 0.75)) == Subnet(0.5, 1)
    assert stage(teacher_width="full").teacher_of(Subnet(0.5, 0.75)) == Subnet()
    assert stage(teacher_width="full").teacher_of(Subnet.of_layers(LayerSlice(0, 1, 1))) == Subnet()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "must be above 0"),
        ({"lr": -1e-5}, "must be above 0"),
        ({"lr": float("nan")}, "must be above 0"),
        ({"teacher": "none"}, "has no teacher"),
        ({"teacher": "none", "weights": LossWeights(0, 0.1, 0, 1)}, "has no teacher"),
        ({"teacher": "orignal"}, "did you mean 'original'"),
        ({"teacher_width": "matchng"}, "did you mean 'matching'"),
        ({"subnets": "width"}, "did you mean 'widths'"),
    ],
)
def test_stages_are_checked(changes, message):
    with pytest.raises(SettingError, match=message):
        stage(**changes)


# Recipes.


def test_the_papers_recipe_is_the_papers():
    paper = RECIPES["paper"]
    width, depth = paper.stages
    assert (width.subnets, width.teacher, width.weights) == ("widths", "original", LossWeights(1, 0.1, 0.1))
    assert (depth.subnets, depth.teacher, depth.weights) == ("grid", "previous", LossWeights(1, 1, 1))
    assert depth.teacher_width == "matching"
    assert paper.reduction == PUBLISHED
    assert {(s.epochs, s.lr, s.schedule.kind) for s in paper.stages} == {(3, 2e-5, "all")}


def test_the_labels_alone_teach_the_teacher_and_the_last_stage():
    assert TEACHER.weights == FINETUNE.weights == LABELS_ALONE
    assert (TEACHER.teacher, TEACHER.subnets) == ("none", "full")
    assert (FINETUNE.teacher, FINETUNE.subnets) == ("none", "grid")


def test_the_other_recipes_have_the_repairs():
    assert all(RECIPES[name].reduction == Reduction() for name in ("default", "two-stage"))


def test_the_default_recipe_is_a_sandwich():
    (sandwich,) = RECIPES["default"].stages
    assert (sandwich.subnets, sandwich.schedule.kind, sandwich.teacher) == ("grid", "sandwich", "original")


def test_stage_names_differ_so_that_their_dropout_does():
    for recipe in RECIPES.values():
        names = [s.name for s in (TEACHER, *recipe.stages, FINETUNE)]
        assert len(set(names)) == len(names)


def test_adjusted_changes_epochs_and_rates_and_adds_a_last_stage():
    paper = RECIPES["paper"]
    assert paper.adjusted() == paper
    changed = paper.adjusted(epochs=0.5, lr=1e-4, finetune=2)
    assert [s.name for s in changed.stages] == ["width", "depth", "finetune"]
    assert [s.epochs for s in changed.stages] == [0.5, 0.5, 2]
    assert {s.lr for s in changed.stages} == {1e-4}
    assert changed.reduction == PUBLISHED and changed.stages[0] == replace(paper.stages[0], epochs=0.5, lr=1e-4)
    width, depth, last = paper.adjusted(finetune=1, schedule="ladder").stages
    assert (width.schedule, depth.schedule, last.schedule) == (Schedule(), Schedule("ladder"), Schedule("ladder"))
    assert paper.adjusted(finetune=1).stages[-1] == replace(FINETUNE, epochs=1)
    with pytest.raises(SettingError, match="must be above 0"):
        paper.adjusted(epochs=0)


def test_another_rate_keeps_the_ratios_of_the_stages():
    ending = RECIPES["default"].adjusted(finetune=1)
    assert [stage.lr for stage in ending.stages] == [1e-4, 2e-5] and ending.lr == 1e-4
    assert ending.at_lr(ending.lr) == ending
    uneven = replace(ending, stages=(replace(ending.stages[0], lr=3e-4), replace(ending.stages[1], lr=3e-5)))
    assert uneven.at_lr(3e-4) == uneven, "to the last bit"
    assert [stage.lr for stage in ending.at_lr(3e-4).stages] == pytest.approx([3e-4, 6e-5])


def test_recipes_by_name():
    assert all(recipe_of(name) is recipe and recipe.name == name for name, recipe in RECIPES.items())
    assert isinstance(recipe_of("default"), Recipe)
    with pytest.raises(
        SettingError,
        match=r"unknown recipe 'papr' \(did you mean 'paper'\?\); known: default, two-stage, paper",
    ):
        recipe_of("papr")


def test_recipes_have_other_names_now():
    assert present_name("default", ["width", "depth", "finetune"]) == "two-stage"
    assert present_name("sandwich", ["sandwich"]) == present_name("default", ["sandwich"]) == "default"
    assert present_name("paper", ["width", "depth"]) == "paper"
    with pytest.raises(SettingError, match="'sandwich' is called 'default' now; known: default, two-stage, paper"):
        recipe_of("sandwich")
