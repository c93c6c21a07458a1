import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from dynabert.data import Roles, Rows, fingerprint, load_files, load_task, split_roles
from dynabert.errors import DataError, SettingError
from dynabert.tasks import TASKS

SST2, STSB, MNLI, RTE = (TASKS[name] for name in ("sst2", "stsb", "mnli", "rte"))


def tsv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in (header, *rows)), encoding="utf-8")
    return path


def sst2_rows(n, start=0):
    return [(f"sentence number {i}", i % 2) for i in range(start, start + n)]


def sst2_folder(folder, n=40):
    tsv(folder / "train.tsv", ("sentence", "label"), sst2_rows(n))
    tsv(folder / "dev.tsv", ("sentence", "label"), sst2_rows(10, 1000))
    return folder


def own_files(folder, labels, held=None):
    rows = [(f"text number {i}", label) for i, label in enumerate(labels)]
    train = tsv(folder / "mine.tsv", ("words", "class"), rows)
    validation = tsv(folder / "held.tsv", ("words", "class"), [("a", label) for label in held or labels])
    return train, validation


# Rows and fingerprints


def test_taking_rows_keeps_their_ids():
    rows = Rows((["a", "b", "c"], ["d", "e", "f"]), [0, 1, 1], [5, 6, 7])
    assert rows.take([2, 0]) == Rows((["c", "a"], ["f", "d"]), [1, 0], [7, 5])
    assert rows.take([1]).take([0]).ids == [6]
    assert len(Rows((["a"],), None, [0]).take([])) == 0


@pytest.mark.parametrize(
    "other",
    [
        Rows((["ab", "c"],), [0, 1], [0, 1]),
        Rows((["a", "bc"],), [0, 0], [0, 1]),
        Rows((["bc", "a"],), [1, 0], [0, 1]),
        Rows((["a", "bc"],), [0.0, 1.0], [0, 1]),
        Rows((["a"], ["bc"]), [0], [0]),
        Rows((["a", "bc"],), None, [0, 1]),
    ],
)
def test_a_fingerprint_tells_texts_labels_and_order_apart(other):
    rows = Rows((["a", "bc"],), [0, 1], [0, 1])
    assert fingerprint(rows) != fingerprint(other)
    assert fingerprint(rows) == fingerprint(rows.take([0, 1]))
    assert len(fingerprint(rows)) == 16


def test_a_fingerprint_tells_columns_from_rows():
    assert fingerprint(Rows((["a"], ["b"]), None, [0])) != fingerprint(Rows((["a", "b"],), None, [0, 1]))


def test_the_fingerprint_of_roles_sees_who_has_which_row():
    left, right = Rows((["a"],), [0], [0]), Rows((["b"],), [1], [1])
    assert Roles(left, right, left, 0).fingerprint != Roles(right, left, left, 0).fingerprint
    assert Roles(left, right, left, 0).fingerprint == Roles(left, right, left, 3).fingerprint


# Tasks from local folders


@pytest.mark.parametrize("inner", ["", "sst2"])
def test_a_folder_is_taken_itself_or_by_the_name_of_the_task(tmp_path, inner):
    sst2_folder(tmp_path / inner)
    roles = load_task(SST2, tmp_path)
    assert [len(roles.train), len(roles.select), len(roles.validation), roles.n_set_aside] == [36, 4, 10, 0]
    assert sorted(roles.train.ids + roles.select.ids) == list(range(40))
    for rows in (roles.train, roles.select):
        assert rows.texts[0] == [f"sentence number {i}" for i in rows.ids]
        assert rows.labels == [i % 2 for i in rows.ids]


def test_labels_may_be_names_numbers_or_digits(tmp_path):
    header = ("sentence1", "sentence2", "label")
    names = ["entailment", "not_entailment", " entailment ", "1", 0]
    tsv(tmp_path / "train.tsv", header, [(f"first {i}", f"second {i}", name) for i, name in enumerate(names)])
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1.0, 0.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "validation.parquet")
    roles = load_task(RTE, tmp_path)
    labels = dict(zip(roles.train.ids + roles.select.ids, roles.train.labels + roles.select.labels, strict=True))
    assert [labels[i] for i in range(5)] == [0, 1, 0, 1, 0]
    assert roles.validation.labels == [1, 0]


def test_the_shards_of_a_hub_repository_are_known(tmp_path):
    for name, n in (("train", 10), ("validation", 2)):
        table = pyarrow.table({"sentence": [f"{name} {i}" for i in range(n)], "label": [i % 2 for i in range(n)]})
        parquet.write_table(table, tmp_path / f"{name}-00000-of-00001.parquet")
    assert len(load_task(SST2, tmp_path).validation) == 2


