"""Bootstrap intervals over rows, paired over rows and seeds: how sure a measured number or difference is.

A metric whose value follows from means over rows (accuracy, Matthews, Pearson) is resampled by one matrix product:
how often each row was drawn, times what each row adds. Everything that is compared is resampled with the same draws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from dynabert.errors import DataError, SettingError

MetricFunction: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
"""Labels (rows,) and predictions (rows, ...) to a number. A `RowMetric` is one, and a thousand times as fast here."""

Predictions: TypeAlias = np.ndarray | Sequence[np.ndarray]
"""Of one model: class numbers or scores of shape (rows,), or logits (rows, classes). A list of those: one per seed."""

_CHANCE = 16  # seed of the draws of the chance of training
_CHUNK = 2_000_000  # draws that are held at once


class Interval(NamedTuple):
    """The range that holds a share `level` of the resampled values."""

    low: float
    high: float


class Difference(NamedTuple):
    """The measured difference a - b and the range that holds a share `level` of the resampled ones."""

    mean: float
    low: float
    high: float


class Resampled(NamedTuple):
    """A difference a - b as measured, how it varies with the rows, and how it would with other trainings.

    :param mean: as measured, mean over the seeds.
    :param by_rows: on each resample of the rows, shape (n,).
    :param variance: of the mean over as many seeds of other trainings; 0 where one seed tells nothing of it.
    :param freedom: degrees of freedom that the variance is known with.
    """

    mean: float
    by_rows: np.ndarray
    variance: float = 0.0
    freedom: float = np.inf

    @property
    def values(self) -> np.ndarray:
        """With both chances, shape (n,): that of training by Student's t, the same draws for all that is compared."""
        if not self.variance:
            return self.by_rows
        draws = np.random.default_rng(_CHANCE).standard_t(self.freedom, len(self.by_rows))
        return self.by_rows + np.sqrt(self.variance) * draws


