"""Early exit on the sizes of a run: calibrated on the select rows, measured on the validation rows."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_job import small_plan, write_job

from dynabert.baselines import deebert, fastbert
from dynabert.cascade import Cascade
from dynabert.errors import ModelFileError, SettingError
from dynabert.exits import fastest_agreeing
from dynabert.hooks import Hooks, StepReport
from dynabert.measure import labels_of, predict
from dynabert.results import load_result, load_sweep, load_teacher, rows_of
from dynabert.run import train
from dynabert.studies.size_exit import cascades_of_run, exits_of_run, load_exits
from dynabert.studies.study import Study
from dynabert.subnet import Subnet, SubnetGrid


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder, source = write_job(tmp_path_factory.mktemp("job"), n_layers=4)
    train(encoder, source, encoder.parent / "run", plan=small_plan(), latency=None)
    return encoder.parent / "run"


class Count(Hooks):
    """Counts steps, remembers at which of them each training began, and stops at one as a crash would."""

    def __init__(self, stop: int | None = None) -> None:
        self.steps, self.stop, self.started_at = 0, stop, []

    def started(self, *about: object) -> None:
        self.started_at.append(self.steps)

    def stepped(self, report: StepReport) -> None:
        self.steps += 1
        if self.steps == self.stop:
            raise KeyboardInterrupt


def test_sizes_get_exits_that_agree_with_the_full_network(run: Path) -> None:
    result = exits_of_run(run, agreements=(1.0, 0.5), budget=0.5, lr=1e-3)
    plain = {point.subnet: point for point in result.points if point.asked is None}
    assert set(plain) == {"w1-d1", "w0.5-d1"}
    whole = plain["w1-d1"]
    assert (whole.agreement, whole.n_layers, whole.flops) == (1, 4, 1), "without ramps"
    elastic, study = load_result(run), Study(run)
    own = predict(elastic.at(Subnet(0.5, 1.0)), study.rows(42).validation)
    assert plain["w0.5-d1"].metric == pytest.approx(100 * np.mean(own.argmax(1) == study.labels))
    assert plain["w0.5-d1"].flops == pytest.approx(0.5)
    early = [point for point in result.points if point.asked is not None]
    assert early and all(point.n_layers <= plain[point.subnet].n_layers for point in early)
    reached = {(point.subnet, point.asked) for point in early}
    wanted = {(name, share) for name in plain for share in (1.0, 0.5)}
    assert reached | set(result.unreached) == wanted and not reached & set(result.unreached)
    assert {share for _, share in result.unreached} >= {1.0}, "no sample shows that all rows agree"
    assert json.loads((run / "studies" / "exits.json").read_text())["points"][0]["subnet"] == "w1-d1"
    assert result.n_select == len(predict(elastic.at(Subnet()), study.rows(42).select))
    assert "rows could)" not in result.table(), "no number of rows shows that all agree"
    assert "(299 rows could)" in replace(result, unreached=(("w1-d1", 1.0), ("w1-d1", 0.99))).table()
    assert "rows could)" not in replace(result, unreached=(("w1-d1", 0.5),)).table(), "these rows could, and do not"
    assert "no exit" in result.table() and f"calibrated on {result.n_select} select rows" in result.table()


@pytest.mark.parametrize(("kind", "rule"), [("fastbert", "normalised"), ("deebert", "entropy")])
def test_ramps_are_those_of_the_method_asked_for(run: Path, kind: str, rule: str) -> None:
    """At ten times the rate of the run's recipe: the answers of the method itself, trained so."""
    result = exits_of_run(run, subnets=[Subnet()], agreements=(0.5,), ramps=kind, budget=0.2)
    study = Study(run, budget=0.2)
    alone = {"deebert": deebert, "fastbert": fastbert}[kind].train(
        study.elastic,
        study.rows(42).train,
        training=study.plan.training,
        lr=10 * study.recipe.lr,
        budget_flops=study.budget_flops,
    )
    assert alone.rule == rule
    rows = study.rows(42)
    threshold = fastest_agreeing(alone.all_exits(rows.select), 0.5, rule=rule)
    (point,) = (point for point in result.points if point.asked is not None)
    assert point.threshold == threshold and point.n_layers < 4
    answers = replace(alone, thresholds=(threshold,)).predict(f"s{threshold:g}", rows.validation)
    assert point.metric == pytest.approx(100 * np.mean(answers.logits.argmax(1) == study.labels))
    assert result.ramps == kind and f"early exit at {kind} ramps" in result.table()


