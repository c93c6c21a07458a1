"""What exits, cascades, attention and search leave in a run folder, as a report reads and draws it."""

import copy
import json
import re
from dataclasses import replace
from html import unescape

import pytest
from small_studies import made_sweep

from dynabert.files import write_json
from dynabert.report import report_run
from dynabert.report.data import collect
from dynabert.report.exits import exit_figure
from dynabert.report.figure import image
from dynabert.report.insides import coverage_figure, pattern_figure
from dynabert.report.searches import search_figure
from dynabert.report.studies import CASCADES_FILE, COVERAGE_FILE, EXITS_FILE, Searched, Studies
from dynabert.report.tables import rows_of
from dynabert.results import SWEEP_FILE
from dynabert.search import PER_LAYER, UNIFORM
from dynabert.search.result import Standing
from dynabert.statistics import Difference
from dynabert.studies.patterns import DIFFERENCES, SOURCES, AttentionStudy, Estimate, Matching, Score, SubnetCoverage
from dynabert.studies.size_exit import ExitPoint, SizeExit

SEARCH_FILE = "search/flops-share-0.5.json"
FILES = {EXITS_FILE: "exits", CASCADES_FILE: "cascades", COVERAGE_FILE: "coverage"}
FILES[SEARCH_FILE] = "search flops-share-0.5"


def point(subnet, asked, flops, **changed):
    threshold = None if asked is None else 0.25
    return replace(ExitPoint(subnet, asked, threshold, 80.0, 0.975, 3.5, flops, (0.7, 0.625)), **changed)


HALF = point("w0.5-d1", None, 0.5)
CASCADES = SizeExit("small", "accuracy", 90.0, 24, (HALF, point("w0.5-d1+w1-d1", 0.95, 0.625)), ())
POINTS = (HALF, point("w0.5-d1", 0.95, 0.375))
EXITS = replace(CASCADES, points=POINTS, unreached=(("w0.5-d1", 0.99),), ramps="deebert")


REMOVED = Estimate(0.6, 0.5, 0.7)


def coverage_of(subnet, n_layers, n_heads, removed=REMOVED):
    score = Score(Estimate(0.5, 0.4, 0.6), Estimate(0.8, 0.75, 0.85), removed)
    best = tuple(0.9 - place / 20 for place in range(8))
    matching = Matching(best, tuple((place % 2, 3 - place % 4) for place in range(8)), (1, 0))
    return SubnetCoverage(subnet, n_layers, n_heads, dict.fromkeys((*SOURCES, *DIFFERENCES), score), matching)


COVERAGE = AttentionStudy(
    (coverage_of("w1-d1", 2, 8, removed=None), coverage_of("w0.5-d0.5", 1, 2)),
    n_patterns=8,
    n_heads=4,
    n_texts=12,
    threshold=0.85,
    pair_similarity=0.5,
    pairs_alike=0.25,
)

CHOSEN = (
    Standing(UNIFORM, "w0.5-d1", 5e8, 0.5, 0.2, 81.0, 80.0, None),
    Standing(PER_LAYER, "l0h2n16_l1h1n16", 4e8, 0.4, 0.1, 84.0, 82.5, Difference(2.5, -0.5, 5.5)),
)


def searched(**result):
    standings = [{**vars(row), "gain": None if row.gain is None else row.gain._asdict()} for row in CHOSEN]
    found = {"task": "small", "metric": "accuracy", "limit": 5e8, "standings": standings, "n_tried": 30, "seconds": 9.5}
    return {"format_version": 1, "result": {**found, "latency": None, **result}, "scores": {}}


SOUND = {
    EXITS_FILE: {**EXITS.to_dict(), "made": {}},
    CASCADES_FILE: {**CASCADES.to_dict(), "made": {}},
    COVERAGE_FILE: COVERAGE.to_dict(),
    SEARCH_FILE: searched(),
}


@pytest.fixture
def run(tmp_path):
    """A run folder with all of it, and no model."""
    write_json(tmp_path / "run.json", {"model": "an-encoder"})
    made_sweep().to_json(tmp_path / SWEEP_FILE)
    for folder in ("studies", "search"):
        (tmp_path / folder).mkdir()
    for file, saved in SOUND.items():
        write_json(tmp_path / file, saved)
    return tmp_path