def test_mnli_reports_on_the_split_that_is_asked_for(tmp_path):
    def write(name, n):
        rows = [(f"premise number {name} {i}", f"hypothesis number {name} {i}", i % 3) for i in range(n)]
        tsv(tmp_path / f"{name}.tsv", ("premise", "hypothesis", "label"), rows)

    write("train", 20)
    write("validation", 3)
    assert len(load_task(MNLI, tmp_path).validation) == 3
    with pytest.raises(DataError, match=r"no validation_mismatched\.\* or dev_mismatched\.\*"):
        load_task(MNLI, tmp_path, validation="mismatched")
    write("dev_matched", 4)
    write("validation_mismatched", 5)
    assert len(load_task(MNLI, tmp_path, validation="matched").validation) == 4
    assert len(load_task(MNLI, tmp_path, validation="mismatched").validation) == 5
    with pytest.raises(SettingError, match=r"unknown validation split of mnli 'miss'.*known: matched, mismatched"):
        load_task(MNLI, tmp_path, validation="miss")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (7, r"label '7' is none of negative, positive or 0 to 1"),
        (-1, "label -1 marks a hidden label; use a split with labels"),
        ("good", "label 'good' is none of negative, positive"),
        ("", "label '' is none of"),
        ("nan", "label 'nan' is none of"),
        ("x" * 99, r"label 'x{36}\.\.\. is none of"),
    ],
)
def test_a_label_that_is_none_is_named_with_its_line(tmp_path, label, message):
    sst2_folder(tmp_path)
    tsv(tmp_path / "train.tsv", ("sentence", "label"), [*sst2_rows(5), ("bad", label)])
    with pytest.raises(DataError, match=rf"train\.tsv:7: {message}"):
        load_task(SST2, tmp_path)


@pytest.mark.parametrize("label", ["nan", "inf", "", "high", "1e999"])
def test_a_score_that_is_not_finite_is_named_with_its_line(tmp_path, label):
    rows = [(f"first number {i}", f"second number {i}", i / 4) for i in range(8)]
    tsv(tmp_path / "train.tsv", ("sentence1", "sentence2", "label"), [*rows, ("a", "b", label)])
    tsv(tmp_path / "dev.tsv", ("sentence1", "sentence2", "label"), rows)
    with pytest.raises(DataError, match=rf"train\.tsv:10: label '{label}' is not a finite number"):
        load_task(STSB, tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"sentence": "a", "label": float("nan")}, "label nan is none of"),
        ({"sentence": "a", "label": None}, "label None is none of"),
        ({"sentence": "a", "label": True}, "label True is none of"),
        ({"sentence": "a", "label": [0]}, r"label \[0\] is none of"),
        ({"sentence": None, "label": 0}, "sentence is None, not text"),
        ({"sentence": 5, "label": 0}, "sentence is 5, not text"),
        ({"sentence": "\ud800", "label": 0}, "sentence holds a NUL or half a character"),
        ({"sentence": "a\0", "label": 0}, "sentence holds a NUL or half a character"),
        ({"text": "a", "label": 0}, "no column 'sentence'"),
    ],
)
def test_a_bad_json_value_is_named_with_its_line(tmp_path, record, message):
    good = [{"sentence": f"good {i}", "label": i % 2} for i in range(4)]
    lines = [json.dumps(row) for row in (*good, record)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "dev.jsonl").write_text("\n".join(lines[:4]))
    with pytest.raises(DataError, match=rf"train\.jsonl:5: {message}"):
        load_task(SST2, tmp_path)


def test_an_empty_text_is_a_text(tmp_path):
    sst2_folder(tmp_path)
    tsv(tmp_path / "dev.tsv", ("sentence", "label"), [("", 0), ("b", 1)])
    assert load_task(SST2, tmp_path).validation.texts == (["", "b"],)


@pytest.mark.parametrize(
    ("train", "dev", "message"), [(0, 2, "0 rows"), (1, 2, "1 rows"), (3, 2, "at least 4"), (4, 1, "1 rows")]
)
def test_too_few_rows_say_how_many_are_needed(tmp_path, train, dev, message):
    tsv(tmp_path / "train.tsv", ("sentence", "label"), sst2_rows(train))
    tsv(tmp_path / "dev.tsv", ("sentence", "label"), sst2_rows(dev))
    with pytest.raises(DataError, match=f"{message}.*2 to train on and 2 to hold out"):
        load_task(SST2, tmp_path)


def test_four_rows_are_enough(tmp_path):
    roles = load_task(SST2, sst2_folder(tmp_path, n=4))
    assert (len(roles.train), len(roles.select)) == (2, 2)
    assert set(roles.select.labels) == {0, 1}


