"""Seeds that were compared apart: their mean, and an interval that holds what one over all predictions would."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from small_studies import made_sweep

from dynabert.errors import ModelFileError, SettingError
from dynabert.statistics import ROW_METRICS, Difference, mean_difference, paired_difference, resampled_difference
from dynabert.studies.pooling import pooled
from dynabert.studies.standings import NO_POINT, OURS, Comparison, Standing

SHARE = 0.5
SWEEPS = {OURS: made_sweep(), "fastbert": made_sweep(("s0.1",)), "deebert": made_sweep(("s0.5",))}


def comparison(difference: Difference | None, *, seed: int = 42, task: str = "trec", **changed: object) -> Comparison:
    """FastBERT beside DynaBERT's 90.0, in hundredths; None: it has no point so cheap."""
    ours = Standing(OURS, SHARE, "w1-d0.5", 90.0, 0.5, None, None, (0.5, 0.5), 1e-4, 9)
    its = replace(ours, method="fastbert", point="s0.1", difference=difference, p_holm=0.5)
    if difference is None:
        its = replace(its, point=NO_POINT, metric=None, flops=None, time=None, p_holm=None)
    else:
        its = replace(its, metric=90 - difference.mean)
    usual = Comparison(task, "accuracy", 91.0, (seed,), 1e12, (ours, its), SWEEPS, 5e11, rates=(1e-4,), full_flops=100)
    return replace(usual, **changed)


def written(folder: Path, *comparisons: Comparison, **made: object) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.json" for number in range(len(comparisons))]
    for file, one in zip(files, comparisons, strict=True):
        file.write_text(json.dumps({**one.to_dict(), "made": {"budget": 1.0, "limit": None, **made}}))
    return files


def difference_of(found: Comparison) -> Difference:
    difference = found.standings[1].difference
    assert difference is not None
    return difference


def width(difference: Difference) -> float:
    return difference.high - difference.low


def test_one_seed_stays_what_it_is(tmp_path: Path) -> None:
    alone = comparison(Difference(2.0, 0.5, 3.5))
    found = pooled(written(tmp_path, alone))
    assert difference_of(found) == pytest.approx((2.0, 0.5, 3.5), abs=0.05)
    assert (found.seeds, found.full, found.standings[1].metric) == ((42,), 91.0, 88.0)


def test_seeds_that_agree_leave_the_chance_of_the_rows(tmp_path: Path) -> None:
    """However many there are: all of them answered the same rows."""
    same = [comparison(Difference(2.0, 0.5, 3.5), seed=seed) for seed in (42, 43, 44)]
    assert difference_of(pooled(written(tmp_path, *same))) == pytest.approx((2.0, 0.5, 3.5), abs=0.05)


def test_seeds_that_differ_add_the_chance_of_training(tmp_path: Path) -> None:
    sure = [comparison(Difference(d, d - 1e-6, d + 1e-6), seed=42 + n) for n, d in enumerate((1.0, 2.0, 4.5))]
    found = pooled(written(tmp_path, *sure))
    right = stats.ttest_1samp([1.0, 2.0, 4.5], 0).confidence_interval()
    assert difference_of(found) == pytest.approx((2.5, *right), rel=0.05)
    assert found.seeds == (42, 43, 44)
    assert found.standings[1].metric == pytest.approx(87.5)


def test_the_interval_is_that_of_all_predictions_or_a_little_wider(tmp_path: Path) -> None:
    random, accuracy = np.random.default_rng(0), ROW_METRICS["accuracy"]
    labels = random.integers(0, 2, 800)

    def answers(errors: float) -> list[np.ndarray]:
        hard = random.random(800)  # the same rows are hard for every seed
        return [np.where(hard + 0.2 * random.random(800) < errors, 1 - labels, labels) for _ in range(3)]

    files, parts = [], []
    for task, (ours, its) in enumerate([(0.2, 0.25), (0.3, 0.32)]):
        sides = answers(ours), answers(its)
        parts.append(resampled_difference(accuracy, labels, {"": sides[0]}, {"": sides[1]}, n=5000, seed=task))
        apart = [paired_difference(accuracy, labels, *pair, n=5000) for pair in zip(*sides, strict=True)]
        points = [Difference(*(100 * value for value in found)) for found in apart]
        seeds = [comparison(found, seed=42 + n, task=str(task)) for n, found in enumerate(points)]
        files += written(tmp_path / str(task), *seeds)
    together = Difference(*(100 * value for value in mean_difference(parts)))
    found = difference_of(pooled(files))
    assert found.mean == pytest.approx(together.mean)
    assert 0.95 < width(found) / width(together) < 1.25