def test_what_was_written_is_read(run):
    assert collect(run).studies == Studies(
        exits=EXITS,
        cascades=CASCADES,
        coverage=COVERAGE,
        searches={"flops-share-0.5": Searched("accuracy", 5e8, CHOSEN, 30, 9.5)},
    )


def test_the_files_of_a_real_run_are_read_whole(finished):
    studies = collect(finished).studies
    for file, found in ((EXITS_FILE, studies.exits), (CASCADES_FILE, studies.cascades)):
        saved = json.loads((finished / file).read_text())
        assert json.loads(json.dumps(found.to_dict())) == {name: saved[name] for name in saved if name != "made"}
    assert {point.subnet for point in studies.cascades.points} > {"w0.5-d1", "w0.5-d1+w1-d1"}
    assert json.loads(json.dumps(studies.coverage.to_dict())) == json.loads((finished / COVERAGE_FILE).read_text())
    for name, found in studies.searches.items():
        saved = json.loads((finished / "search" / f"{name}.json").read_text())["result"]
        assert [row.subnet for row in found.standings] == [row["subnet"] for row in saved["standings"]]
        assert list(found.standings[-1].gain) == list(saved["standings"][-1]["gain"].values())
    assert len(studies.searches) == 2


def test_files_of_before_the_largest_size_was_named_are_of_the_full_network(run):
    saved = {name: value for name, value in SOUND[EXITS_FILE].items() if name not in ("largest", "ramps", "files")}
    write_json(run / EXITS_FILE, saved)
    assert collect(run).studies.exits == EXITS


def test_a_search_that_is_not_finished_is_no_damage(run):
    write_json(run / SEARCH_FILE, {**searched(), "result": None})
    contents = collect(run)
    assert contents.studies.searches == {}
    assert not any(line.startswith("search") for line in contents.left_out)


def test_a_budget_of_latency_says_what_was_measured(run):
    sizes = [{"how": PER_LAYER, "measured_ms": 4.25, "predicted_ms": 4.0}]
    write_json(run / SEARCH_FILE, searched(latency={"sizes": sizes}))
    found = collect(run).studies.searches
    assert found["flops-share-0.5"].measured_ms == {PER_LAYER: 4.25}
    (table,) = search_figure(found).tables
    assert [(row[0], row[2]) for row in table.rows] == [(UNIFORM, "-"), (PER_LAYER, "4.25")]
    assert table.headers[1:3] == ("predicted, ms", "measured, ms")


def test_without_a_sweep_there_is_nothing_to_set_them_beside(run):
    (run / SWEEP_FILE).unlink()
    assert collect(run).studies == Studies(coverage=COVERAGE)


