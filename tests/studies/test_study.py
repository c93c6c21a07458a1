"""A study goes on where it stopped: what is trained is kept, and told apart by all that it depends on."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_job import small_plan, write_job, write_rows

from dynabert.errors import ModelFileError, NonFiniteError, SettingError
from dynabert.files import read_json, write_json
from dynabert.hooks import Hooks, StepReport
from dynabert.loading import load, load_tokenizer, save_model
from dynabert.recipes import RECIPES
from dynabert.results import load_result, load_sweep
from dynabert.run import train
from dynabert.studies.study import Study, studies_of
from dynabert.studies.trials import Trial
from dynabert.subnet import encoder_flops


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder, source = write_job(tmp_path_factory.mktemp("job"))
    train(encoder, source, encoder.parent / "run", plan=small_plan(), latency=None)
    return encoder.parent / "run"


class Count(Hooks):
    """Counts steps, and stops at one of them as a crash would."""

    def __init__(self, stop: int | None = None) -> None:
        self.steps, self.stop = 0, stop

    def stepped(self, report: StepReport) -> None:
        self.steps += 1
        if self.steps == self.stop:
            raise KeyboardInterrupt


def test_a_trial_of_the_runs_own_plan_predicts_as_the_run_does(run: Path) -> None:
    study = Study(run)
    trial = study.trained("same", study.plan, seed=42)
    sweep = load_sweep(run)
    assert [point.name for point in trial.points] == [row.subnet for row in sweep.rows]
    for row in sweep.rows:
        assert np.mean(trial.logits[row.subnet].argmax(1) == study.labels) == pytest.approx(row.metric)
    elastic = load_result(run)
    assert [point.flops for point in trial.points] == [
        encoder_flops(elastic.shape, elastic.slices(subnet)) for subnet in elastic.grid
    ]
    assert trial.training_flops == pytest.approx(study.budget_flops)


def test_what_the_run_has_trained_itself_is_not_trained_again(run: Path) -> None:
    count = Count()
    study = Study(run, hooks=count)
    own = study.trained("own", study.plan, seed=42)
    assert count.steps == 0
    other = replace(study.plan, order="reversed")
    assert any((own.logits[name] != logits).any() for name, logits in study.trained("x", other, seed=42).logits.items())
    assert count.steps > 0
    assert not list((study.folder / "running").iterdir()), "weights are not kept"


def test_a_trial_that_is_kept_is_not_trained_again(run: Path) -> None:
    count = Count()
    study = Study(run, hooks=count)
    plan = replace(study.plan, order="random")
    first = study.trained("again", plan, seed=42)
    assert count.steps > 0
    count.steps = 0
    second = study.trained("by another name", plan, seed=42)
    assert count.steps == 0
    assert all(np.array_equal(first.logits[name], second.logits[name]) for name in first.logits)
    study.trained("again", replace(plan, depth_rule="prefix"), seed=42)
    assert count.steps > 0, "another plan is another trial"


def test_an_interrupted_trial_goes_on_to_the_same_predictions(run: Path) -> None:
    plan = replace(Study(run).plan, order="as-is")
    whole = Study(run).trained("whole", plan, seed=42)
    next((run / "studies" / "trials").glob("whole-*")).unlink()
    with pytest.raises(KeyboardInterrupt):
        Study(run, hooks=Count(stop=20)).trained("cut", plan, seed=42)
    count = Count()
    resumed = Study(run, hooks=count).trained("cut", plan, seed=42)
    assert 0 < count.steps < whole.n_steps
    assert all(np.array_equal(whole.logits[name], resumed.logits[name]) for name in whole.logits)


def test_a_training_that_fails_leaves_no_weights_and_is_not_tried_again(run: Path) -> None:
    count = Count()
    study = Study(run, hooks=count)
    plan = replace(study.plan, recipe=study.recipe.at_lr(1e30))
    with pytest.raises(NonFiniteError) as failed:
        study.trained("diverges", plan, seed=42)
    assert count.steps > 0
    assert not list((study.folder / "running").iterdir())
    count.steps = 0
    with pytest.raises(NonFiniteError, match=re.escape(str(failed.value))):
        study.trained("again", plan, seed=42)
    assert count.steps == 0


def test_what_was_kept_before_a_run_was_forced_to_go_on_by_other_settings_is_not_of_it(
    run: Path, tmp_path: Path
) -> None:
    plan = replace(Study(run).plan, order="random")
    Study(run).trained("before", plan, seed=42)
    forced = tmp_path / "forced"
    shutil.copytree(run, forced)
    count = Count()
    Study(forced, hooks=count).trained("same", plan, seed=42)
    assert count.steps == 0
    said = read_json(forced / "run.json")
    write_json(forced / "run.json", {**said, "forced": [{"time": 1.0, "differed": ["training.clip_norm 1 or 2"]}]})
    Study(forced, hooks=count).trained("other", plan, seed=42)
    assert count.steps > 0


def test_all_trainings_of_a_study_are_evaluated_equally_often(run: Path, tmp_path: Path) -> None:
    often = small_plan()
    often = replace(often, training=replace(often.training, evaluate_every=5))
    encoder, source = write_job(tmp_path)
    train(encoder, source, tmp_path / "run", plan=often, latency=None)
    count = Count()
    study = Study(tmp_path / "run", hooks=count)
    assert study.plan.training.evaluate_every is None
    study.trained("own", study.plan, seed=42)
    assert count.steps > 0, "the run had more weights to choose from than the others have"


def test_another_seed_has_a_teacher_of_its_own(run: Path) -> None:
    study = Study(run)
    assert study.teacher(42) == run / "teacher"
    other = load(study.teacher(43)).state_dict()
    own = load(run / "teacher").state_dict()
    assert any(not own[name].equal(other[name]) for name in own)


def test_a_budget_makes_a_recipe_cheaper_and_the_stages_keep_their_shares(run: Path) -> None:
    study = Study(run, budget=0.5)
    recipe = study.at_budget(study.plan.recipe)
    assert [stage.epochs for stage in recipe.stages] == [0.5, 0.5]
    assert study.budget_flops == pytest.approx(0.5 * Study(run).budget_flops)
    one = replace(study.plan.recipe, stages=study.plan.recipe.stages[1:])
    assert study.at_budget(one).stages[0].epochs > 0.5


def test_a_damaged_trial_is_said(run: Path, tmp_path: Path) -> None:
    study = Study(run)
    trial = study.trained("same", study.plan, seed=42)
    path = tmp_path / "trials" / "x.safetensors"
    trial.save(path)
    assert Trial.load(path).points == trial.points
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelFileError, match="delete it, and it is trained again"):
        Trial.load(path)


def test_every_point_has_its_times_as_shares_of_the_full_networks(run: Path) -> None:
    study = Study(run)
    times = [point.time for point in study.trained("same", study.plan, seed=42).points]
    assert all(0 < single < 5 and 0 < together < 5 for single, together in times)


def test_an_encoder_that_was_replaced_is_noticed(run: Path) -> None:
    study = Study(run)
    study.start(42)
    encoder, study = Path(study.saved.model), Study(run)
    assert encoder.is_absolute()
    other = load(encoder)
    with torch.no_grad():
        next(other.base_model.parameters()).add_(1)
    kept = encoder.rename(encoder.with_name("kept"))
    try:
        save_model(other, encoder, tokenizer=load_tokenizer(kept))
        with pytest.raises(ModelFileError, match="has changed since; bring it back, or train again"):
            study.start(42)
    finally:
        shutil.rmtree(encoder)
        kept.rename(encoder)


def test_runs_of_the_same_rows_are_not_a_mean_over_tasks(run: Path) -> None:
    assert [study.run for study in studies_of([run])] == [run]
    with pytest.raises(SettingError, match=r"have the same validation rows, which would count twice; .*--seeds"):
        studies_of([run, run])


def test_another_seed_starts_from_an_encoder_without_a_pooler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, source = write_job(tmp_path, n_layers=4, masked=True)  # without a pooler, which a seed then draws
    train(encoder, source, tmp_path / "run", plan=small_plan(), latency=None)
    study = Study(tmp_path / "run")
    own, other = (study.start(seed).model.state_dict() for seed in (42, 43))
    drawn = {name for name in own if not own[name].equal(other[name])}
    assert drawn and all("pooler" in name or name.startswith("classifier") for name in drawn)
    first = study.teacher(43)
    caplog.clear()
    monkeypatch.setattr("dynabert.studies.study.train_teacher", None)
    assert study.teacher(43) == first and not caplog.text, "once in a study"


def test_a_limited_study_has_the_rows_of_the_run_too(run: Path) -> None:
    study = Study(run, limit=40)
    whole = Study(run)
    assert len(study.rows(42).train) < len(study.rows(42, of_run=True).train) == len(whole.rows(42).train)
    assert study.is_limited and not whole.is_limited
    assert study.teacher_flops == whole.teacher_flops > 0


def test_runs_of_different_recipes_want_one_named(run: Path, tmp_path: Path) -> None:
    encoder, source = write_job(tmp_path)
    write_rows(tmp_path / "dev.csv", 40, seed=5)
    plan = replace(small_plan(), recipe=RECIPES["default"].adjusted(epochs=1))
    train(encoder, source, tmp_path / "run", plan=plan, latency=None)
    with pytest.raises(SettingError, match=r"of different recipes: .* by two-stage, .* by default; .*--recipe"):
        studies_of([run, tmp_path / "run"])
    assert len(studies_of([run, tmp_path / "run"], recipe="paper")) == 2