def test_a_task_with_fewer_seeds_is_named(tmp_path: Path) -> None:
    files = written(
        tmp_path,
        comparison(Difference(0.0, -1.0, 1.0), task="sst2"),
        comparison(Difference(2.0, 1.0, 3.0)),
        comparison(Difference(4.0, 3.0, 5.0), seed=43),
    )
    found = pooled(files)
    assert (found.task, found.seeds) == ("sst2 (1 seed), trec", (42, 43))
    assert [difference_of(task).mean for task in found.tasks] == pytest.approx([0.0, 3.0])
    assert difference_of(found).mean == pytest.approx(1.5)
    assert "sst2 (1 seed), trec" in found.table()
    assert "over rows and seeds; of sst2 (1 seed) over rows alone" in " ".join(found.table().split())
    assert width(difference_of(found.tasks[1])) > width(difference_of(found.tasks[0])), "of two seeds little is known"


def test_a_seed_without_a_point_leaves_none(tmp_path: Path) -> None:
    found = pooled(written(tmp_path, comparison(Difference(2.0, 1.0, 3.0)), comparison(None, seed=43)))
    assert found.standings[1].point == NO_POINT
    assert found.standings[1].difference is None


def test_what_is_told_beside_the_difference(tmp_path: Path) -> None:
    one, two = comparison(Difference(2.0, 1.0, 3.0)), comparison(Difference(3.0, 2.0, 4.0), seed=43, full=93.0)
    other = replace(two.standings[1], point="s0.3", time=(0.7, 0.9), lr=2e-4, at_edge=True, flops=0.4)
    found = pooled(written(tmp_path, replace(two, standings=(two.standings[0], other)), one))  # in any order
    its = found.standings[1]
    assert (found.seeds, found.full, found.rates) == ((42, 43), 92.0, (1e-4,))
    assert (its.point, its.lr, its.at_edge, its.n_steps) == ("s0.1", None, True, 9)
    assert its.time == pytest.approx((0.6, 0.7)) and its.flops == pytest.approx(0.45)
    assert its.p_holm is not None and 0.05 < its.p_holm < 0.5, "two seeds tell little"
    assert "several*" in found.table() and "2 seeds" in found.table()


def test_methods_that_not_every_file_has_are_left_out(tmp_path: Path) -> None:
    one = comparison(Difference(2.0, 1.0, 3.0))
    more = (*one.standings, replace(one.standings[1], method="deebert"))
    found = pooled(written(tmp_path, one, replace(one, task="sst2", standings=more)))
    assert [row.method for row in found.standings] == [OURS, "fastbert"]
    assert found.left_out == {"deebert": "it is not in every file"}
    assert all(set(task.sweeps) == {OURS, "fastbert"} for task in found.tasks)
    assert "Left out: deebert, for it is not in every file" in " ".join(found.table().split())


def test_tasks_of_one_name_are_told_apart_by_their_rows(tmp_path: Path) -> None:
    """Rows of one's own are all called files."""
    left = written(tmp_path / "a", comparison(Difference(2.0, 1.0, 3.0), task="files"), validation="a")
    right = written(tmp_path / "b", comparison(Difference(4.0, 3.0, 5.0), task="files"), validation="b")
    found = pooled([*left, *right])
    assert (found.task, found.seeds, len(found.tasks)) == ("files, files", (42,), 2)
    unknown = written(tmp_path / "c", comparison(Difference(4.0, 3.0, 5.0), task="files"))
    with pytest.raises(SettingError, match=r"c/0\.json does not say which rows it is of, .*a/0\.json does"):
        pooled([*left, *unknown])
    with pytest.raises(SettingError, match="same_rows"):
        pooled([*left, *right, *unknown], same_rows=True)
    second = written(tmp_path / "e", comparison(Difference(4.0, 3.0, 5.0), task="files", seed=43))
    found = pooled([*left, *second], same_rows=True)
    assert (found.task, found.seeds) == ("files", (42, 43)), "one task with two seeds"
    fewer = {name: replace(sweep, context=replace(sweep.context, n_rows=39)) for name, sweep in SWEEPS.items()}
    third = written(tmp_path / "f", comparison(Difference(4.0, 3.0, 5.0), task="files", seed=44, sweeps=fewer))
    with pytest.raises(SettingError, match="same_rows"):
        pooled([*left, *third], same_rows=True)
    other = written(tmp_path / "d", comparison(Difference(4.0, 3.0, 5.0), task="trec"))
    assert pooled([*left, *other]).task == "files, trec", "of tasks with two names rows are never the same"


