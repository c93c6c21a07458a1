"""What a run folder holds that a report can show: each part is there or not, and one that cannot be used is named."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dynabert.errors import DynabertError, ModelFileError
from dynabert.files import read_json
from dynabert.measure import Progress
from dynabert.report.network import Attention, Network, Predictions
from dynabert.results import IMPORTANCE_FILE, SWEEP_FILE, load_sweep, run_file
from dynabert.rewire import Importance
from dynabert.run_folder import METRICS_FILE, read_metrics
from dynabert.sweep import Sweep

OWN_METHOD = "DynaBERT"
"""The name of the run's own sweep among those of the methods it is compared with."""

COMPARED_FILE, ABLATED_FILE = "studies/compare.json", "studies/ablate.json"
MEAN = "mean"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Ablation:
    """What a variant changes: the difference of the main metric, in points, with its interval.

    :param factor: what is varied.
    :param variant: how.
    :param where: the Subnet it is measured at, or ``mean`` over the grid.
    """

    factor: str
    variant: str
    where: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Contents:
    """What a report shows.

    :param name: of the run folder.
    :param settings: ``run.json``.
    :param sweeps: by method, the run's own first; all of the same task, metric and number of rows.
    :param metrics: lines of the training log.
    :param importance: of heads and neurons, in the order before rewiring.
    :param network: what takes the model to find out; see `dynabert.report.network`.
    :param left_out: a line for each part that cannot be shown.
    """

    name: str
    settings: dict[str, Any]
    sweeps: dict[str, Sweep]
    ablations: tuple[Ablation, ...]
    metrics: list[dict[str, Any]]
    importance: Importance | None
    network: tuple[Predictions | None, Attention | None]
    left_out: tuple[str, ...]

    @property
    def own(self) -> Sweep | None:
        """The sweep of the run itself."""
        return self.sweeps.get(OWN_METHOD)


def collect(out: str | Path, *, progress: Progress | None = None, device: str | None = None) -> Contents:
    """Read a run folder; compute and keep there what takes its model.

    :param out: the run folder.
    :param progress: told how far the predictions are.
    :param device: where to compute; by default the GPU if there is one.
    :raises ModelFileError: not a run folder.
    """
    out = Path(out)
    settings = read_json(run_file(out))
    missing: list[str] = []

    def part(name: str, read: Callable[[], Part], file: str | None = None) -> Part | None:
        """A part of the folder; None where it is not there, and where it cannot be used, with a line that says why."""
        if file is not None and not (out / file).exists():
            return None
        try:
            return read()
        except DynabertError as error:
            missing.append(f"{name}: {error}")
            return None

    own = part("sizes", lambda: load_sweep(out))
    network = None if own is None else Network(out, own, progress=progress, device=device)
    compared = None if own is None else part("methods", lambda: _compared(out, own), COMPARED_FILE)
    ablations = part("ablations", lambda: _ablations(out / ABLATED_FILE), ABLATED_FILE)
    metrics = part("training", lambda: read_metrics(out / METRICS_FILE), METRICS_FILE)
    importance = part("importance", lambda: Importance.load(out / IMPORTANCE_FILE), IMPORTANCE_FILE)
    predictions = None if network is None else part("predictions", network.predictions)
    attention = None if network is None else part("attention", network.attention)
    sweeps = {} if own is None else {OWN_METHOD: own, **(compared or {})}
    return Contents(
        name=out.resolve().name,
        settings=settings,
        sweeps=sweeps,
        ablations=ablations or (),
        metrics=metrics or [],
        importance=importance,
        network=(predictions, attention),
        left_out=tuple(missing),
    )


def _compared(out: Path, own: Sweep) -> dict[str, Sweep]:
    """The sweeps of the other methods, which must be of the same rows to stand in one figure."""
    path = out / COMPARED_FILE
    saved = read_json(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("sweeps"), dict):
        raise ModelFileError(f"{path} holds no table of sweeps; compare again")
    sweeps = {name: Sweep.from_dict(value, what=f"{path}: {name}") for name, value in saved["sweeps"].items()}
    for name, sweep in sweeps.items():
        for field in ("task", "metric", "n_rows"):
            there, here = getattr(sweep.context, field), getattr(own.context, field)
            if there != here:
                raise ModelFileError(f"{path}: {name} has {field} {there}, {SWEEP_FILE} has {here}; compare again")
    return {name: sweep for name, sweep in sweeps.items() if name.lower() != OWN_METHOD.lower()}


def _ablations(path: Path) -> tuple[Ablation, ...]:
    saved = read_json(path)
    rows = saved.get("rows") if isinstance(saved, dict) else None
    if not isinstance(rows, list):
        raise ModelFileError(f"{path} holds no list of rows; ablate again")
    return tuple(_ablation(row, f"{path}: row {number}") for number, row in enumerate(rows))


def _ablation(row: Any, what: str) -> Ablation:  # noqa: ANN401 (whatever the file holds)
    if not isinstance(row, dict):
        raise ModelFileError(f"{what} is not a table; ablate again")
    factor, variant, where = (_typed(row.get(name), str, f"{what}: {name}") for name in ("factor", "variant", "where"))
    difference, low, high = (_typed(row.get(name), float, f"{what}: {name}") for name in ("difference", "low", "high"))
    return Ablation(factor, variant, where, difference, low, high)


def _typed(value: Any, kind: type[Part], what: str) -> Part:  # noqa: ANN401 (whatever the file holds)
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
        raise ModelFileError(f"{what} {value!r} is not of type {kind.__name__}; ablate again")
    return value
