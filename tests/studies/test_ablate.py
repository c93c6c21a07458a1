"""One factor changes at a time, at the same cost, and the differences are those of the predictions."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_job import small_plan, write_job, write_rows
from small_studies import made_sweep

from dynabert.errors import NonFiniteError, SettingError
from dynabert.plan import Plan
from dynabert.recipes import RECIPES
from dynabert.run import train
from dynabert.studies.ablate import ablate
from dynabert.studies.compare import compare
from dynabert.studies.factors import ALL_FACTORS, FACTORS, variants_of
from dynabert.studies.study import Study
from dynabert.studies.trials import Point, Trial

TWO_STAGE = Plan(recipe=RECIPES["two-stage"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder, source = write_job(tmp_path_factory.mktemp("job"))
    train(encoder, source, encoder.parent / "run", plan=small_plan(), latency=None)
    return encoder.parent / "run"


def test_every_factor_changes_the_default_plan() -> None:
    variants = variants_of(TWO_STAGE, tuple(FACTORS))
    assert {factor for factor, _ in variants} == set(FACTORS)
    assert {variant for factor, variant in variants if factor == "rewiring"} >= {
        "random",
        "reversed",
        "published scores",
    }
    assert ("rewiring", "importance") not in variants, "that is the plan itself"
    assert ("teacher-width", "matching") not in variants
    assert ("schedule", "all") not in variants


def test_a_recipe_of_one_stage_has_no_variant_without_assistant() -> None:
    one = Plan(recipe=RECIPES["default"])
    assert not variants_of(one, ["assistant"])
    assert {variant for _, variant in variants_of(one, ["schedule"])} == {"all", "light", "ladder"}


@pytest.mark.parametrize("recipe", ["two-stage", "paper"])
def test_no_variant_learns_from_a_cut_teacher_that_was_never_trained_at_that_size(recipe: str) -> None:
    plan = Plan(recipe=RECIPES[recipe])
    variants = variants_of(plan, tuple(FACTORS))
    taught = [(stage.teacher, stage.teacher_width) for plan in variants.values() for stage in plan.recipe.stages]
    assert taught and ("original", "matching") not in taught
    alone = [variants["assistant", name].recipe.stages[-1] for name in ("original teacher", "no width stage")]
    assert [(stage.teacher, stage.teacher_width) for stage in alone] == 2 * [("original", "full")]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_last_stage_on_labels_is_short_and_stays_on_labels(recipe: str) -> None:
    plan = Plan(recipe=RECIPES[recipe])
    added = variants_of(plan, ["finetune"])["finetune", "with"].recipe.stages
    assert added[-1].name == "finetune" and added[-1].epochs == added[-2].epochs / 4
    assert added[-1].schedule == added[-2].schedule
    ending = Plan(recipe=RECIPES[recipe].adjusted(finetune=1))
    for (_, variant), changed in variants_of(ending, ["distillation"]).items():
        last = changed.recipe.stages[-1]
        assert (last.name, last.teacher) == ("finetune", "none") and last.weights.labels == 1, variant
    assert ("finetune", "without") in variants_of(ending, tuple(FACTORS))


def test_a_recipe_without_a_previous_stage_has_no_teacher_width() -> None:
    assert not variants_of(Plan(recipe=RECIPES["default"]), ["teacher-width"])


def test_a_variant_differs_in_its_factor_alone() -> None:
    base = TWO_STAGE
    variants = variants_of(base, tuple(FACTORS))
    assert replace(variants["rewiring", "random"], order="importance") == base
    assert replace(variants["depth-rule", "prefix"], depth_rule="paper") == base
    changed = variants["teacher-width", "full"].recipe
    assert changed.stages[0] == base.recipe.stages[0]
    assert replace(changed.stages[1], teacher_width="matching") == base.recipe.stages[1]
    assert all(stage.teacher == "none" for stage in variants["distillation", "labels alone"].recipe.stages)


def test_an_unknown_factor_or_variant_is_refused() -> None:
    with pytest.raises(SettingError, match="learning-rate"):
        variants_of(Plan(), ["colour"])
    known = "known: importance, random, reversed, as-is, "
    with pytest.raises(
        SettingError, match=rf"unknown variant of rewiring 'randm' \(did you mean 'random'\?\); {known}"
    ):
        variants_of(Plan(), ["rewiring=randm"])
    with pytest.raises(SettingError, match=r"'rewiring=' names no variant; give rewiring=NAME for one"):
        variants_of(Plan(), ["rewiring="])
    with pytest.raises(SettingError, match=r"'learning-rate=1e-4': the variants of learning-rate are .*; give --lrs"):
        variants_of(Plan(), ["learning-rate=1e-4"])
    with pytest.raises(SettingError, match="'schedule=sandwich' is what the recipe default does already"):
        variants_of(Plan(recipe=RECIPES["default"]), ["schedule=sandwich"])
    with pytest.raises(SettingError, match="no variant differs in it; --recipe two-stage has some"):
        variants_of(Plan(recipe=RECIPES["default"]), ["teacher-width=full"])


def test_variants_that_teach_a_regression_nothing_are_left_out() -> None:
    published, asked = Plan(recipe=RECIPES["paper"]), ("distillation", "logits alone")
    assert asked in variants_of(published, ["distillation"])
    assert asked not in variants_of(published, ["distillation"], regression=True), "it has no loss of the logits"
    assert asked in variants_of(TWO_STAGE, ["distillation"], regression=True)
    with pytest.raises(SettingError, match="leaves a regression nothing to learn from"):
        variants_of(published, ["distillation=logits alone"], regression=True)


def test_of_equal_variants_one_is_trained() -> None:
    found = variants_of(Plan(order="as-is"), ["rewiring"])
    assert ("rewiring", "importance") in found and ("rewiring", "per-example scores") not in found


def test_a_regression_is_compared_and_ablated(tmp_path: Path) -> None:
    encoder, source = write_job(tmp_path)
    for path in (source.train, source.validation):
        assert path is not None
        path.write_text(
            re.sub(r",(good|bad)\b", lambda label: ",1.5" if label[1] == "good" else ",0.5", path.read_text())
        )
    train(encoder, source, tmp_path / "run", plan=small_plan(), latency=None)
    found = ablate(tmp_path / "run", factors=["distillation=labels alone"], n_seeds=1, lrs=(1e-3,), budget=0.3)
    assert found.metric == "pearson" and {effect.where for effect in found.effects} == {"mean", "w0.5-d0.5"}
    beside = compare(tmp_path / "run", methods=["first-layers"], budget=0.3)
    row = next(row for row in beside.standings if (row.method, row.share) == ("first-layers", 0.5))
    assert row.difference is not None and row.difference.low <= row.difference.mean <= row.difference.high


def test_one_variant_of_a_factor_can_be_asked_for() -> None:
    some = variants_of(TWO_STAGE, ["rewiring=random", "schedule", "recipe=paper"])
    every = variants_of(TWO_STAGE, ["rewiring", "schedule", "recipe"])
    assert set(some) == {("rewiring", "random"), ("recipe", "paper")} | {key for key in every if key[0] == "schedule"}
    assert all(plan == every[key] for key, plan in some.items())


def test_an_ablation_compares_predictions_at_equal_cost_and_goes_on(run: Path) -> None:
    settings = {"factors": ["rewiring=reversed", "learning-rate"], "n_seeds": 2, "lrs": (1e-4, 2e-3), "budget": 0.5}
    result = ablate(run, **settings)
    files = sorted((run / "studies" / "trials").iterdir())
    assert {effect.factor for effect in result.effects} == {"rewiring", "learning-rate"}
    assert {effect.where for effect in result.effects} == {"mean", "w0.5-d0.5"}
    assert json.loads((run / "studies" / "ablate.json").read_text())["rows"][0]["factor"] == "rewiring"

    study = Study(run, budget=0.5)
    spent = [Trial.load(file).training_flops for file in files]
    assert max(spent) / min(spent) < 1.1  # whole steps
    assert spent[0] == pytest.approx(study.budget_flops, rel=0.1)

    by_name = {}
    for file in files:
        by_name.setdefault(file.name.split("-lr")[0], {})[file.stem.rsplit("-", 1)[0]] = Trial.load(file)
    effect = next(row for row in result.effects if (row.variant, row.where) == ("reversed", "mean"))
    chosen = [by_name["rewiring-reversed"][f"rewiring-reversed-lr{effect.lr:g}-{seed}"] for seed in (42, 43)]
    base = [by_name["base"][f"base-lr{result.base_lr:g}-{seed}"] for seed in (42, 43)]

    def mean(trials: list[Trial]) -> float:
        return 100 * np.mean([logits.argmax(1) == study.labels for run in trials for logits in run.logits.values()])

    assert effect.difference == pytest.approx(mean(chosen) - mean(base))
    assert effect.low <= effect.difference <= effect.high
    of_seed = {name: trial for name, trial in by_name["rewiring-reversed"].items() if name.endswith("-42")}
    tried = {float(name.split("-lr")[1].removesuffix("-42")): trial.select_score for name, trial in of_seed.items()}
    assert len(tried) == 3 and set(tried) < {3.33e-5, 1e-4, 2e-3, 6e-3}, "one is tried beyond the better of two"
    assert effect.lr == max(sorted(tried, key=(1e-4, 2e-3, 3.33e-5, 6e-3).index), key=tried.__getitem__)

    times = [file.stat().st_mtime_ns for file in files]
    assert ablate(run, **settings) == result
    assert [file.stat().st_mtime_ns for file in files] == times, "nothing is trained again"
    assert "reversed" in result.table() and "Holm" in result.table()


def test_recipes_are_compared_with_the_papers_too(run: Path) -> None:
    result = ablate(run, factors=["recipe=paper", "recipe=default"], n_seeds=1, lrs=(1e-3,), budget=0.5)
    rows = {(row.variant, row.against, row.where): row for row in result.effects}
    assert result.recipe == "two-stage" and {(variant, against) for variant, against, _ in rows} == {
        ("paper", "base"),
        ("default", "base"),
        ("default", "paper"),
    }
    for where in ("mean", "w0.5-d0.5"):
        beside, paper, default = (
            rows[(*pair, where)] for pair in (("default", "paper"), ("paper", "base"), ("default", "base"))
        )
        assert beside.difference == pytest.approx(default.difference - paper.difference)
        assert beside.low <= beside.difference <= beside.high and beside.metric == default.metric


def test_another_recipe_can_be_varied_at_the_cost_of_the_runs(run: Path) -> None:
    result = ablate(run, factors=["schedule"], n_seeds=1, lrs=(1e-3,), budget=0.5, recipe="default")
    assert result.recipe == "default" and {row.variant for row in result.effects} == {"all", "light", "ladder"}
    trial = next(Trial.load(file) for file in (run / "studies" / "trials").glob("schedule-ladder-*"))
    assert trial.training_flops == pytest.approx(Study(run, budget=0.5).budget_flops, rel=0.1)
    with pytest.raises(SettingError, match="nothing to vary in the recipe default by assistant, teacher-width"):
        ablate(run, factors=["assistant", "teacher-width"], recipe="default")
    with pytest.raises(SettingError, match=r"nothing to vary .* by learning-rate; there may be with two rates"):
        ablate(run, factors=["learning-rate"], lrs=(1e-3,))
    with pytest.raises(SettingError, match=r"no factors given; .* rewiring"):
        ablate(run, factors=[])
    with pytest.raises(SettingError, match="unknown recipe 'pap'"):
        ablate(run, recipe="pap")


def test_settings_out_of_range_are_refused(run: Path) -> None:
    with pytest.raises(SettingError, match="must be above 0"):
        ablate(run, n_seeds=0)
    with pytest.raises(SettingError, match="must be above 0"):
        ablate(run, budget=0)


def test_all_factors_that_the_field_asks_for_are_there() -> None:
    asked = {"rewiring", "distillation", "assistant", "teacher-width", "schedule", "finetune", "depth-rule"}
    assert asked | {"learning-rate", "recipe"} == set(ALL_FACTORS)


def test_tasks_are_averaged(run: Path, tmp_path: Path) -> None:
    encoder, source = write_job(tmp_path)
    assert source.validation is not None
    write_rows(source.validation, 40, seed=9)  # rows of its own
    train(encoder, source, tmp_path / "run", plan=small_plan(seed=7), latency=None)
    settings = {"factors": ["schedule"], "n_seeds": 1, "lrs": (2e-3,), "budget": 0.3}
    alone = [ablate(folder, **settings) for folder in (run, tmp_path / "run")]
    both = ablate(run, tmp_path / "run", **settings)
    for place, effect in enumerate(both.effects):
        parts = [study.effects[place] for study in alone]
        assert effect.difference == pytest.approx(np.mean([part.difference for part in parts]))
        assert effect.high - effect.low <= max(part.high - part.low for part in parts) + 1e-9
    assert both.base["mean"] == pytest.approx(np.mean([study.base["mean"] for study in alone]))


def test_rates_are_averaged_though_one_is_the_base_of_a_task_and_one_fails(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is trained: which rate is the best of a task, and what it predicts, is made up."""
    encoder, source = write_job(tmp_path)
    assert source.validation is not None
    write_rows(source.validation, 40, seed=9)  # rows of its own
    train(encoder, source, tmp_path / "run", plan=small_plan(seed=7), latency=None)
    best = {run: 1e-4, tmp_path / "run": 3e-4}

    def made(study: Study, name: str, plan: Plan, *, seed: int) -> Trial:
        if plan.recipe.lr > 8e-4:
            raise NonFiniteError("NaN in 3 steps")
        answers = np.eye(2)[study.labels if plan.recipe.lr == best[study.run] else 1 - study.labels]
        points = tuple(Point(size.name, answers[0, study.labels[0]], 1, 1, 2, (1, 1)) for size in study.plan.grid)
        return Trial(name, 1e9, 9, points, {point.name: answers for point in points}, made_sweep())

    monkeypatch.setattr(Study, "trained", made)
    result = ablate(*best, factors=["learning-rate"], n_seeds=1, lrs=(1e-4, 3e-4, 9e-4), budget=0.3)
    rows = {(row.variant, row.where): row for row in result.effects}
    assert {variant for variant, _ in rows} == {"0.0001", "0.0003"}, "each is the base of one task"
    assert [rows[variant, "mean"].difference for variant in ("0.0001", "0.0003")] == [-50, -50]
    assert "learning rate 0.0009 is not chosen: NaN in 3 steps" in caplog.text
    alone = ablate(run, factors=["learning-rate"], n_seeds=1, lrs=(1e-4, 3e-4, 9e-4), budget=0.3)
    assert {row.variant for row in alone.effects} == {"0.0003"}, "nothing is changed by the rate that it has"


def test_plans_that_differ_in_rate_and_length_alone_are_no_variants() -> None:
    longer = Plan(recipe=RECIPES["two-stage"].adjusted(epochs=1, lr=1e-4))
    assert {variant for _, variant in variants_of(longer, ["recipe"])} == {"paper", "default"}