@pytest.mark.parametrize(
    ("other", "made", "said"),
    [
        ({"seed": 42}, {}, "1/0.json is seed 42 of trec as .*0/0.json is; give one of them"),
        ({"seeds": (43, 44)}, {}, "1/0.json is of 2 seeds; give the compare.json of each run"),
        ({"task": "sst2, cola", "sweeps": {}}, {}, "1/0.json is a mean over tasks or seeds; give the compare.json of"),
        ({"seed": 43, "rates": (2e-4,)}, {}, r"1/0.json has rates \(0.0002,\), .*0/0.json \(0.0001,\); pool what"),
        ({"seed": 43, "recipe": "paper"}, {}, "1/0.json has recipe paper, "),
        ({"task": "sst2", "ours": "dynabert-cascade"}, {}, "1/0.json has ours dynabert-cascade, .* dynabert; pool"),
        ({"task": "sst2", "standings": ()}, {}, "the 2 files have no method in common but none"),
        ({"task": "sst2", "full_flops": 10}, {}, "1/0.json has full network of 10 FLOPs, .* 100 FLOPs; pool"),
        ({"task": "sst2"}, {"budget": 0.25}, "1/0.json has budget 0.25, .* 1.0; pool what is alike"),
        ({"seed": 43}, {"limit": 9}, "1/0.json has limit 9, .* None; pool what is alike"),
        ({"seed": 43, "training_flops": 2e12}, {}, "1/0.json spent 2 TFLOPs on each method, .*0/0.json 1; pool train"),
        ({"seed": 43, "teacher_flops": 0}, {}, "1/0.json spent 0 TFLOPs on teacher, .*0/0.json 0.5; pool trainings"),
    ],
)
def test_what_was_not_asked_alike_is_refused(
    tmp_path: Path, other: dict[str, object], made: dict[str, object], said: str
) -> None:
    gap = Difference(2.0, 1.0, 3.0)
    files = written(tmp_path / "0", comparison(gap)) + written(tmp_path / "1", comparison(gap, **other), **made)
    with pytest.raises(SettingError, match=said):
        pooled(files)


def test_no_files_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no files given"):
        pooled([])
    with pytest.raises(ModelFileError, match=r"none\.json"):
        pooled([tmp_path / "none.json"])
    usual = {**comparison(Difference(2.0, 1.0, 3.0)).to_dict(), "made": {"budget": 1.0, "limit": None}}
    (tmp_path / "sound.json").write_text(json.dumps(usual))
    assert pooled([tmp_path / "sound.json"])
    for text in (
        "{",
        "[]",
        "{}",
        *(
            json.dumps({**usual, **it})
            for it in ({"made": None}, {"made": {"budget": 1.0}}, {"rows": [{}]}, {"rates": []}, {"full_flops": 0})
        ),
    ):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ModelFileError, match=r"other\.json"):
            pooled([tmp_path / "other.json"])


def test_the_script_prints_and_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gap, result = Difference(2.0, 1.0, 3.0), tmp_path / "pooled.json"
    files = [str(file) for file in written(tmp_path, comparison(gap), comparison(gap, task="sst2"))]
    script = str(Path(__file__).parents[2] / "runs" / "pool.py")
    monkeypatch.setattr("sys.argv", [script, *files, "--json", str(result)])
    runpy.run_path(script, run_name="__main__")
    assert "trec, sst2: accuracy" in capsys.readouterr().out
    saved = json.loads(result.read_text())
    assert [task["task"] for task in saved["tasks"]] == ["trec", "sst2"]
    assert saved["made_from"] == ["0.json", "1.json"]
    monkeypatch.setattr("sys.argv", [script, str(result)])
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    assert "pooled.json is a mean over tasks or seeds" in capsys.readouterr().err


def test_the_script_draws_the_first_seed_of_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vl_convert", reason="figures: install dynabert[report]")
    gap, plot = Difference(2.0, 1.0, 3.0), tmp_path / "pooled.svg"
    seeds = (comparison(gap, seed=44), comparison(gap, seed=43), comparison(gap, task="sst2"))
    files = [str(file) for file in written(tmp_path, *seeds)]
    script = str(Path(__file__).parents[2] / "runs" / "pool.py")
    monkeypatch.setattr("sys.argv", [script, *files, "--plot", str(plot)])
    runpy.run_path(script, run_name="__main__")
    drawn = plot.read_text()
    said = ("trec, seed 43", "sst2 (1 seed), seed 42", OURS, "fastbert")
    assert all(f">{text}" in drawn for text in said) and ">deebert<" not in drawn
    monkeypatch.setattr("sys.argv", [script, *files, "--plot", str(tmp_path / "pooled.txt")])
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
