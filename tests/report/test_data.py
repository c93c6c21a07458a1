"""What is read of a run folder: every part that is there, and a line for one that cannot be used."""

import json
from dataclasses import replace

import pytest
from small_studies import (
    EFFECTS,
    STANDINGS,
    beside,
    deployed_sweep,
    made_sweep,
    standing,
    write_ablation,
    write_comparison,
    write_deployed,
)

from dynabert.errors import ModelFileError
from dynabert.files import write_json
from dynabert.report.data import collect
from dynabert.report.differences import gap_figure
from dynabert.report.studies import ABLATED_FILE, COMPARED_FILE, OWN_METHOD, OWN_RUN, Studies, Trainings
from dynabert.results import SWEEP_FILE, deployed_of
from dynabert.studies.standings import CASCADE, OURS


@pytest.fixture
def run(tmp_path):
    """A run folder with a sweep, and no model."""
    write_json(tmp_path / "run.json", {"model": "an-encoder"})
    made_sweep().to_json(tmp_path / SWEEP_FILE)
    return tmp_path


def line_of(contents, part):
    """The one line that says why a part is left out."""
    lines = [line for line in contents.left_out if line.startswith(f"{part}: ")]
    assert len(lines) == 1, contents.left_out
    assert "\n" not in lines[0]
    return lines[0]


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="not a run folder"):
        collect(tmp_path)


def test_a_run_that_has_only_begun_shows_its_settings(tmp_path):
    write_json(tmp_path / "run.json", {"model": "an-encoder"})
    contents = collect(tmp_path)
    assert contents.settings == {"model": "an-encoder"}
    assert (contents.own, contents.metrics, contents.importance, contents.network) == (None, [], None, (None, None))
    assert contents.sweeps == {} and contents.studies == Studies()
    assert line_of(contents, "sizes")


def test_without_the_model_its_parts_are_named_and_the_rest_is_shown(run):
    contents = collect(run)
    assert contents.own == made_sweep()
    assert contents.network == (None, None)
    assert line_of(contents, "predictions") and line_of(contents, "attention")


def test_what_compare_wrote_stands_beside_the_own_sweep(run):
    write_comparison(run, beside(made_sweep()))
    contents = collect(run)
    assert list(contents.sweeps) == [OWN_METHOD, "deebert", "layerdrop"], "its own sweep is not shown twice"
    assert [row.subnet for row in contents.sweeps["deebert"].rows] == ["s0.5", "s0.1"]
    assert contents.sweeps[OWN_METHOD] == contents.own


def test_methods_stand_beside_the_training_that_took_part(run):
    """A comparison at a fourth of the run's training FLOPs: the run itself had four times as much."""
    shorter = made_sweep(("w1-d0.5", "w1-d1", "w0.5-d1", "w0.5-d0.5"), latency=False)
    write_comparison(run, {**beside(made_sweep()), OURS: shorter})
    contents = collect(run)
    assert list(contents.sweeps) == [OWN_METHOD, OWN_RUN, "deebert", "layerdrop"]
    assert contents.sweeps[OWN_METHOD] == shorter
    assert contents.sweeps[OWN_RUN] == contents.own == made_sweep()


def test_differences_of_a_comparison_are_read_with_their_p_values(run):
    nothing = {"point": "no point so cheap", "metric": None, "flops": None, "time": None}
    write_comparison(
        run, beside(made_sweep()), (*STANDINGS, replace(standing("layerdrop", 0.25, None, None), **nothing))
    )
    compared = collect(run).studies.compared
    assert [(row.method, row.share, *difference, row.p_holm) for row, difference in compared.paired] == [
        ("deebert", 0.5, 2.5, 1.5, 4.0, 0.01),
        ("layerdrop", 0.5, -0.5, -1.5, 1.0, 0.6),
        ("deebert", 0.25, 4.5, 3.5, 6.0, 0.02),
    ]
    assert [(row.method, row.share) for row in compared.unpaired] == [("layerdrop", 0.25)]
    assert str(Trainings.of(compared)) == "1.5 TFLOPs of training each, seeds 42, 43"


