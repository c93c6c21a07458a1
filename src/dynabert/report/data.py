"""What a run folder holds that a report can show: each part is there or not, and one that cannot be used is named."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dynabert.errors import DynabertError
from dynabert.files import read_json
from dynabert.measure import Progress
from dynabert.report.network import Attention, Network, Predictions
from dynabert.report.studies import (
    ABLATED_FILE,
    CASCADES_FILE,
    COMPARED_FILE,
    COVERAGE_FILE,
    EXITS_FILE,
    OWN_METHOD,
    Studies,
    beside,
    read_ablated,
    read_compared,
    read_coverage,
    read_exits,
    read_search,
    search_files,
)
from dynabert.results import IMPORTANCE_FILE, deployed_readers, load_sweep
from dynabert.rewire import Importance
from dynabert.run_folder import METRICS_FILE, read_metrics
from dynabert.saved import run_file
from dynabert.sweep import Sweep

Part = TypeVar("Part")


class Reader(Protocol):
    """Reads parts of a folder, and notes those that cannot be used."""

    def __call__(self, name: str, read: Callable[[], Part], file: str | None = None) -> Part | None:
        """A part; None where it is not there, or cannot be used."""


@dataclass(frozen=True)
class Contents:
    """What a report shows.

    :param name: of the run folder.
    :param settings: ``run.json``.
    :param own: the sweep of the run itself.
    :param studies: other methods beside it, its ablations and more; see `dynabert.report.studies`.
    :param deployed: sweeps of the forms in which engines run its sizes, by engine and dtype.
    :param metrics: lines of the training log.
    :param importance: of heads and neurons, in the order before rewiring.
    :param network: what takes the model to find out; see `dynabert.report.network`.
    :param left_out: a line for each part that cannot be shown.
    """

    name: str
    settings: dict[str, Any]
    own: Sweep | None
    studies: Studies
    deployed: dict[str, Sweep]
    metrics: list[dict[str, Any]]
    importance: Importance | None
    network: tuple[Predictions | None, Attention | None]
    left_out: tuple[str, ...]

    @property
    def sweeps(self) -> dict[str, Sweep]:
        """By method, DynaBERT first; all of the same task, metric and number of rows. Empty without one of the run."""
        if self.own is None:
            return {}
        compared = self.studies.compared
        return {OWN_METHOD: self.own} if compared is None else beside(self.own, compared)


def collect(
    out: str | Path, *, texts: Sequence[str] | None = None, progress: Progress | None = None, device: str | None = None
) -> Contents:
    """Read a run folder; compute and keep there what takes its model.

    :param out: the run folder.
    :param texts: whose attention maps are shown; by default a few validation texts.
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
    network = None if own is None else Network(out, own, texts=texts or (), progress=progress, device=device)
    studies = _studies(out, own, part)
    readers = {} if own is None else deployed_readers(out, own)
    deployed = {name: part(f"sizes by {name}", read) for name, read in readers.items()}
    metrics = part("training", lambda: read_metrics(out / METRICS_FILE), METRICS_FILE)
    importance = part("importance", lambda: Importance.load(out / IMPORTANCE_FILE), IMPORTANCE_FILE)
    predictions = None if network is None else part("predictions", network.predictions)
    attention = None if network is None else part("attention", network.attention)
    return Contents(
        name=out.resolve().name,
        settings=settings,
        own=own,
        studies=studies,
        deployed={name: sweep for name, sweep in deployed.items() if sweep is not None},
        metrics=metrics or [],
        importance=importance,
        network=(predictions, attention),
        left_out=tuple(missing),
    )


def _studies(out: Path, own: Sweep | None, part: Reader) -> Studies:
    """What studies and searches have left; without a sweep of the run, what can stand alone."""
    ablated = part("ablations", lambda: read_ablated(out), ABLATED_FILE)
    coverage = part("coverage", lambda: read_coverage(out), COVERAGE_FILE)
    if own is None:
        return Studies(ablated=ablated, coverage=coverage)
    searches = {path.stem: part(f"search {path.stem}", partial(read_search, path, own)) for path in search_files(out)}
    return Studies(
        compared=part("methods", lambda: read_compared(out, own), COMPARED_FILE),
        ablated=ablated,
        exits=part("exits", lambda: read_exits(out, own, EXITS_FILE), EXITS_FILE),
        cascades=part("cascades", lambda: read_exits(out, own, CASCADES_FILE), CASCADES_FILE),
        coverage=coverage,
        searches={name: found for name, found in searches.items() if found is not None},
    )
