import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from dynabert.errors import DataError, NonFiniteError, SettingError
from dynabert.tasks import METRICS, TASKS, Task, metric_of, task_of

CLASSES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)
SCORES = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30)


def one_hot(predictions, n_classes):
    return np.eye(n_classes)[np.asarray(predictions)]


def test_the_table_has_all_of_glue():
    on_hub = [name for name, task in TASKS.items() if task.hub]
    assert sorted(on_hub) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
    assert [TASKS[name].n_labels for name in ("sst2", "mnli", "stsb", "trec")] == [2, 3, 1, 6]


@pytest.mark.parametrize(
    ("name", "primary"), [("sst2", "accuracy"), ("cola", "matthews"), ("stsb", "pearson"), ("qqp", "accuracy")]
)
def test_the_main_metric_comes_first(name, primary):
    task = TASKS[name]
    logits = np.linspace(0, 1, 4) if task.is_regression else one_hot([0, 1, 1, 0], task.n_labels)
    values = metric_of(task, [0, 1, 0, 1], logits)
    assert next(iter(values)) == task.primary_metric == primary
    assert "_".join(values) == task.metric


def test_entailment_has_the_number_that_each_task_gives_it():
    assert [TASKS[name].labels.index("entailment") for name in ("mnli", "qnli", "rte", "wnli")] == [0, 0, 0, 1]


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(SettingError, match=r"unknown task 'sst-2' \(did you mean 'sst2'\?\); known: cola, sst2, mrpc"):
        task_of("sst-2")
    assert task_of("sst2") is TASKS["sst2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": ()}, "0 text columns"),
        ({"texts": ("a", "b", "c")}, "3 text columns"),
        ({"metric": "acuracy"}, "did you mean 'accuracy'"),
        ({"labels": ("only",)}, "at least two"),
        ({"labels": ("a", "a")}, "each once"),
        ({"labels": ()}, "has a regression"),
        ({"metric": "pearson_spearman"}, "has classes"),
        ({"metric": "accuracy_f1", "labels": ("a", "b", "c")}, "needs 2 classes"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(SettingError, match=message):
        dataclasses.replace(TASKS["sst2"], **change)


@given(CLASSES)
@settings(deadline=None)
def test_f1_and_accuracy_are_those_of_sklearn(pairs):
    labels, predictions = np.array(pairs).T
    values = metric_of(TASKS["mrpc"], labels, one_hot(predictions, 2))
    assert values["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert values["f1"] == pytest.approx(metrics.f1_score(labels, predictions, zero_division=0))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
@settings(deadline=None)
def test_matthews_is_that_of_sklearn_for_any_number_of_classes(pairs):
    labels, predictions = np.array(pairs).T
    if len({*labels, *predictions}) == 1:
        return  # sklearn warns there; ours is in the test of constants
    value = METRICS["matthews"](labels, predictions)["matthews"]
    assert value == pytest.approx(metrics.matthews_corrcoef(labels, predictions), abs=1e-12)


@given(SCORES)
@settings(deadline=None)
def test_correlations_are_those_of_scipy(pairs):
    labels, scores = np.array(pairs, dtype=np.float64).T
    if len(set(labels)) == 1 or len(set(scores)) == 1:
        return  # scipy warns there; ours is in the test of constants
    values = metric_of(TASKS["stsb"], labels, scores)
    assert values["pearson"] == pytest.approx(stats.pearsonr(labels, scores).statistic, abs=1e-12)
    assert values["spearman"] == pytest.approx(stats.spearmanr(labels, scores).statistic, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30])
def test_a_constant_prediction_correlates_with_nothing(value):
    for n_rows in range(3, 12):  # the mean of some numbers of equal values is not exactly that value
        constant, varying = np.full(n_rows, value), np.arange(n_rows) ** 2.0
        assert metric_of(TASKS["stsb"], varying, constant) == {"pearson": 0.0, "spearman": 0.0}
        assert metric_of(TASKS["stsb"], constant, varying) == {"pearson": 0.0, "spearman": 0.0}
    assert metric_of(TASKS["cola"], [0, 1, 1], one_hot([1, 1, 1], 2)) == {"matthews": 0.0}
    assert metric_of(TASKS["cola"], [1, 1, 1], one_hot([1, 1, 1], 2)) == {"matthews": 0.0}


def test_a_regression_takes_a_column_or_a_row_of_scores():
    labels, scores = [1.0, 2.0, 4.0], np.array([1.0, 3.0, 4.0], dtype=np.float32)
    assert metric_of(TASKS["stsb"], labels, scores) == metric_of(TASKS["stsb"], labels, scores[:, None])


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 2), (0, 2)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match=r"it needs \(rows,\) and \(rows, 2\)"):
        metric_of(TASKS["sst2"], [0] * 3 if shape[0] else [], np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_never_scored(bad):
    logits = np.zeros((3, 2))
    logits[1] = bad
    with pytest.raises(NonFiniteError, match="1 of 3 predictions"):
        metric_of(TASKS["sst2"], [0, 1, 0], logits)


def test_own_tasks_need_no_hub():
    assert Task("mine", ("text",), labels=("no", "yes")).hub is None
