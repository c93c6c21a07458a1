"""Size times exit: on top of the sizes of a finished run, each input leaves as soon as the answer is sure enough.

Ramps are trained on each size as FastBERT's or DeeBERT's are; or, in a cascade, a size answers what it is sure of and
the full network the rest, and nothing is trained. Thresholds are calibrated on the `select` rows, so that the answers
agree with those of the full network to a stated share. What the validation rows then say is reported, not chosen on.
Where the grid leaves the full network out, the largest size that was trained stands for it.

    RUN/studies/ramps/              the trained ramps of each size, one safetensors file each
    RUN/studies/exits.json          what was found; of cascades cascades.json
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from dynabert.baselines import RAMP_LR, deebert, fastbert
from dynabert.baselines.cascades import RULE
from dynabert.baselines.exiting import CascadeMethod, ExitMethod, ThresholdMethod
from dynabert.baselines.method import ElasticMethod, Method, Spent
from dynabert.batches import Batch
from dynabert.cascade import Cascade
from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError, SettingError, one_of
from dynabert.exits import CONFIDENCE, NEVER, EarlyExit, fastest_agreeing, fewest_that_show, n_classes
from dynabert.files import atomic_write_bytes, read_json, storage_errors
from dynabert.folders import file_name_of
from dynabert.hooks import Hooks
from dynabert.measure import labels_of, predict
from dynabert.results import load_result
from dynabert.statistics import ROW_METRICS
from dynabert.studies.study import STUDIES, Study, weights_of
from dynabert.studies.trials import relative_times
from dynabert.studies.tuning import check_settings
from dynabert.subnet import Subnet, SubnetGrid, encoder_flops
from dynabert.sweep import plain_text

RESULT, CASCADES, RAMPS_FOLDER = "exits.json", "cascades.json", "ramps"
AGREEMENTS = (0.99, 0.98, 0.95)
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Ramps:
    """A kind of ramps.

    :param new: those of a size before training.
    :param train: trains them.
    :param method_of: the size with trained ones.
    """

    new: Callable[..., nn.ModuleList]
    train: Callable[..., ExitMethod]
    method_of: Callable[..., ExitMethod]


RAMPS: Mapping[str, Ramps] = {
    fastbert.NAME: Ramps(fastbert.new_ramps, fastbert.train, fastbert.method_of),
    deebert.NAME: Ramps(deebert.new_ramps, deebert.train, deebert.method_of),
}
"""By the method that they are from. FastBERT's attend to all tokens and learn from the size's own answers, DeeBERT's
read the first token and learn from the labels."""


@dataclass(frozen=True)
class ExitPoint:
    """One size with one threshold, on the validation rows.

    :param subnet: the size, or the sizes of a cascade joined by ``+``.
    :param asked: agreement with the full network that the threshold was calibrated to; None for the size without exits.
    :param threshold: of the entropy, of DeeBERT's ramps in nats, else as a share of the largest; None for the size
        without exits.
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
    :param n_select: `select` rows, on which thresholds were calibrated.
    :param largest: name of the full network, or of the largest size where the grid leaves that out.
    :param ramps: what the sizes exit at, a name in `RAMPS`; empty for cascades.
    :param files: the ramps of each size, in ``studies/ramps``, by the name of the size.
    :param unreached: size and agreement that those rows show at no threshold at which any row leaves early.
    """

    task: str
    metric: str
    full: float
    n_select: int
    points: tuple[ExitPoint, ...]
    unreached: tuple[tuple[str, float], ...]
    largest: str = Subnet().name
    ramps: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def too_few(self) -> str:
        """How many rows would show the highest agreement that was asked for; empty where these could, or do."""
        wanted = max((share for _, share in self.unreached if share < 1), default=0.0)
        return f" ({needed:,} rows could)" if (needed := fewest_that_show(wanted)) > self.n_select else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The points as lines of plain text."""
        from rich import box
        from rich.table import Table

        full = "full network" if self.largest == Subnet().name else f"largest size, {self.largest},"
        ramps = f"early exit at {self.ramps} ramps" if self.ramps else "early exit"
        title = f"{self.task}: {self.metric} x 100 with {ramps}, calibrated thresholds; {full} {self.full:.2f}"
        caption = f"agreements asked for: calibrated on {self.n_select} select rows, with {CONFIDENCE:.0%} confidence"
        if missed := ", ".join(f"{name} {share:.4g}" for name, share in self.unreached):
            caption += f"; which these rows do not show for {missed}{self.too_few}"
        if any(point.flops > 1 for point in self.points):
            caption += "; above 100 % of the FLOPs the full network alone is cheaper"
        table = Table(title=title, caption=caption, box=box.SIMPLE)
        table.add_column("Subnet", no_wrap=True)
        for name in ("asked", "threshold", "metric", "agreement", "layers", "FLOPs", "time x1", "x32"):
            table.add_column(name, justify="right", no_wrap=True)
        for point in self.points:
            asked = "no exit" if point.asked is None else f"{100 * point.asked:.4g}%"
            numbers = (f"{point.metric:.2f}", f"{point.agreement:.1%}", f"{point.n_layers:.2f}", f"{point.flops:.0%}")
            threshold = "" if point.threshold is None else f"{point.threshold:.4g}"
            table.add_row(point.subnet, asked, threshold, *numbers, *(f"{share:.0%}" for share in point.time))
        return plain_text(table)