def changed(file, *path, value):
    """A sound file with one value changed."""
    saved = copy.deepcopy(json.loads(json.dumps(SOUND[file])))
    place = saved
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return json.dumps(saved)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        *((file, text) for file in FILES for text in ("{", "[1]", "{}")),
        *((file, changed(file, "task", value="other")) for file in (EXITS_FILE, CASCADES_FILE)),
        (EXITS_FILE, changed(EXITS_FILE, "metric", value="f1")),
        (EXITS_FILE, changed(EXITS_FILE, "full", value=None)),
        (EXITS_FILE, changed(EXITS_FILE, "full", value=float("nan"))),
        (EXITS_FILE, changed(EXITS_FILE, "n_select", value=2.5)),
        (EXITS_FILE, changed(EXITS_FILE, "largest", value=None)),
        (EXITS_FILE, changed(EXITS_FILE, "points", value={"no": "list"})),
        (EXITS_FILE, changed(EXITS_FILE, "points", 1, value="no table")),
        (EXITS_FILE, changed(EXITS_FILE, "points", 1, "asked", value="99%")),
        (EXITS_FILE, changed(EXITS_FILE, "points", 1, "flops", value=None)),
        (EXITS_FILE, changed(EXITS_FILE, "points", 1, "time", value=[0.5])),
        (EXITS_FILE, changed(EXITS_FILE, "unreached", 0, value=["w1-d1"])),
        (COVERAGE_FILE, changed(COVERAGE_FILE, "format_version", value=3)),
        (COVERAGE_FILE, changed(COVERAGE_FILE, "n_texts", value=True)),
        (COVERAGE_FILE, changed(COVERAGE_FILE, "rows", 0, "scores", "random", value=None)),
        (COVERAGE_FILE, changed(COVERAGE_FILE, "rows", 0, "scores", "cut", "covered", value=[0.5, 0.4])),
        (COVERAGE_FILE, changed(COVERAGE_FILE, "rows", 1, "scores", "cut", "removed", 0, value=None)),
        (COVERAGE_FILE, changed(COVERAGE_FILE, "rows", 1, "matching", "nearest", 0, value=[0, 0.5])),
        (SEARCH_FILE, changed(SEARCH_FILE, "format_version", value=2)),
        (SEARCH_FILE, changed(SEARCH_FILE, "result", "task", value="other")),
        (SEARCH_FILE, changed(SEARCH_FILE, "result", "metric", value="f1")),
        (SEARCH_FILE, changed(SEARCH_FILE, "result", "standings", 1, "gain", value=[1, 0, 2])),
        (SEARCH_FILE, changed(SEARCH_FILE, "result", "standings", 1, "gain", "low", value=None)),
        (SEARCH_FILE, changed(SEARCH_FILE, "result", "latency", value={"sizes": [{"how": 1}]})),
    ],
)
def test_a_damaged_file_is_named_with_what_to_run_and_the_rest_is_shown(run, file, text):
    (run / file).write_text(text)
    contents = collect(run)
    (line,) = (line for line in contents.left_out if line.startswith(f"{FILES[file]}: "))
    command = {EXITS_FILE: "exits", CASCADES_FILE: "exits", COVERAGE_FILE: "attention", SEARCH_FILE: "search"}[file]
    assert str(run / file) in line and f"run `dynabert {command} {run}" in line and "\n" not in line
    assert ("--cascade" in line) == (file == CASCADES_FILE)
    studies, gone = contents.studies, FILES[file].split()[0]
    shown = {"exits": studies.exits, "cascades": studies.cascades, "coverage": studies.coverage}
    shown["search"] = studies.searches or None
    assert {name for name, found in shown.items() if found is None} == {gone}


def captions_of(run):
    text = unescape(report_run(run).page.read_text())
    return dict(re.findall(r'<p class="caption" id="(\w+)-caption">(.*?)</p>', text, re.DOTALL))


def test_each_has_its_figure_on_the_page(run):
    captions = captions_of(run)
    assert list(captions) == ["front", "exits", "grid", "search", "coverage", "patterns"]
    assert "calibrated on 24 select rows" in captions["exits"] and "the full network (dashed)" in captions["exits"]
    assert "Not shown by those rows: 99% by w0.5-d1 (299 rows could)." in captions["exits"]
    assert "Exits are deebert ramps." in captions["exits"], "as they all were before their kind was kept"
    assert "8 attention patterns of the teacher on 12 texts" in captions["coverage"]


def told(figure):
    """What is said of a point, by titles or columns."""
    tips = re.findall(r'"tooltip": (\[.*?\])', json.dumps(figure.spec))
    assert tips
    return {tip.get("title", tip["field"]) for found in tips for tip in json.loads(found)}


def test_kinds_are_told_apart_and_a_size_alone_is_drawn_once():
    rows = rows_of(exit_figure(EXITS, CASCADES).data["exits"])
    assert [(row["kind"], row["size"], row["flops"]) for row in rows] == [
        ("size alone", "w0.5-d1", 50),
        ("size with exits", "w0.5-d1", 37.5),
        ("cascade", "w0.5-d1+w1-d1", 62.5),
    ]
    assert [(row["asked"], row["agreement"]) for row in rows] == [("nothing", "97.5%"), *[("95%", "97.5%")] * 2]
    assert told(exit_figure(EXITS, CASCADES)) >= {"agreement asked for", "agreement found", "size", "FLOPs, %"}
    alone = exit_figure(None, CASCADES).data["exits"]
    assert set(alone["kind"]) == {"size alone", "cascade"}
    assert exit_figure(None, None) is None


def test_a_grid_without_the_full_network_says_what_stands_for_it():
    figure = exit_figure(replace(EXITS, largest="w0.75-d1"), None)
    assert figure.data["reference"] == {"metric": [90], "text": ["largest size w0.75-d1"]}
    assert "those of the largest size w0.75-d1 (dashed)" in figure.caption
    assert "% of the largest size w0.75-d1's" in json.dumps(figure.spec)