def test_a_comparison_is_read_as_it_was_written(run):
    write_comparison(run, beside(made_sweep()))
    compared = collect(run).studies.compared
    assert json.loads(json.dumps(compared.to_dict())) == json.loads((run / COMPARED_FILE).read_text())


def test_a_comparison_by_cascades_pairs_all_others(run):
    stood = (standing(OURS, 0.5, -1.0, 0.5), standing(CASCADE, 0.5, None, None), standing("deebert", 0.5, 2.5, 0.01))
    write_comparison(run, beside(made_sweep()), stood, ours=CASCADE)
    compared = collect(run).studies.compared
    assert compared.ours == CASCADE and compared.unpaired == ()
    assert [row.method for row, _ in compared.paired] == [OURS, "deebert"]
    assert "cascades minus the method" in json.dumps(gap_figure(compared, (OWN_METHOD, "deebert")).spec)


def test_what_methods_may_spend_in_the_teachers_stead_is_said(run):
    write_comparison(run, beside(made_sweep()))
    saved = json.loads((run / COMPARED_FILE).read_text())
    (run / COMPARED_FILE).write_text(json.dumps({**saved, "teacher_flops": 2.5e11}))
    assert "each (and the teacher's 0.25 where it is not used), seeds" in str(
        Trainings.of(collect(run).studies.compared)
    )


@pytest.mark.parametrize(("field", "value"), [("task", "sst2"), ("metric", "f1"), ("n_rows", 39)])
def test_a_comparison_on_other_rows_is_named_and_not_shown(run, field, value):
    sweeps = beside(made_sweep())
    foreign = made_sweep(("s0.5",), latency=False, **{field: value})
    write_comparison(run, {**sweeps, "deebert": foreign})
    contents = collect(run)
    assert list(contents.sweeps) == [OWN_METHOD]
    line = line_of(contents, "methods")
    assert COMPARED_FILE in line and f"{field} {value}" in line and "compare again" in line


def test_what_ablate_wrote_is_read_row_by_row(run):
    write_ablation(run)
    ablated = collect(run).studies.ablated
    assert ablated.effects == tuple(EFFECTS)
    assert str(ablated.trainings) == "1 TFLOPs of training each, seed 42"


GOOD_ROW = {"factor": "rewiring", "variant": "random", "where": "mean", "difference": 1, "low": 0.5, "high": 2.0}
GOOD_ROW |= {"p_holm": 0.5, "metric": 80, "lr": None}
GOOD = {"seeds": [42], "training_flops": 1, "rows": [GOOD_ROW]}
STOOD = {"method": "deebert", "share": 0.5, "point": "s0.1", "metric": 80, "flops": 0.5, "p_holm": 0.5}
STOOD |= {"difference": [1, 0.5, 2.0], "time": [0.5, 0.4], "n_steps": 9}
COMPARED = {**GOOD, "task": "small", "metric": "accuracy", "full": 90, "sweeps": {}, "rows": [STOOD]}


def test_the_files_that_damage_is_done_to_below_are_sound(run):
    (run / "studies").mkdir()
    for file, saved in ((COMPARED_FILE, COMPARED), (ABLATED_FILE, GOOD)):
        (run / file).write_text(json.dumps(saved))
    studies = collect(run).studies
    assert len(studies.compared.paired) == len(studies.ablated.effects) == 1