def exits_of_run(
    run: str | Path,
    *,
    subnets: Sequence[Subnet] = (),
    agreements: Sequence[float] = AGREEMENTS,
    ramps: str = fastbert.NAME,
    lr: float | None = None,
    budget: float = 0.1,
    hooks: Hooks | None = None,
    device: str | None = None,
) -> SizeExit:
    """Put ramps on sizes of a finished run, calibrate them, and measure what they save.

    The ramps of each size are kept: a study that was interrupted goes on with the next size.

    :param run: a finished run folder of a classification.
    :param subnets: which sizes; by default every width at the largest depth.
    :param agreements: with the full network, shares of the rows; promised for new rows with a confidence of 95 %, see
        `dynabert.exits.fastest_agreeing`.
    :param ramps: their kind, a name in `RAMPS`.
    :param lr: of the ramps; by default ten times that of the run's recipe. The last weights are kept, not those that
        are best on the `select` rows, on which the thresholds are calibrated.
    :param budget: training FLOPs of the ramps of a size, as a share of those of the run's recipe.
    :param hooks: reports of the training.
    :param device: where to compute; by default the GPU if there is one.
    :return: also written to ``studies/exits.json``.
    :raises SettingError: a regression, or settings out of range.
    :raises ModelFileError: kept ramps that are damaged.
    """
    if ramps not in RAMPS:
        raise SettingError(one_of("ramps", ramps, RAMPS))
    check_settings((run,), n_seeds=1, budget=budget, lrs=() if lr is None else (lr,))
    _check_agreements(agreements)
    study = Study(Path(run), budget=budget, device=device, hooks=hooks)
    made = _Exits(study, ramps, lr=RAMP_LR * study.recipe.lr if lr is None else lr)
    grid = study.elastic.grid
    sizes = subnets or tuple(SubnetGrid(grid.widths, grid.depths[:1]))
    for size in sizes:
        RAMPS[ramps].new(study.elastic, subnet=size, seed=0)  # what can have none is said before anything is trained
    study.hooks.intended(len(sizes), budget)
    files = {size.name: made.path(size).name for size in sizes}
    return _calibrated_to(agreements, study, sizes, made.on, RESULT, ramps=ramps, files=files)


def cascades_of_run(
    run: str | Path,
    *,
    subnets: Sequence[Subnet] = (),
    agreements: Sequence[float] = AGREEMENTS,
    device: str | None = None,
) -> SizeExit:
    """Let sizes of a finished run answer what they are sure of and its full network the rest. Nothing is trained.

    :param run: a finished run folder of a classification.
    :param subnets: which sizes come first; by default the narrowest at every depth.
    :param agreements: with the full network, shares of the rows; promised for new rows with a confidence of 95 %, see
        `dynabert.exits.fastest_agreeing`.
    :param device: where to compute; by default the GPU if there is one.
    :return: also written to ``studies/cascades.json``.
    :raises SettingError: a regression, the full network as the first size, or settings out of range.
    """
    _check_agreements(agreements)
    study = Study(Path(run), device=device)
    elastic, grid = study.elastic, study.elastic.grid
    narrowest = (Subnet(min(grid.widths), depth) for depth in grid.depths)
    sizes = subnets or tuple(size for size in narrowest if size != grid.largest)
    if not sizes:
        raise SettingError(f"the grid of {run} has one size; a cascade takes two, so name a smaller one by subnets")
    for size in sizes:
        Cascade(elastic, (size, grid.largest))  # what is none is said before anything is predicted
    return _calibrated_to(agreements, study, sizes, _cascade, CASCADES)


