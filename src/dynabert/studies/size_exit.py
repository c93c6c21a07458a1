"""Size times exit: early exit on top of the sizes of a finished run, each input leaving when the answer is sure enough.

Ramps are trained on each size as DeeBERT's are, and thresholds are calibrated on the `select` rows, so that the answers
agree with those of the full network to a stated share. What the validation rows then say is reported, not chosen on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dynabert.baselines import deebert
from dynabert.baselines.method import ExitMethod
from dynabert.batches import Batch
from dynabert.errors import SettingError
from dynabert.exits import NEVER, fastest_agreeing
from dynabert.hooks import Hooks
from dynabert.measure import predict
from dynabert.statistics import ROW_METRICS
from dynabert.studies.trials import Study, relative_times
from dynabert.subnet import Subnet, encoder_flops
from dynabert.sweep import plain_text

RESULT = "exits.json"
AGREEMENTS = (0.99, 0.98, 0.95)


@dataclass(frozen=True)
class ExitPoint:
    """One size with one threshold, on the validation rows.

    :param asked: agreement with the full network that the threshold was calibrated to; None without early exit.
    :param threshold: of the entropy; None without early exit.
    :param metric: main metric, in hundredths.
    :param agreement: with the full network, share of the rows.
    :param n_layers: executed, mean over the rows.
    :param flops: of an input at 128 tokens, ramps included, as a share of the full network's.
    :param time: of an input, as a share of the full network's: one by one, and in batches of 32.
    """

    subnet: str
    asked: float | None
    threshold: float | None
    metric: float
    agreement: float
    n_layers: float
    flops: float
    time: tuple[float, float]


@dataclass(frozen=True)
class SizeExit:
    """All sizes and thresholds.

    :param full: main metric of the full network, in hundredths.
    :param unreached: size and agreement that no threshold reaches on the `select` rows.
    """

    task: str
    metric: str
    full: float
    points: tuple[ExitPoint, ...]
    unreached: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The points as lines of plain text."""
        from rich import box
        from rich.table import Table

        title = (
            f"{self.task}: {self.metric} x 100 with early exit at calibrated thresholds; full network {self.full:.2f}"
        )
        missed = ", ".join(f"{name} {share:.0%}" for name, share in self.unreached)
        caption = f"agreement not reached on the select rows: {missed}" if missed else None
        table = Table(title=title, caption=caption, box=box.SIMPLE)
        table.add_column("Subnet", no_wrap=True)
        for name in ("asked", "metric", "agreement", "layers", "FLOPs", "time x1", "x32"):
            table.add_column(name, justify="right", no_wrap=True)
        for point in self.points:
            asked = "no exit" if point.asked is None else f"{point.asked:.0%}"
            numbers = (f"{point.metric:.2f}", f"{point.agreement:.1%}", f"{point.n_layers:.2f}", f"{point.flops:.0%}")
            table.add_row(point.subnet, asked, *numbers, *(f"{share:.0%}" for share in point.time))
        return plain_text(table)


def exits_of_run(
    run: str | Path,
    *,
    subnets: Sequence[Subnet] = (),
    agreements: Sequence[float] = AGREEMENTS,
    lr: float = 1e-4,
    budget: float = 0.1,
    hooks: Hooks | None = None,
) -> SizeExit:
    """Put ramps on sizes of a finished run, calibrate them, and measure what they save.

    :param run: a finished run folder of a classification.
    :param subnets: which sizes; by default every width at full depth.
    :param agreements: with the full network, shares of the rows.
    :param lr: of the ramps.
    :param budget: training FLOPs of the ramps of a size, as a share of those of the run's recipe.
    :param hooks: reports of the training.
    :return: also written to ``studies/exits.json``.
    :raises SettingError: a regression, or settings out of range.
    """
    if not all(0 < share <= 1 for share in agreements) or not agreements:
        raise SettingError(f"agreements {tuple(agreements)} must be shares of the rows, above 0 and at most 1")
    study = Study(Path(run), budget=budget, hooks=hooks)
    elastic, seed = study.elastic, study.plan.training.seed
    elastic.to(study.device)
    rows = study.rows(seed)
    full_select, full = (predict(elastic.at(Subnet()), part) for part in (rows.select, rows.validation))
    metric, labels = ROW_METRICS[rows.task.primary_metric], study.labels
    full_flops = encoder_flops(elastic.shape, elastic.slices(Subnet()))
    points: list[ExitPoint] = []
    unreached: list[tuple[str, float]] = []
    for subnet in subnets or tuple(elastic.grid.at_full_depth()):
        trained = deebert.train(
            elastic,
            rows.train,
            training=study.plan.training,
            lr=lr,
            budget_flops=study.budget_flops,
            subnet=subnet,
            hooks=hooks,
        )
        asked: dict[float | None, float] = {None: NEVER}
        on_select = trained.all_exits(rows.select)
        for share in agreements:
            threshold = fastest_agreeing(on_select, share, rule=trained.rule, reference=full_select)
            if threshold is None:
                unreached.append((subnet.name, share))
            else:
                asked[share] = threshold
        score = partial(metric, labels)
        points += _measured(trained, asked, rows.validation, full=full, full_flops=full_flops, score=score)
    task, full_metric = rows.task, 100 * metric(labels, full)
    result = SizeExit(task.name, task.primary_metric, full_metric, tuple(points), tuple(unreached))
    study.write(RESULT, result.to_dict())
    return result


def _measured(
    trained: ExitMethod,
    asked: Mapping[float | None, float],
    rows: Iterable[Batch],
    *,
    full: np.ndarray,
    full_flops: int,
    score: Callable[[np.ndarray], float],
) -> list[ExitPoint]:
    """One size at all its thresholds."""
    method = replace(trained, thresholds=tuple(sorted(set(asked.values()))))
    names = dict(zip(method.thresholds, method.points(), strict=True))
    times = relative_times(method, method.elastic.at(Subnet()), rows)
    points = []
    for share, threshold in asked.items():
        answers = method.predict(names[threshold], rows)
        points.append(
            ExitPoint(
                subnet=trained.subnet.name,
                asked=share,
                threshold=None if share is None else threshold,
                metric=100 * score(answers.logits),
                agreement=float(np.mean(answers.logits.argmax(1) == full.argmax(1))),
                n_layers=float(answers.n_layers.mean()),
                flops=float(answers.flops.mean()) / full_flops,
                time=times[names[threshold]],
            )
        )
    return points