@pytest.mark.parametrize(
    ("file", "part", "saved"),
    [
        (COMPARED_FILE, "methods", {**COMPARED, "sweeps": None}),
        (COMPARED_FILE, "methods", {**COMPARED, "sweeps": {"deebert": {"rows": [1]}}}),
        (COMPARED_FILE, "methods", {**COMPARED, "seeds": []}),
        (COMPARED_FILE, "methods", {**COMPARED, "training_flops": "many"}),
        (COMPARED_FILE, "methods", {**COMPARED, "rows": [{**STOOD, "difference": [1, 2]}]}),
        (COMPARED_FILE, "methods", {**COMPARED, "rows": [{**STOOD, "difference": [1, 0, None]}]}),
        (COMPARED_FILE, "methods", {**COMPARED, "rows": [{**STOOD, "p_holm": None}]}),
        (COMPARED_FILE, "methods", {**COMPARED, "rows": [{"method": "deebert"}]}),
        (COMPARED_FILE, "methods", {**COMPARED, "rows": [{**STOOD, "time": None}]}),
        (COMPARED_FILE, "methods", {**COMPARED, "rows": [{**STOOD, "n_steps": 1.5}]}),
        (COMPARED_FILE, "methods", {**COMPARED, "rows": [{**STOOD, "difference": None, "metric": None}]}),
        (COMPARED_FILE, "methods", {**COMPARED, "task": "another"}),
        (COMPARED_FILE, "methods", {**COMPARED, "metric": "f1"}),
        (COMPARED_FILE, "methods", ["a list"]),
        (ABLATED_FILE, "ablations", {**GOOD, "rows": {"no": "list"}}),
        (ABLATED_FILE, "ablations", {**GOOD, "rows": [{**GOOD_ROW, "variant": 3}]}),
        (ABLATED_FILE, "ablations", {**GOOD, "rows": [GOOD_ROW, {**GOOD_ROW, "low": float("nan")}]}),
        (ABLATED_FILE, "ablations", {**GOOD, "rows": [{**GOOD_ROW, "difference": "0.5"}]}),
        (ABLATED_FILE, "ablations", {**GOOD, "rows": ["no table"]}),
        (ABLATED_FILE, "ablations", {**GOOD, "seeds": ["one"]}),
        (ABLATED_FILE, "ablations", None),
    ],
)
def test_files_of_studies_that_are_damaged_are_named_and_not_shown(run, file, part, saved):
    (run / "studies").mkdir()
    (run / file).write_text("{" if saved is None else json.dumps(saved))
    contents = collect(run)
    assert file in line_of(contents, part)
    assert list(contents.sweeps) == [OWN_METHOD] and contents.studies == Studies()


def test_a_study_that_is_no_json_says_what_to_run_again(run):
    (run / "studies").mkdir()
    (run / COMPARED_FILE).write_text("{")
    (run / ABLATED_FILE).write_text("{")
    contents = collect(run)
    assert line_of(contents, "methods").endswith("compare again")
    assert line_of(contents, "ablations").endswith("ablate again")


def test_sweeps_of_deployed_forms_are_read(run):
    write_deployed(run)
    assert list(collect(run).deployed) == ["openvino int8", "onnxruntime fp32"]
    assert collect(run).deployed["openvino int8"] == deployed_sweep("openvino", "int8")
    (run / SWEEP_FILE).unlink()
    assert collect(run).deployed == {}, "nothing stands beside a sweep that is not there"


def untimed(sweep):
    return replace(sweep, rows=tuple(replace(row, cost=replace(row.cost, timings=())) for row in sweep.rows))


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        ("{", "is not valid JSON"),
        (made_sweep(), "has no times of openvino int8"),
        (untimed(deployed_sweep("openvino", "int8")), "has no times of openvino int8"),
        (deployed_sweep("openvino", "fp32"), "has no times of openvino int8"),
        (deployed_sweep("openvino", "int8", n_rows=7), "has n_rows 7, sweep.json has 40"),
        (deployed_sweep("openvino", "int8", metric="f1"), "has metric f1"),
        (deployed_sweep("openvino", "int8", task="other"), "has task other"),
        (deployed_sweep("openvino", "int8", reference=0.8), "is of another training"),
    ],
)
def test_a_sweep_that_does_not_belong_beside_the_own_one_is_named(run, saved, why, caplog):
    write_deployed(run)
    path = run / "sweep-openvino-int8.json"
    if isinstance(saved, str):
        path.write_text(saved)
    else:
        saved.to_json(path)
    contents = collect(run)
    assert list(contents.deployed) == ["onnxruntime fp32"]
    assert why in line_of(contents, "sizes by openvino int8")
    assert [sweep.context.latency.engine for sweep in deployed_of(run, made_sweep())] == ["onnxruntime"]
    assert why in caplog.text, "the card says it too"


def test_damaged_parts_of_the_run_are_named(run):
    (run / "importance.safetensors").write_bytes(b"no tensors")
    contents = collect(run)
    assert contents.importance is None and "importance.safetensors" in line_of(contents, "importance")