def test_folders_and_files_that_are_missing_or_doubtful_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; --data DIR holds train\.\* and validation\.\*"):
        load_task(SST2, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no train\.\*; put one there as \.parquet, \.tsv, \.csv, \.jsonl"):
        load_task(SST2, tmp_path)
    tsv(tmp_path / "train.tsv", ("sentence", "label"), sst2_rows(8))
    with pytest.raises(DataError, match=r"no validation\.\* or dev\.\*"):
        load_task(SST2, tmp_path)
    sst2_folder(tmp_path)
    tsv(tmp_path / "train.csv", ("sentence", "label"), sst2_rows(8))
    with pytest.raises(DataError, match=r"2 files for one role \(train\.csv, train\.tsv\)"):
        load_task(SST2, tmp_path)


def test_sizes_limit_and_seed_are_obeyed(tmp_path):
    folder = sst2_folder(tmp_path, n=100)
    full = load_task(SST2, folder, select_size=7)
    part = load_task(SST2, folder, select_size=7, limit=20)
    assert (len(full.train), len(full.select)) == (93, 7)
    assert part.select == full.select
    assert len(part.train) == 20
    assert set(part.train.ids) < set(full.train.ids)
    assert part.train.ids != full.train.ids[:20]
    assert part == load_task(SST2, folder, select_size=7, limit=20)
    assert part.train.ids != load_task(SST2, folder, select_size=7, limit=20, seed=1).train.ids
    assert load_task(SST2, folder, select_size=7, limit=1000) == full
    with pytest.raises(SettingError, match="limit 1 is below 2"):
        load_task(SST2, folder, limit=1)
    with pytest.raises(SettingError, match="cannot hold out 99 of 100"):
        load_task(SST2, folder, select_size=99)


# The hub


def glue_like(**splits):
    def made(n):
        return datasets.Dataset.from_dict(
            {"sentence": [f"sentence number {i}" for i in range(n)], "label": [0, 1] * (n // 2)}
        )

    return datasets.DatasetDict({name: made(n) for name, n in splits.items()})


def test_without_a_folder_the_hub_is_asked(monkeypatch):
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return glue_like(train=40, validation=6, test=8)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    roles = load_task(SST2)
    assert set(asked) == {("nyu-mll/glue", "sst2")}
    assert (len(roles.train), len(roles.select), len(roles.validation)) == (36, 4, 6)
    assert roles.validation.texts[0][5] == "sentence number 5"


@pytest.mark.parametrize(("split", "n"), [("matched", 4), ("mismatched", 6)])
def test_the_hub_is_asked_for_the_right_mnli_split(monkeypatch, split, n):
    def made(n_rows):
        names = [f"number {i} of many rows" for i in range(n_rows)]
        return datasets.Dataset.from_dict(
            {"premise": names, "hypothesis": names, "label": [i % 3 for i in range(n_rows)]}
        )

    found = datasets.DatasetDict(train=made(20), validation_matched=made(4), validation_mismatched=made(6))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: found)
    assert len(load_task(MNLI, validation=split).validation) == n


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("not cached"), RuntimeError()])
def test_a_hub_that_is_not_reached_suggests_a_folder(monkeypatch, error):
    def load_dataset(*_):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"nyu-mll/glue/sst2 train: not available here \(.*\); give .* --data DIR"
    ) as caught:
        load_task(SST2)
    assert "\n" not in str(caught.value)


def test_a_hidden_label_from_the_hub_is_named_with_its_row(monkeypatch):
    found = glue_like(train=40, validation=6)
    found["validation"] = found["validation"].map(lambda _: {"label": -1})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: found)
    with pytest.raises(DataError, match="nyu-mll/glue/sst2 validation row 0: label -1 marks a hidden label"):
        load_task(SST2)


def test_tasks_outside_the_hub_ask_for_a_folder():
    with pytest.raises(SettingError, match="task trec is read from files only; give its folder with --data DIR"):
        load_task(TASKS["trec"])


# Own files


@pytest.mark.parametrize(
    ("values", "labels", "metric"),
    [
        (["yes", "no", "maybe"], ("maybe", "no", "yes"), "accuracy"),
        ([0, 1, 2], ("0", "1", "2"), "accuracy"),
        ([2, 10, 1], ("1", "2", "10"), "accuracy"),
        (["1.0", "2.5", "3"], (), "pearson_spearman"),
        (["1.0", "2.0", "bad"], ("1.0", "2.0", "bad"), "accuracy"),
    ],
)
def test_the_kind_of_task_follows_from_the_labels(tmp_path, values, labels, metric):
    train, validation = own_files(tmp_path, values * 5, held=values)
    task, roles = load_files(train, validation, text="words", label="class")
    assert (task.labels, task.metric, task.texts, task.label) == (labels, metric, ("words",), "class")
    assert roles.validation.labels == [labels.index(str(value)) if labels else float(value) for value in values]