@dataclass(frozen=True)
class RowMetric:
    """A metric that is a function of means over the rows.

    :param terms: labels (rows,) and predictions (rows,) to what each row adds, shape (rows, terms).
    :param value: means of the terms, shape (..., terms), to the metric, shape (...).
    """

    terms: Callable[[np.ndarray, np.ndarray], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]

    def __call__(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        """The metric of predictions of shape (rows,), or logits (rows, classes)."""
        return float(self.value(self.terms(labels, _decided(predictions)).mean(axis=0)))


def _decided(predictions: np.ndarray) -> np.ndarray:
    """Class numbers of logits (rows, classes); one column, or none, is taken as it is."""
    if predictions.ndim == 1:
        return predictions
    return predictions[:, 0] if predictions.shape[1] == 1 else predictions.argmax(axis=1)


def _correct(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return (labels == predictions)[:, None].astype(np.float64)


def _agreed_and_chosen(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Whether they agree, and which class each is, (rows, 1 + 2 classes): all of a confusion matrix that is needed."""
    classes, coded = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    truth, guess = np.split(np.eye(len(classes))[coded], 2)
    return np.concatenate([_correct(labels, predictions), truth, guess], axis=1)


def _matthews(means: np.ndarray) -> np.ndarray:
    truth, guess = np.split(means[..., 1:], 2, axis=-1)
    together = means[..., 0] - (truth * guess).sum(axis=-1)
    return _ratio(together, 1 - (truth**2).sum(axis=-1), 1 - (guess**2).sum(axis=-1))


def _moments(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    left, right = _standardized(labels), _standardized(predictions)
    return np.stack([left, right, left * left, right * right, left * right], axis=1)


def _standardized(values: np.ndarray) -> np.ndarray:
    # The mean of equal numbers is not always that number, so what is constant is seen before it is centred.
    if values.min() == values.max():
        return np.zeros(len(values))
    centred = values.astype(np.float64) - values.mean(dtype=np.float64)
    return centred / centred.std()


def _pearson(means: np.ndarray) -> np.ndarray:
    left, right, left_square, right_square, product = np.moveaxis(means, -1, 0)
    return _ratio(product - left * right, left_square - left**2, right_square - right**2)


def _ratio(together: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A covariance over the root of two variances; 0 where a variance is no more than the error of its rounding."""
    spread = np.minimum(left, right) > 1e-12
    lengths = np.sqrt(np.where(spread, left * right, 1))
    return np.where(spread, np.clip(together / lengths, -1, 1), 0)


ROW_METRICS: Mapping[str, RowMetric] = {
    "accuracy": RowMetric(_correct, lambda means: means[..., 0]),
    "matthews": RowMetric(_agreed_and_chosen, _matthews),
    "pearson": RowMetric(_moments, _pearson),
}
"""By the names of `dynabert.tasks.Task.primary_metric`, with equal values."""


def bootstrap_interval(
    metric_fn: MetricFunction,
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of a metric, over rows.

    :param metric_fn: one of `ROW_METRICS`, or any function of labels and predictions (called n times).
    :param labels: shape (rows,).
    :param predictions: shape (rows,), or logits (rows, classes).
    :param n: resamples.
    :param level: share of the resampled values inside, in (0, 1).
    :param seed: of the draws; the same seed and number of rows give the same draws.
    :return: low and high end, in the unit of the metric.
    :raises SettingError: `n` or `level` out of range.
    :raises DataError: no rows, or labels and predictions of different length.
    """
    _check(labels, [predictions], n)
    _check_level(level)
    values = _resampled(metric_fn, labels, [predictions], n, np.random.default_rng(seed))
    return interval_of(values[:, 0], level)


def paired_difference(
    metric_fn: MetricFunction,
    labels: np.ndarray,
    predictions_a: Predictions,
    predictions_b: Predictions,
    *,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """How much better a is than b on the same rows, and how sure that is.

    Both are resampled with the same rows. Given lists, the seeds are paired too, a's with b's at the same place, and
    the chance of training is added: by Student's t, for few seeds tell little of it. Of two seeds intervals are very
    wide; of one they say nothing of other trainings.

    :param metric_fn: as in `bootstrap_interval`.
    :param labels: shape (rows,).
    :param predictions_a: of one model, or a list with those of each seed.
    :param predictions_b: likewise, as many.
    :param n: resamples.
    :param level: share of the resampled differences inside, in (0, 1).
    :param seed: of the draws.
    :return: the difference a - b on the rows as they are (over seeds: its mean), and its low and high end.
    :raises SettingError: `n` or `level` out of range, or numbers of seeds that differ.
    :raises DataError: no rows, or labels and predictions of different length.
    """
    return grid_difference(metric_fn, labels, {"": predictions_a}, {"": predictions_b}, n=n, level=level, seed=seed)


def grid_difference(
    metric_fn: MetricFunction,
    labels: np.ndarray,
    predictions_a: Mapping[str, Predictions],
    predictions_b: Mapping[str, Predictions],
    *,
    n: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """As `paired_difference`, for the mean over several Subnets; all are resampled with the same rows.

    :param predictions_a: predictions, or lists of them by seed, by the name of the Subnet.
    :param predictions_b: likewise, of the same Subnets.
    :return: the difference a - b of the means over the Subnets, and its low and high end.
    :raises SettingError: Subnets or numbers of seeds that differ, or `n` or `level` out of range.
    :raises DataError: no rows, or labels and predictions of different length.
    """
    resampled = resampled_difference(metric_fn, labels, predictions_a, predictions_b, n=n, seed=seed)
    return mean_difference([resampled], level=level)


def resampled_difference(
    metric_fn: MetricFunction,
    labels: np.ndarray,
    predictions_a: Mapping[str, Predictions],
    predictions_b: Mapping[str, Predictions],
    *,
    n: int = 1000,
    seed: int = 0,
) -> Resampled:
    """What `grid_difference` takes its interval from; the parameters and errors are its own.

    :return: see `Resampled`.
    """
    sides = [_by_seed(predictions_a), _by_seed(predictions_b)]
    if not predictions_a or set(sides[0]) != set(sides[1]):
        raise SettingError(
            f"cannot pair Subnets {sorted(sides[0])} with {sorted(sides[1])}; give the same on both sides"
        )
    n_seeds = {len(runs) for side in sides for runs in side.values()}
    if len(n_seeds) > 1 or 0 in n_seeds:
        raise SettingError(f"cannot pair {sorted(n_seeds)} seeds; give predictions of the same seeds on both sides")
    shape = (2, len(sides[0]), n_seeds.pop())
    runs = [run for side in sides for by_seed in side.values() for run in by_seed]
    _check(labels, runs, n)

    random = np.random.default_rng(seed)
    measured = np.array([metric_fn(labels, run) for run in runs]).reshape(shape)
    resampled = _resampled(metric_fn, labels, runs, n, random).reshape(n, *shape)
    own = (measured[0] - measured[1]).mean(axis=0)  # (seeds,): a - b of the mean over the Subnets
    by_rows = (resampled[:, 0] - resampled[:, 1]).mean(axis=(1, 2))  # (resamples,): likewise, mean over the seeds
    if len(own) == 1:
        return Resampled(float(own.mean()), by_rows)
    # Drawing anew among two or three seeds instead would show far too little of the chance of training.
    return Resampled(float(own.mean()), by_rows, float(own.var(ddof=1)) / len(own), len(own) - 1)


def mean_difference(comparisons: Sequence[Resampled], *, level: float = 0.95) -> Difference:
    """The mean of several differences, of one for each task for instance, and its interval.

    :param comparisons: from `resampled_difference`, with the same `n`; each with a seed of its own, so that the tasks
        are resampled independently.
    :param level: share of the resampled means inside, in (0, 1).
    :raises SettingError: no comparisons, or `level` out of range.
    """
    _check_level(level)
    mean = averaged(comparisons)
    return Difference(mean.mean, *_bounds(mean.values, level))


def averaged(comparisons: Sequence[Resampled]) -> Resampled:
    """The mean of several differences; the parameter is that of `mean_difference`.

    The more of them, the better known is the chance of training: degrees of freedom after Welch and Satterthwaite.

    :raises SettingError: no comparisons.
    """
    if not comparisons:
        raise SettingError("no differences to average; give at least one")
    n = len(comparisons)
    variances, freedoms = (np.array([getattr(one, name) for one in comparisons]) for name in ("variance", "freedom"))
    known = float((variances**2 / freedoms).sum())
    return Resampled(
        mean=float(np.mean([one.mean for one in comparisons])),
        by_rows=np.mean([one.by_rows for one in comparisons], axis=0),
        variance=float(variances.sum()) / n**2,
        freedom=float(variances.sum()) ** 2 / known if known else np.inf,
    )


def p_value(resampled: np.ndarray) -> float:
    """How likely a difference at least as far from 0 is if there is none: two-sided, from a bootstrap.

    :param resampled: differences on each resample, shape (n,).
    :return: in (0, 1], at least 2 / (n + 1): so few resamples show no more.
    """
    n_low, n_high = int((resampled <= 0).sum()), int((resampled >= 0).sum())
    return min(1.0, 2 * (1 + min(n_low, n_high)) / (1 + len(resampled)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values made larger so that among all of them one below 0.05 comes by chance in one of 20 studies (Holm 1979).

    :return: in the order given.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _by_seed(predictions: Mapping[str, Predictions]) -> dict[str, list[np.ndarray]]:
    return {name: [runs] if isinstance(runs, np.ndarray) else list(runs) for name, runs in predictions.items()}


def _resampled(
    metric_fn: MetricFunction, labels: np.ndarray, runs: Sequence[np.ndarray], n: int, random: np.random.Generator
) -> np.ndarray:
    """The metric of each run on each resample of the rows, shape (n, runs)."""
    n_rows = len(labels)
    if not isinstance(metric_fn, RowMetric):
        draws = (draw for chunk in _draws(n_rows, n, random) for draw in chunk)
        return np.array([[metric_fn(labels[draw], run[draw]) for run in runs] for draw in draws])
    terms = [metric_fn.terms(labels, _decided(run)) for run in runs]
    values = []
    for chunk in _draws(n_rows, n, random):
        counts = _counts(chunk)
        values.append(np.stack([metric_fn.value(counts @ part / n_rows) for part in terms], axis=1))
    return np.concatenate(values)


def resampled_shares(n_rows: int, n: int = 1000, *, seed: int = 0, at_once: int | None = None) -> Iterator[np.ndarray]:
    """Resamples of rows, for what follows from means over the rows: a matrix product with these gives those means.

    :param n_rows: rows, of which each resample draws as many.
    :param n: resamples.
    :param seed: of the draws.
    :param at_once: resamples in one chunk; by default as many as fit into a few megabytes.
    :return: chunks of shape (resamples, rows): how much of each resample is each row.
    :raises DataError: no rows.
    """
    if n_rows < 1:
        raise DataError("there are no rows to resample; give at least one")
    for chunk in _draws(n_rows, n, np.random.default_rng(seed), at_once):
        yield _counts(chunk) / n_rows


def _draws(n_rows: int, n: int, random: np.random.Generator, at_once: int | None = None) -> Iterator[np.ndarray]:
    """Row numbers of all resamples, in chunks of shape (resamples, rows)."""
    size = at_once or max(1, _CHUNK // n_rows)
    for start in range(0, n, size):
        yield random.integers(0, n_rows, (min(size, n - start), n_rows))


def _counts(draws: np.ndarray) -> np.ndarray:
    """How often each row was drawn, float64; both of shape (resamples, rows)."""
    places = draws + draws.shape[1] * np.arange(len(draws))[:, None]
    return np.bincount(places.ravel(), minlength=draws.size).reshape(draws.shape).astype(np.float64)


def interval_of(values: np.ndarray, level: float = 0.95) -> Interval:
    """The range that holds a share `level` of resampled values, shape (resamples,)."""
    return Interval(*_bounds(values, level))


def _bounds(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(labels: np.ndarray, runs: Sequence[np.ndarray], n: int) -> None:
    if n < 1:
        raise SettingError(f"{n} resamples make no interval; 1000 are usual")
    lengths = {len(run) for run in runs}
    if not len(labels) or lengths != {len(labels)}:
        raise DataError(f"{len(labels)} labels and predictions of {sorted(lengths)} rows do not fit; give one per row")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise SettingError(f"level {level} is not a share between 0 and 1; 0.95 is usual")