def _check_agreements(agreements: Sequence[float]) -> None:
    if not all(0 < share <= 1 for share in agreements) or not agreements:
        raise SettingError(f"agreements {tuple(agreements)} must be shares of the rows, above 0 and at most 1")


def _calibrated_to(
    agreements: Sequence[float],
    study: Study,
    sizes: Sequence[Subnet],
    exits_of: Callable[[ElasticModel, Subnet], ThresholdMethod],
    result_file: str,
    *,
    ramps: str = "",
    files: Mapping[str, str] | None = None,
) -> SizeExit:
    """Sizes with exits, calibrated, measured and written down."""
    elastic = study.elastic
    n_classes(elastic.model.config)
    elastic.to(study.device)
    rows = study.rows(study.plan.training.seed)
    on_select, full = (predict(elastic.at(elastic.grid.largest), part) for part in (rows.select, rows.validation))
    score = partial(ROW_METRICS[rows.task.primary_metric], labels_of(rows.validation))
    measure = _Measure(elastic, rows.validation, full, score)
    points: list[ExitPoint] = []
    unreached: list[tuple[str, float]] = []
    for subnet in sizes:
        with_exits = exits_of(elastic, subnet)
        ends_full = elastic.slices(with_exits.last) == elastic.slices(elastic.grid.largest)
        found = _calibrated(with_exits, rows.select, agreements, reference=None if ends_full else on_select)
        unreached += [(with_exits.size or subnet.name, share) for share, found_at in found.items() if found_at is None]
        asked = {share: threshold for share, threshold in found.items() if threshold is not None}
        points += [measure.without(subnet), *measure.at(with_exits, asked)]
    task = rows.task
    result = SizeExit(
        task=task.name,
        metric=task.primary_metric,
        full=100 * score(full),
        n_select=len(on_select),
        points=tuple(points),
        unreached=tuple(unreached),
        largest=elastic.grid.largest.name,
        ramps=ramps,
        files=files or {},
    )
    study.write(result_file, result.to_dict())
    return result


def _calibrated(
    trained: ThresholdMethod, select: Iterable[Batch], agreements: Sequence[float], *, reference: np.ndarray | None
) -> dict[float, float | None]:
    """A threshold for each agreement; None where leaving early is not shown to agree so far."""
    logits = trained.all_exits(select)
    found = {share: fastest_agreeing(logits, share, rule=trained.rule, reference=reference) for share in agreements}
    return {share: None if threshold == NEVER else threshold for share, threshold in found.items()}


@dataclass(frozen=True)
class _Measure:
    """What all points are measured with.

    :param rows: validation rows.
    :param full: what the full network says of them.
    :param score: logits to the main metric.
    """

    elastic: ElasticModel
    rows: Iterable[Batch]
    full: np.ndarray
    score: Callable[[np.ndarray], float]

    def without(self, subnet: Subnet) -> ExitPoint:
        """A size as it is, without ramps."""
        method = ElasticMethod(name="no exit", elastic=self.elastic, subnets=(subnet,))
        (time,) = self._times(method).values()
        return self._point(method, subnet.name, size=subnet.name, time=time)

    def at(self, trained: ThresholdMethod, asked: Mapping[float, float]) -> list[ExitPoint]:
        """A size with its ramps, at the threshold of each agreement."""
        if not asked:
            return []
        method = replace(trained, thresholds=tuple(sorted(set(asked.values()))))
        names = dict(zip(method.thresholds, method.points(), strict=True))
        times = self._times(method)
        return [
            replace(
                self._point(method, names[threshold], size=trained.size, time=times[names[threshold]]),
                asked=share,
                threshold=threshold,
            )
            for share, threshold in asked.items()
        ]

    def _times(self, method: Method) -> dict[str, tuple[float, float]]:
        return relative_times(method, self.elastic.at(self.elastic.grid.largest), self.rows)

    def _point(self, method: Method, name: str, *, size: str, time: tuple[float, float]) -> ExitPoint:
        answers, elastic = method.predict(name, self.rows), self.elastic
        return ExitPoint(
            subnet=size or Subnet().name,
            asked=None,
            threshold=None,
            metric=100 * self.score(answers.logits),
            agreement=float(np.mean(answers.logits.argmax(1) == self.full.argmax(1))),
            n_layers=float(answers.n_layers.mean()),
            flops=float(answers.flops.mean()) / encoder_flops(elastic.shape, elastic.slices(elastic.grid.largest)),
            time=time,
        )


