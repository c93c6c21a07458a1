"""What is read of a run folder: every part that is there, and a line for one that cannot be used."""

import json

import pytest
from small_studies import EFFECTS, beside, made_sweep, write_ablation, write_comparison

from dynabert.errors import ModelFileError
from dynabert.files import write_json
from dynabert.report.data import ABLATED_FILE, COMPARED_FILE, OWN_METHOD, Ablation, collect
from dynabert.results import SWEEP_FILE


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
    fields = ("factor", "variant", "where", "difference", "low", "high")
    assert collect(run).ablations == tuple(Ablation(*(getattr(row, field) for field in fields)) for row in EFFECTS)


GOOD_ROW = {"factor": "rewiring", "variant": "random", "where": "mean", "difference": 1, "low": 0.5, "high": 2.0}


@pytest.mark.parametrize(
    ("file", "part", "saved"),
    [
        (COMPARED_FILE, "methods", {"rows": []}),
        (COMPARED_FILE, "methods", {"sweeps": {"deebert": {"rows": [1]}}}),
        (COMPARED_FILE, "methods", ["a list"]),
        (ABLATED_FILE, "ablations", {"rows": {"no": "list"}}),
        (ABLATED_FILE, "ablations", {"rows": [{**GOOD_ROW, "variant": 3}]}),
        (ABLATED_FILE, "ablations", {"rows": [GOOD_ROW, {**GOOD_ROW, "low": float("nan")}]}),
        (ABLATED_FILE, "ablations", {"rows": [{**GOOD_ROW, "difference": "0.5"}]}),
        (ABLATED_FILE, "ablations", {"rows": ["no table"]}),
        (ABLATED_FILE, "ablations", None),
    ],
)
def test_files_of_studies_that_are_damaged_are_named_and_not_shown(run, file, part, saved):
    (run / "studies").mkdir()
    (run / file).write_text("{" if saved is None else json.dumps(saved))
    contents = collect(run)
    assert file in line_of(contents, part)
    assert list(contents.sweeps) == [OWN_METHOD] and contents.ablations == ()


def test_damaged_parts_of_the_run_are_named(run):
    (run / "importance.safetensors").write_bytes(b"no tensors")
    contents = collect(run)
    assert contents.importance is None and "importance.safetensors" in line_of(contents, "importance")