def test_a_search_is_drawn_beside_the_best_of_the_grid():
    found = {"flops-share-0.5": Searched("accuracy", 5e8, CHOSEN, 30, 9.5)}
    figure = search_figure(found)
    drawn = [(row["metric"], row["beside"], row["low"], row["high"]) for row in rows_of(figure.data["search"])]
    assert drawn == [(80, 80, 80, 80), (82.5, 80, 79.5, 85.5)]
    assert figure.controls == (), "one budget is nothing to choose from"
    ungained = replace(CHOSEN[1], gain=None)
    (row,) = rows_of(
        search_figure({"params-5": replace(found["flops-share-0.5"], standings=(ungained,))}).data["search"]
    )
    assert (row["metric"], row["beside"], row["low"], row["high"]) == (82.5, 82.5, 82.5, 82.5)
    assert search_figure({}) is None


def test_coverage_is_drawn_by_the_figure_of_the_study():
    figure = coverage_figure(COVERAGE)
    assert list(figure.data) == ["covered", "removed"]
    assert len(figure.data["covered"]["value"]) == 8 and len(figure.data["removed"]["value"]) == 4
    assert told(figure) == {"source", "subnet", "layers", "heads", "value", "low", "high"}
    covered, removed = figure.tables
    assert [row[:3] for row in covered.rows] == [
        ("w1-d1", "100.0", "50.0 (40.0 to 60.0)"),
        ("w0.5-d0.5", "25.0", "50.0 (40.0 to 60.0)"),
    ]
    assert [row[:3] for row in removed.rows] == [("w0.5-d0.5", "25.0", "60.0 (50.0 to 70.0)")]
    assert coverage_figure(replace(COVERAGE, rows=())) is None
    assert list(coverage_figure(replace(COVERAGE, rows=COVERAGE.rows[:1])).data) == ["covered"]


def test_every_pattern_has_its_closest_head_and_every_size_what_its_heads_cover():
    figure = pattern_figure(COVERAGE)
    rows = rows_of(figure.data["patterns"])
    assert [(row["layer"], row["head"]) for row in rows[:8]] == [(layer, head) for layer in (0, 1) for head in range(4)]
    small = rows[8 + 6]
    assert (small["measure"], small["layer"], small["head"]) == ("w0.5-d0.5", 1, 2)
    assert (small["share"], small["text"], small["nearest"]) == (0.6, "60", "layer 0, head 1")
    assert [option.text for option in figure.controls[0].options] == ["w1-d1", "w0.5-d0.5"]
    (covers,) = figure.tables
    assert covers.rows[1] == ("w0.5-d0.5", "0.50", "1", "1", "1", "0"), (
        "mean, most, heads that cover none, one, several"
    )
    assert told(figure) == {"layer", "head", "similarity", "closest remaining head"}
    assert pattern_figure(replace(COVERAGE, rows=())) is None


def test_a_study_of_before_heads_were_counted_has_its_coverage_and_no_patterns(run):
    saved = {name: value for name, value in COVERAGE.to_dict().items() if name != "n_heads"}
    write_json(run / COVERAGE_FILE, {**saved, "format_version": 1})
    found = collect(run).studies.coverage
    assert found == replace(COVERAGE, n_heads=0)
    assert coverage_figure(found) is not None and pattern_figure(found) is None


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_images_of_them_are_drawn(kind):
    figures = (exit_figure(EXITS, CASCADES), coverage_figure(COVERAGE))
    figures += (search_figure({"flops-share-0.5": Searched("accuracy", 5e8, CHOSEN, 30, 9.5)}),)
    names = [name for figure in figures for name in figure.images]
    assert names == ["exits", "coverage", "search-flops-share-0.5"]
    for figure, name in zip(figures, names, strict=True):
        assert image(figure, name, kind).startswith(b"<svg" if kind == "svg" else b"\x89PNG")
    if kind == "svg":
        assert re.findall(r">(\d layers?)<", image(figures[1], "coverage", kind).decode()) == [
            *("2 layers", "1 layer"),
            "1 layer",
        ]