def _cascade(elastic: ElasticModel, subnet: Subnet) -> CascadeMethod:
    """A size before the largest one."""
    sizes = (subnet, elastic.grid.largest)
    return CascadeMethod(name="cascade", elastic=elastic, sizes=sizes, rule=RULE, thresholds=())


@dataclass(frozen=True)
class _Exits:
    """Puts ramps on sizes.

    :param ramps: their kind, a name in `RAMPS`.
    """

    study: Study
    ramps: str
    lr: float

    def on(self, elastic: ElasticModel, subnet: Subnet) -> ExitMethod:
        """A size with ramps: those kept, or trained and kept."""
        path = self.path(subnet)
        if not path.exists():
            _save(self._trained(elastic, subnet), path)
        return _read(path, elastic, subnet, self.ramps)

    def path(self, subnet: Subnet) -> Path:
        """The file of the ramps of a size."""
        file = f"{file_name_of(subnet.name)}-{self.ramps}-{self._digest(subnet)}.safetensors"
        return self.study.folder / RAMPS_FOLDER / file

    def _trained(self, elastic: ElasticModel, subnet: Subnet) -> ExitMethod:
        study = self.study
        return RAMPS[self.ramps].train(
            elastic,
            study.rows(study.plan.training.seed).train,
            training=study.plan.training,
            lr=self.lr,
            budget_flops=study.budget_flops,
            subnet=subnet,
            hooks=study.hooks,
        )

    def _digest(self, subnet: Subnet) -> str:
        """Of all that the ramps depend on: the weights beneath, the rows, and how they are trained."""
        study = self.study
        weights = weights_of(study.run)
        plan = (asdict(study.plan.training), asdict(study.plan.batching))
        settings = [FORMAT_VERSION, subnet.name, self.lr, study.budget_flops, weights, plan, study.saved.data]
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _read(path: Path, elastic: ElasticModel, subnet: Subnet, ramps: str) -> ExitMethod:
    """A size with the ramps of a file."""
    modules = RAMPS[ramps].new(elastic, subnet=subnet, seed=0).eval()
    try:
        with safe_open(path, framework="pt") as kept:
            spent = Spent(**json.loads((kept.metadata() or {})["spent"]))
            modules.load_state_dict({name: kept.get_tensor(name) for name in modules.state_dict()})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(
            f"{path} holds no sound ramps ({reason}); delete it, and they are trained again"
        ) from error
    return RAMPS[ramps].method_of(elastic=elastic, ramps=modules, subnet=subnet, spent=spent)


def load_exits(run: str | Path, subnet: Subnet | str) -> EarlyExit:
    """A size of a finished run with the ramps of the last `exits_of_run`, to be run.

    ``load_exits(run, "w0.5-d1").predict(batches, threshold)`` answers rows at a threshold of ``studies/exits.json``.

    :param subnet: the size, or its name.
    :return: on the CPU.
    :raises ModelFileError: not a finished run, a study without that size, or of weights that the run has no more, or
        damaged ramps.
    """
    run, name = Path(run), subnet if isinstance(subnet, str) else subnet.name
    elastic, found = load_result(run), run / STUDIES / RESULT
    saved = read_json(found) if found.exists() else {}
    files, known = saved.get("files") or {}, saved.get("made", {}).get("weights")
    if name not in files:
        there = f" has exits of {', '.join(files)}" if files else " has no exits yet"
        raise ModelFileError(f"{run}{there}; for {name} run `dynabert exits {run} --subnets {name}`")
    if known != weights_of(run):
        raise ModelFileError(
            f"the exits of {run} are of other weights than it has now; run `dynabert exits {run}` again"
        )
    return _read(run / STUDIES / RAMPS_FOLDER / files[name], elastic, Subnet.parse(name), saved["ramps"]).exits


def _save(trained: ExitMethod, path: Path) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in trained.ramps.state_dict().items()}
    about = {"format_version": str(FORMAT_VERSION), "spent": json.dumps(asdict(trained.spent))}
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, save(tensors, about))
