"""The tasks: which columns hold the text and the label, what the classes are called, and how predictions are judged.

A task is a row of data. All of them classify, or score by regression, whole texts; what a task with another head (a
label for every token, a span) has to say about its outputs and their mask gets a field here when such a head comes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dynabert.errors import DataError, NonFiniteError, SettingError, one_of

GLUE_HUB = "nyu-mll/glue"


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(np.mean(labels == predictions))}


def _accuracy_f1(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import f1_score

    return _accuracy(labels, predictions) | {"f1": float(f1_score(labels, predictions, zero_division=0))}


def _matthews(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import matthews_corrcoef

    # Of a single class it warns; nothing can be correlated with a constant.
    constant = np.ptp(labels) == 0 or np.ptp(predictions) == 0
    return {"matthews": 0.0 if constant else float(matthews_corrcoef(labels, predictions))}


def _pearson_spearman(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    # Of constant numbers scipy gives NaN with a warning; a model that says the same of every row has learned nothing.
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    pair = labels.astype(np.float64), predictions.astype(np.float64)
    return {"pearson": float(pearsonr(*pair).statistic), "spearman": float(spearmanr(*pair).statistic)}


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "accuracy": _accuracy,
    "accuracy_f1": _accuracy_f1,
    "matthews": _matthews,
    "pearson_spearman": _pearson_spearman,
}
"""Labels and predictions, each of shape (rows,), to named values; a name lists what it gives, the main one first.
Predictions are class numbers, or scores for a regression. f1 is that of class 1. All: higher is better."""


@dataclass(frozen=True)
class Task:
    """One task on whole texts.

    :param name: its name, on the command line too.
    :param texts: the columns of text, one or two.
    :param label: the column of labels.
    :param labels: names of the classes, in the order of their numbers; empty for a regression.
    :param metric: a name in `METRICS`.
    :param validations: the splits that can be reported on, the usual one first.
    :param hub: the data set of the Hugging Face hub that has it, under its name; None where it is read from files only.
    :raises SettingError: not one or two text columns, a single class, or a metric that does not fit.
    """

    name: str
    texts: tuple[str, ...]
    label: str = "label"
    labels: tuple[str, ...] = ()
    metric: str = "accuracy"
    validations: tuple[str, ...] = ("validation",)
    hub: str | None = None

    def __post_init__(self) -> None:
        if len(self.texts) not in (1, 2):
            raise SettingError(f"task {self.name} has {len(self.texts)} text columns; give one or two")
        if self.metric not in METRICS:
            raise SettingError(one_of("metric", self.metric, METRICS))
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise SettingError(f"task {self.name} has classes {self.labels}; give at least two, each once")
        if self.is_regression != (self.metric == "pearson_spearman"):
            kind = "a regression" if self.is_regression else "classes"
            raise SettingError(f"metric {self.metric!r} does not fit task {self.name}, which has {kind}")
        if self.metric == "accuracy_f1" and len(self.labels) != 2:
            raise SettingError(f"metric 'accuracy_f1' needs 2 classes and task {self.name} has {len(self.labels)}")

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number to come close to, not a class."""
        return not self.labels

    @property
    def n_labels(self) -> int:
        """Outputs of the head: one for each class, 1 for a regression."""
        return max(1, len(self.labels))

    @property
    def primary_metric(self) -> str:
        """The value by which checkpoints are chosen: the first that the metric gives."""
        return self.metric.partition("_")[0]


def _glue(name: str, texts: tuple[str, ...], labels: tuple[str, ...] = (), metric: str = "accuracy") -> Task:
    splits = ("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)
    return Task(name, texts, labels=labels, metric=metric, validations=splits, hub=GLUE_HUB)


_SENTENCE, _SENTENCES = ("sentence",), ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", _SENTENCE, ("unacceptable", "acceptable"), "matthews"),
        _glue("sst2", _SENTENCE, ("negative", "positive")),
        _glue("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), "accuracy_f1"),
        _glue("stsb", _SENTENCES, metric="pearson_spearman"),
        _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), "accuracy_f1"),
        _glue("mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
        _glue("qnli", ("question", "sentence"), _ENTAILED),
        _glue("rte", _SENTENCES, _ENTAILED),
        _glue("wnli", _SENTENCES, ("not_entailment", "entailment")),
        Task("trec", _SENTENCE, labels=("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")),
        Task("imdb", ("text",), labels=("neg", "pos")),
    )
}
"""GLUE's nine tasks with the columns and the order of classes of the Hugging Face `glue` data set, then two that are
read from local files only: trec (kind of question) and imdb (sentiment of a long text)."""


def task_of(name: str) -> Task:
    """The task of a name.

    :raises SettingError: no task has it.
    """
    if name not in TASKS:
        raise SettingError(one_of("task", name, TASKS, hint="For your own data give its files and columns"))
    return TASKS[name]


def metric_of(task: Task, labels: ArrayLike, logits: ArrayLike) -> dict[str, float]:
    """How good predictions are.

    :param task: whose metric.
    :param labels: shape (rows,): class numbers, or scores for a regression.
    :param logits: shape (rows, classes), or (rows,) or (rows, 1) for a regression.
    :return: named values, the main one (`Task.primary_metric`) first. A correlation with a constant is 0.
    :raises DataError: no rows, or shapes that do not fit each other and the task.
    :raises NonFiniteError: NaN or infinity among the logits.
    """
    truth, outputs = np.asarray(labels), np.asarray(logits)
    if task.is_regression and outputs.ndim == 1:
        outputs = outputs[:, None]
    if truth.ndim != 1 or outputs.shape != (len(truth), task.n_labels) or not len(truth):
        raise DataError(
            f"labels of shape {truth.shape} and logits of shape {outputs.shape} do not fit task {task.name}; "
            f"it needs (rows,) and (rows, {task.n_labels}) with at least one row"
        )
    if not np.isfinite(outputs).all():
        n_bad = int((~np.isfinite(outputs)).any(axis=1).sum())
        raise NonFiniteError(f"{n_bad} of {len(truth)} predictions are NaN or infinite; this model cannot be judged")
    predictions = outputs[:, 0] if task.is_regression else outputs.argmax(axis=1)
    return METRICS[task.metric](truth, predictions)
