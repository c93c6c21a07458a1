"""Intervals and differences: the quick way equals the plain loop, they cover what they should, and pairs stay pairs."""

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from dynabert.errors import DataError, SettingError
from dynabert.statistics import (
    ROW_METRICS,
    averaged,
    bootstrap_interval,
    grid_difference,
    holm,
    interval_of,
    mean_difference,
    p_value,
    paired_difference,
    resampled_difference,
    resampled_shares,
)
from dynabert.tasks import TASKS, metric_of

ACCURACY = ROW_METRICS["accuracy"]
TASK_OF = {"accuracy": "mnli", "matthews": "cola", "pearson": "stsb"}


def rows(metric: str, n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits that are right more often than not."""
    random = np.random.default_rng(seed)
    task = TASKS[TASK_OF[metric]]
    if task.is_regression:
        labels = random.random(n).astype(np.float32) * 5
        return labels, (labels + random.normal(size=n).astype(np.float32))[:, None]
    labels = random.integers(0, task.n_labels, n)
    return labels, random.normal(size=(n, task.n_labels)) + 1.5 * np.eye(task.n_labels)[labels]


def guesses(labels: np.ndarray, share_right: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.where(random.random(len(labels)) < share_right, labels, 1 - labels)


@pytest.mark.parametrize("metric", ROW_METRICS)
def test_row_metrics_equal_those_of_the_tasks(metric: str) -> None:
    labels, logits = rows(metric)
    task = TASKS[TASK_OF[metric]]
    assert ROW_METRICS[metric](labels, logits) == pytest.approx(metric_of(task, labels, logits)[metric], abs=1e-12)


@pytest.mark.parametrize("metric", ROW_METRICS)
def test_the_quick_way_equals_a_loop_over_resampled_rows(metric: str) -> None:
    labels, logits = rows(metric)
    task = TASKS[TASK_OF[metric]]

    def plain(some_labels: np.ndarray, some_logits: np.ndarray) -> float:
        return metric_of(task, some_labels, some_logits)[metric]

    quick = bootstrap_interval(ROW_METRICS[metric], labels, logits, n=50, seed=3)
    assert quick == pytest.approx(bootstrap_interval(plain, labels, logits, n=50, seed=3), abs=1e-12)


def test_resamples_in_several_chunks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, logits = rows("accuracy")
    whole = bootstrap_interval(ACCURACY, labels, logits, n=70)
    monkeypatch.setattr("dynabert.statistics._CHUNK", 30 * len(labels))
    assert bootstrap_interval(ACCURACY, labels, logits, n=70) == whole


@pytest.mark.parametrize("metric", ["matthews", "pearson"])
@pytest.mark.parametrize("value", [0.1, 3.0])
def test_correlation_with_a_constant_is_zero(metric: str, value: float) -> None:
    labels, _ = rows(metric)
    constant = np.full(len(labels), value)
    assert ROW_METRICS[metric](labels, constant) == 0
    assert bootstrap_interval(ROW_METRICS[metric], labels, constant, n=20) == (0, 0)


def test_many_classes_take_no_more_than_a_column_each() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 300, 2000)
    predictions = np.where(random.random(2000) < 0.7, labels, random.integers(0, 300, 2000))
    metric = ROW_METRICS["matthews"]
    assert metric.terms(labels, predictions).shape == (2000, 601)
    assert metric(labels, predictions) == pytest.approx(matthews_corrcoef(labels, predictions))


def test_resample_with_one_value_only_counts_zero() -> None:
    labels, predictions = np.array([0.1, 0.2]), np.array([0.3, 0.9])
    low, high = bootstrap_interval(ROW_METRICS["pearson"], labels, predictions, n=200)
    assert (low, high) == (0, pytest.approx(1))


def test_interval_covers_the_true_accuracy_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(300):
        labels = np.zeros(300, dtype=np.int64)
        low, high = bootstrap_interval(ACCURACY, labels, guesses(labels, 0.8, trial), n=300, level=0.9, seed=trial)
        covered += low <= 0.8 <= high
    assert 0.86 <= covered / 300 <= 0.94


def test_wider_level_gives_wider_interval() -> None:
    labels, logits = rows("accuracy")
    narrow = bootstrap_interval(ACCURACY, labels, logits, level=0.5)
    wide = bootstrap_interval(ACCURACY, labels, logits, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_difference_with_itself_is_zero_and_certain() -> None:
    labels, logits = rows("matthews")
    assert paired_difference(ROW_METRICS["matthews"], labels, logits, logits) == (0, 0, 0)


def test_difference_is_a_minus_b_and_pairing_makes_it_sharp() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 1000)
    b = guesses(labels, 0.8, seed=1)
    a = b.copy()
    wrong = np.flatnonzero(a != labels)[:30]
    a[wrong] = labels[wrong]
    mean, low, high = paired_difference(ACCURACY, labels, a, b)
    assert mean == pytest.approx(0.03)
    assert 0.015 < low < 0.03 < high < 0.045  # each accuracy alone is only known to 0.025


def test_difference_of_logits_equals_that_of_their_classes() -> None:
    labels, a = rows("accuracy")
    _, b = rows("accuracy", seed=1)
    expected = paired_difference(ACCURACY, labels, a.argmax(axis=1), b.argmax(axis=1))
    assert paired_difference(ACCURACY, labels, a, b) == expected


def test_one_seed_in_a_list_is_the_same_as_without_a_list() -> None:
    labels, a = rows("accuracy")
    _, b = rows("accuracy", seed=1)
    assert paired_difference(ACCURACY, labels, [a], [b]) == paired_difference(ACCURACY, labels, a, b)


def test_seeds_that_disagree_widen_the_interval() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 2000)
    b = [guesses(labels, 0.80, seed) for seed in range(5)]
    even = [guesses(labels, 0.85, 10 + seed) for seed in range(5)]
    uneven = [guesses(labels, share, 10 + seed) for seed, share in enumerate((0.65, 0.75, 0.85, 0.95, 1.0))]
    sure, unsure = paired_difference(ACCURACY, labels, even, b), paired_difference(ACCURACY, labels, uneven, b)
    assert sure.mean == pytest.approx(0.05, abs=0.02)
    assert unsure.high - unsure.low > 3 * (sure.high - sure.low)
    assert sure.low > 0 > unsure.low


@pytest.mark.parametrize(("n_tasks", "n_seeds"), [(1, 2), (1, 3), (1, 5), (4, 2), (4, 3)])
def test_few_seeds_are_as_sure_as_they_can_be(n_tasks: int, n_seeds: int) -> None:
    # The true difference is 0. Drawing anew among three seeds of one task would miss it twice as often as they say.
    random, metric, trials = np.random.default_rng(0), ROW_METRICS["accuracy"], 300
    labels = np.zeros(1000, dtype=np.int64)

    def run(accuracy: float) -> np.ndarray:
        return (np.arange(1000) >= 1000 * accuracy).astype(np.int64)

    covered, small = 0, 0
    for trial in range(trials):
        tasks = []
        for task in range(n_tasks):
            sides = [[run(0.8 + 0.02 * random.standard_normal()) for _ in range(n_seeds)] for _ in range(2)]
            seed = n_tasks * trial + task
            tasks.append(resampled_difference(metric, labels, {"": sides[0]}, {"": sides[1]}, n=400, seed=seed))
        low, high = mean_difference(tasks)[1:]
        covered += low <= 0 <= high
        small += p_value(averaged(tasks).values) < 0.01
    assert 0.92 <= covered / trials <= 0.99 and small / trials <= 0.03


def test_seeds_stay_paired() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 400)
    b = [guesses(labels, share, seed) for seed, share in enumerate((0.5, 0.7, 0.9))]
    assert paired_difference(ACCURACY, labels, b, b) == (0, 0, 0)


def test_grid_difference_is_that_of_the_means_over_subnets() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 500)
    a = {name: guesses(labels, 0.9, seed) for seed, name in enumerate(("w1-d1", "w0.5-d1"))}
    b = {name: guesses(labels, 0.8, 10 + seed) for seed, name in enumerate(("w0.5-d1", "w1-d1"))}
    mean, low, high = grid_difference(ACCURACY, labels, a, b)
    expected = np.mean([ACCURACY(labels, runs) for runs in a.values()])
    expected -= np.mean([ACCURACY(labels, runs) for runs in b.values()])
    assert mean == pytest.approx(expected)
    assert low < mean < high
    single = paired_difference(ACCURACY, labels, a["w1-d1"], b["w1-d1"])
    assert high - low < single.high - single.low  # independent errors average out


def test_grid_difference_resamples_all_subnets_together() -> None:
    """Subnets that make the same errors tell no more than one of them."""
    labels = np.random.default_rng(0).integers(0, 2, 500)
    a, b = guesses(labels, 0.9, 0), guesses(labels, 0.8, 1)
    many = grid_difference(ACCURACY, labels, dict.fromkeys("xyz", a), dict.fromkeys("xyz", b))
    assert many == pytest.approx(paired_difference(ACCURACY, labels, a, b))


def test_a_mean_over_tasks_is_surer_than_each_of_them() -> None:
    comparisons, single = [], []
    for task in range(4):
        labels = np.random.default_rng(task).integers(0, 2, 400)
        a, b = guesses(labels, 0.9, 10 + task), guesses(labels, 0.85, 20 + task)
        comparisons.append(resampled_difference(ACCURACY, labels, {"": a}, {"": b}, seed=task))
        single.append(paired_difference(ACCURACY, labels, a, b, seed=task))
    mean, low, high = mean_difference(comparisons)
    assert mean == pytest.approx(np.mean([difference.mean for difference in single]))
    spread = np.mean([difference.high - difference.low for difference in single])
    assert high - low == pytest.approx(spread / 2, rel=0.2)  # four independent errors


def test_p_values_are_small_where_the_interval_is_away_from_zero() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 2000)
    good, better, same = guesses(labels, 0.8, 0), guesses(labels, 0.9, 1), guesses(labels, 0.8, 2)
    clear = resampled_difference(ACCURACY, labels, {"": better}, {"": good}, n=999).values
    unclear = resampled_difference(ACCURACY, labels, {"": same}, {"": good}, n=999).values
    assert p_value(clear) == pytest.approx(2 / 1000)  # no resample at the other side of 0
    assert p_value(-clear) == p_value(clear)
    assert p_value(unclear) > 0.05
    assert p_value(np.zeros(9)) == 1


def test_holm_makes_the_smallest_p_value_as_many_times_larger_as_there_are() -> None:
    # Holm's steps by hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, then never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_same_seed_same_interval() -> None:
    labels, logits = rows("accuracy")
    assert bootstrap_interval(ACCURACY, labels, logits, seed=1) == bootstrap_interval(ACCURACY, labels, logits, seed=1)
    assert bootstrap_interval(ACCURACY, labels, logits, seed=1) != bootstrap_interval(ACCURACY, labels, logits, seed=2)


@pytest.mark.parametrize("settings", [{"n": 0}, {"level": 1.0}, {"level": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    labels, logits = rows("accuracy")
    with pytest.raises(SettingError, match=r"1000 are usual|0\.95 is usual"):
        bootstrap_interval(ACCURACY, labels, logits, **settings)


def test_rows_that_do_not_fit_are_refused() -> None:
    labels, logits = rows("accuracy")
    with pytest.raises(DataError, match="200 labels and predictions of"):
        bootstrap_interval(ACCURACY, labels, logits[:-1])
    with pytest.raises(DataError, match="0 labels"):
        bootstrap_interval(ACCURACY, labels[:0], logits[:0])
    with pytest.raises(DataError, match=r"199, 200"):
        paired_difference(ACCURACY, labels, logits, logits[:-1])


def test_what_cannot_be_paired_is_refused() -> None:
    labels, logits = rows("accuracy")
    with pytest.raises(SettingError, match=r"\[1, 2\] seeds"):
        paired_difference(ACCURACY, labels, [logits, logits], [logits])
    with pytest.raises(SettingError, match=r"\['a'\] with \['b'\]"):
        grid_difference(ACCURACY, labels, {"a": logits}, {"b": logits})
    with pytest.raises(SettingError, match="cannot pair"):
        grid_difference(ACCURACY, labels, {}, {})


def test_shares_of_resamples_give_the_intervals_of_what_follows_from_means() -> None:
    labels, logits = rows("accuracy")
    right = (labels == logits.argmax(1)).astype(np.float64)
    chunks = list(resampled_shares(len(labels), 1000, seed=3))
    shares = np.concatenate(chunks)
    assert shares.shape == (1000, 200) and shares.sum(1) == pytest.approx(1)
    assert interval_of(shares @ right) == pytest.approx(bootstrap_interval(ACCURACY, labels, logits, seed=3))
    assert [len(chunk) for chunk in resampled_shares(200, 25, at_once=10)] == [10, 10, 5]
    with pytest.raises(DataError, match="no rows"):
        next(resampled_shares(0))