def test_a_metric_decides_between_classes_and_scores(tmp_path):
    train, validation = own_files(tmp_path, [1, 2, 3, 4, 5] * 4)
    task, roles = load_files(train, validation, text="words", label="class", metric="pearson_spearman")
    assert task.is_regression
    assert roles.validation.labels[:3] == [1.0, 2.0, 3.0]
    with pytest.raises(SettingError, match="needs 2 classes and task files has 5"):
        load_files(train, validation, text="words", label="class", metric="accuracy_f1")
    with pytest.raises(SettingError, match="unknown metric 'acc'"):
        load_files(train, validation, text="words", label="class", metric="acc")


def test_typed_numbers_in_parquet_are_scores_only_when_they_are_decimals(tmp_path):
    for name, values, regression in (
        ("i", [0, 1] * 5, False),
        ("f", [0.0, 1.0] * 5, True),
        ("b", [True, False] * 5, False),
    ):
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table({"words": [f"number {i}" for i in range(10)], "class": values}), path)
        task, _ = load_files(path, path, text="words", label="class")
        assert task.is_regression == regression
    assert task.labels == ("False", "True")


def test_two_text_columns_make_pairs(tmp_path):
    rows = [(f"left {i}", f"right {i}", "ab"[i % 2]) for i in range(10)]
    path = tsv(tmp_path / "a.tsv", ("one", "two", "class"), rows)
    task, roles = load_files(path, path, text="one", text_pair="two", label="class", select_size=3, limit=5)
    assert task.texts == ("one", "two")
    assert roles.validation.texts[1][9] == "right 9"
    assert (len(roles.train), len(roles.select)) == (5, 3)


@pytest.mark.parametrize(
    ("labels", "held", "message"),
    [
        (["a", "b"] * 5, ["a", "c"], r"held\.tsv:3: label 'c' is none of a, b; mend"),
        (["a", "b"] * 5, ["a", 0], r"held\.tsv:3: label '0' is none of a, b; mend"),
        ([1, 2] * 5, [1, 0], r"held\.tsv:3: label '0' is none of 1, 2; mend"),
        (["a"] * 10, None, r"mine\.tsv: every row of column 'class' has the same label"),
        (["a", ""] * 5, None, r"mine\.tsv:3: label '' is empty"),
        (["a", "NaN"] * 5, None, r"mine\.tsv:3: label 'NaN' is empty"),
        ([1.5, "nan"] * 5, None, r"mine\.tsv:3: label 'nan' is empty"),
        (list(range(40)), None, "40 different labels in 40 rows of column 'class' are no classes; for a regression"),
    ],
)
def test_own_labels_that_cannot_be_used_are_named(tmp_path, labels, held, message):
    train, validation = own_files(tmp_path, labels, held)
    with pytest.raises(DataError, match=message):
        load_files(train, validation, text="words", label="class")


def test_roles_can_be_split_from_rows_in_memory():
    rows = Rows(([f"row number {i}" for i in range(20)],), [i % 2 for i in range(20)], list(range(100, 120)))
    train, select, n_set_aside = split_roles(rows, size=4, seed=0)
    assert sorted(train.ids + select.ids) == rows.ids
    assert (len(select), n_set_aside) == (4, 0)


# Real data


@pytest.mark.parametrize(
    ("name", "n_validation", "n_select"),
    [("cola", 1043, 855), ("rte", 277, 249), ("stsb", 1500, 574), ("trec", 500, 545)],
)
def test_real_tasks_load_with_their_official_sizes(data_dir, name, n_validation, n_select):
    roles = load_task(TASKS[name], data_dir)
    assert (len(roles.validation), len(roles.select)) == (n_validation, n_select)
    assert roles.n_set_aside <= 0.01 * len(roles.train)
    assert len(set(roles.select.labels)) == len(set(roles.validation.labels)) or name == "stsb"


def test_trec_classes_are_in_the_order_of_the_file(data_dir):
    validation = load_task(TASKS["trec"], data_dir).validation
    typical = {"ABBR": "stand for", "HUM": "who ", "LOC": "where", "NUM": "how many", "DESC": "what is "}
    for name, phrase in typical.items():
        number = TASKS["trec"].labels.index(name)
        texts = [text.lower() for text in validation.texts[0]]
        share = {
            label: sum(phrase in text for text, other in zip(texts, validation.labels, strict=True) if other == label)
            / validation.labels.count(label)
            for label in range(6)
        }
        assert max(share, key=share.get) == number, (name, share)


@pytest.mark.parametrize("columns", [{"text_pair": "text"}, {"label": "text"}])
def test_a_column_has_one_part(tmp_path, columns):
    given = {"text": "text", "label": "class", **columns}
    with pytest.raises(SettingError, match="given twice"):
        load_files(tmp_path / "a.csv", tmp_path / "b.csv", **given)