@pytest.mark.parametrize("kind", ["fastbert", "deebert"])
def test_the_ramps_of_the_last_study_are_loaded_and_answer_as_it_says(run: Path, kind: str) -> None:
    """Those of another rate that were trained since are left alone."""
    settings = {"subnets": [Subnet()], "agreements": (0.5,), "budget": 0.2, "ramps": kind}
    exits_of_run(run, **settings, lr=1e-3)
    exits_of_run(run, **settings, lr=3e-3)
    exits_of_run(run, **settings, lr=1e-3)
    (point,) = (one for one in json.loads((run / "studies" / "exits.json").read_text())["points"] if one["asked"])
    exits, rows = load_exits(run, "w1-d1"), rows_of(run).validation
    answers = exits.predict(rows, point["threshold"])
    assert point["metric"] == pytest.approx(100 * np.mean(answers.logits.argmax(1) == labels_of(rows)))
    assert point["n_layers"] == pytest.approx(answers.n_layers.mean())
    with pytest.raises(ModelFileError, match=r"has exits of w1-d1; for w0.25-d1 run `dynabert exits .* --subnets w0.2"):
        load_exits(run, Subnet(0.25, 1.0))


def test_ramps_of_other_weights_or_damaged_ones_are_not_loaded(run: Path, tmp_path: Path) -> None:
    exits_of_run(run, subnets=[Subnet()], agreements=(0.5,), budget=0.2)
    other, damaged = (shutil.copytree(run, tmp_path / name) for name in ("other", "damaged"))
    manifest = other / "elastic" / "MANIFEST.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(ModelFileError, match="are of other weights than it has now; run `dynabert exits"):
        load_exits(other, Subnet())
    for path in (damaged / "studies" / "ramps").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="holds no sound ramps"):
        load_exits(damaged, Subnet())
    shutil.rmtree(damaged / "studies")
    with pytest.raises(ModelFileError, match="has no exits yet"):
        load_exits(damaged, Subnet())


def test_sizes_that_can_have_no_ramps_are_refused_before_any_is_trained(run: Path) -> None:
    count = Count()
    with pytest.raises(SettingError, match="has one layer here"):
        exits_of_run(run, subnets=[Subnet(), Subnet(0.5, 0.25)], lr=7e-4, hooks=count)
    assert count.steps == 0


def test_a_run_without_its_teacher_is_not_looked_for_on_the_hub(run: Path, tmp_path: Path, monkeypatch) -> None:
    """The folder of a run one level down has a name that a repository may have."""
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(shutil.copytree(run, Path("mine")) / "teacher")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    study, another = Study(Path("mine")), replace(Study(Path("mine")).plan, order="random")
    asks = (
        lambda: study.network(42),
        lambda: study.trained("another", another, seed=42),
        lambda: load_teacher("mine", load_result("mine")),
    )
    for ask in asks:
        with pytest.raises(ModelFileError, match="mine/teacher is missing; bring it back"):
            ask()


def test_a_lower_agreement_is_never_slower(run: Path) -> None:
    result = exits_of_run(run, subnets=[Subnet()], agreements=(0.8, 0.6, 0.4), budget=0.5, lr=1e-3)
    thresholds = [point.threshold for point in result.points if point.asked is not None]
    assert len(thresholds) > 1 and thresholds == sorted(thresholds)


def test_ramps_of_a_finished_size_are_kept(run: Path) -> None:
    """Stopped in the second size, a study trains that one alone; then none, to the same answers."""
    settings = {"agreements": (0.5,), "budget": 0.4, "lr": 1e-3}
    count = Count()
    whole = exits_of_run(run, **settings, hooks=count)
    folder, each = run / "studies" / "ramps", count.started_at
    assert len(each) == 2 and len(list(folder.iterdir())) >= 2
    shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt):
        exits_of_run(run, **settings, hooks=Count(stop=each[1] + 1))
    rest = Count()
    again = exits_of_run(run, **settings, hooks=rest)
    assert rest.steps == count.steps - each[1]
    none = Count()
    exits_of_run(run, **settings, hooks=none)
    assert none.steps == 0
    for here, there in zip(again.points, whole.points, strict=True):
        assert replace(here, time=there.time) == there
    exits_of_run(run, subnets=[Subnet()], **{**settings, "lr": 2e-3}, hooks=none)
    assert none.steps > 0, "another learning rate gives other ramps"


def test_damaged_ramps_are_named(run: Path) -> None:
    settings = {"subnets": [Subnet()], "agreements": (0.5,), "budget": 0.3, "lr": 1e-3}
    before = set((run / "studies").glob("ramps/*"))
    exits_of_run(run, **settings)
    (path,) = set((run / "studies" / "ramps").iterdir()) - before
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=f"{path.name} holds no sound ramps.*delete it"):
        exits_of_run(run, **settings)


def test_a_cascade_agrees_with_the_full_network_and_trains_nothing(run: Path) -> None:
    result = cascades_of_run(run, agreements=(0.8, 0.5))
    elastic, study = load_result(run), Study(run)
    by_asked = {(point.subnet, point.asked): point for point in result.points}
    assert {name for name, asked in by_asked if asked is None} == {"w0.5-d1", "w0.5-d0.5"}, "the narrowest, all depths"
    reached = [key for key in by_asked if key[1] is not None]
    assert reached and all(name in ("w0.5-d1+w1-d1", "w0.5-d0.5+w1-d1") for name, _ in reached)
    full = predict(elastic.at(Subnet()), study.rows(42).validation)
    for key in reached:
        point = by_asked[key]
        run_of = Cascade(elastic, key[0].split("+")).predict(study.rows(42).validation, point.threshold)
        assert point.agreement == np.mean(run_of.logits.argmax(1) == full.argmax(1))
        assert point.n_layers == pytest.approx(run_of.n_layers.mean())
    saved = json.loads((run / "studies" / "cascades.json").read_text())
    assert len(saved["points"]) == len(result.points)
    table = result.table()
    assert all(f"{by_asked[key].threshold:.4g}" in table for key in reached), "what Cascade.predict takes"
    for subnets in ([Subnet()], [Subnet(0.5, 0.5), Subnet()]):
        with pytest.raises(SettingError, match="is no cascade"):
            cascades_of_run(run, subnets=subnets)


def test_a_grid_without_the_full_network_ends_at_its_largest_size(tmp_path: Path) -> None:
    encoder, source = write_job(tmp_path, n_layers=4)
    plan = replace(small_plan(), grid=SubnetGrid((0.5,), (1.0, 0.5)))
    train(encoder, source, tmp_path / "run", plan=plan, latency=None)
    result = cascades_of_run(tmp_path / "run", agreements=(0.5,))
    assert result.largest == "w0.5-d1" and "largest size, w0.5-d1," in result.table()
    assert {name for point in result.points for name in point.subnet.split("+")} == {"w0.5-d0.5", "w0.5-d1"}
    (own,) = (row for row in load_sweep(tmp_path / "run").rows if row.subnet == "w0.5-d1")
    assert result.full == pytest.approx(100 * own.metric)
    exits = exits_of_run(tmp_path / "run", agreements=(0.5,), budget=0.2, lr=1e-3)
    assert {point.subnet for point in exits.points} == {"w0.5-d1"}
    with pytest.raises(SettingError, match=r"w0\.5-d0\.25 has one layer here, so nothing can leave early"):
        exits_of_run(tmp_path / "run", subnets=[Subnet(0.5, 0.25)])


def test_shares_out_of_range_are_refused(run: Path) -> None:
    with pytest.raises(SettingError, match="above 0 and at most 1"):
        exits_of_run(run, agreements=(1.5,))
    for settings in ({"budget": 0}, {"budget": float("inf")}, {"lr": 0}):
        with pytest.raises(SettingError, match=r"(budget|learning rate) (0|inf) must be above 0, and finite"):
            exits_of_run(run, **settings)
    with pytest.raises(SettingError, match=r"unknown ramps 'berxit'.*known: fastbert, deebert"):
        exits_of_run(run, ramps="berxit")
