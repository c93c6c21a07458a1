"""What `dynabert compare` and `dynabert ablate` leave in a run folder, with made-up numbers: nothing is trained."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dynabert.files import write_json
from dynabert.results import sweep_file
from dynabert.statistics import Difference
from dynabert.studies.ablate import RESULT as ABLATED
from dynabert.studies.ablate import Ablation, Effect
from dynabert.studies.compare import RESULT as COMPARED
from dynabert.studies.standings import OURS, Comparison, Standing
from dynabert.studies.study import STUDIES
from dynabert.sweep import Context, Cost, LatencySettings, Machine, Measurement, Quality, Sweep, Timing

SIZES = ("w1-d1", "w1-d0.5", "w0.5-d1", "w0.5-d0.5")


def made_sweep(names: Iterable[str] = SIZES, *, latency: bool = True, **context: object) -> Sweep:
    """Sizes that get worse and cheaper in the order given.

    :param context: fields of the Context that are not as usual.
    """
    main, rows = str(context.get("metric", "accuracy")), []
    for place, name in enumerate(names):
        metric = 0.9 - 0.05 * place
        quality = Quality({main: metric}, metric - 0.03, metric + 0.02, metric / 0.9, 0.99 - 0.06 * place)
        cost = Cost(4_000_000 - 500_000 * place, 10**9 // (place + 1), 8.0 / (place + 1) if latency else None)
        rows.append(Measurement(name, 4 - place / 2, 4, quality, cost, "dynabert"))
    machine = Machine("a cpu", "cpu", 1, "2", "5", "0")
    usual = Context("small", "accuracy", 40, 0.9, "fp32", None, machine, "2026-01-01T00:00:00Z", "fingerprint")
    return Sweep(tuple(rows), replace(usual, **context))


def beside(own: Sweep) -> dict[str, Sweep]:
    """Sweeps of other methods on the rows of a run, at costs that it has too; no latencies, as studies measure none."""

    def worse(row: Measurement, name: str) -> Measurement:
        low, metric = max(0.0, row.metric - 0.2), max(0.0, row.metric - 0.1)
        quality = replace(row.quality, metrics={own.context.metric: metric}, metric_low=low, metric_high=row.metric)
        return replace(row, subnet=name, quality=quality, cost=replace(row.cost, latency_ms=None))

    def method(**rows: str) -> Sweep:
        kept = {row.subnet: row for row in own.rows}
        named = tuple(worse(kept[of], name) for name, of in rows.items())
        return Sweep(named, replace(own.context, latency=None))

    exits = method(**{"s0.5": "w1-d1", "s0.1": "w1-d0.5"})
    return {OURS: own, "deebert": exits, "layerdrop": method(**{"w1-d1": "w0.5-d1", "w1-d0.5": "w0.5-d0.5"})}


def standing(method: str, share: float, difference: float | None, p_holm: float | None) -> Standing:
    """One row of a comparison: a method at a share of the FLOPs, beside DynaBERT."""
    gap = None if difference is None else Difference(difference, difference - 1, difference + 1.5)
    return Standing(method, share, "s0.1", 80.0, share, gap, p_holm, (0.6, 0.5), 1e-3, 9, at_edge=method == "layerdrop")


STANDINGS = (
    standing(OURS, 0.5, None, None),
    standing("deebert", 0.5, 2.5, 0.01),
    standing("layerdrop", 0.5, -0.5, 0.6),
    standing(OURS, 0.25, None, None),
    standing("deebert", 0.25, 4.5, 0.02),
)


def write_comparison(
    run: Path, sweeps: dict[str, Sweep], standings: tuple[Standing, ...] = STANDINGS, *, ours: str = OURS
) -> None:
    """``studies/compare.json``, as `dynabert.studies.compare` writes it."""
    left_out = {"layerdrop-masked": "its masked phase needs a mask token"}
    shares = {name: 1 - place / 10 for sweep in sweeps.values() for place, name in enumerate(_points(sweep))}
    times = {method: {name: (shares[name], shares[name] / 2) for name in _points(sweeps[method])} for method in sweeps}
    settings = {"ours": ours, "left_out": left_out, "rates": (1e-3, 3e-3), "times": times}
    context = sweeps[OURS].context
    found = Comparison(context.task, context.metric, 90.0, (42, 43), 1.5e12, standings, sweeps, **settings)
    _write(run / STUDIES / COMPARED, found.to_dict())


def _points(sweep: Sweep) -> list[str]:
    return [row.subnet for row in sweep.rows]


EFFECTS = tuple(
    Effect(factor, variant, where, difference, difference - 1, difference + 1.5, p, 80.0, 1e-3)
    for where, shift in (("mean", 0.0), ("w0.5-d0.5", -0.75))
    for factor, variant, difference, p in (
        ("rewiring", "random", -2.0 + shift, 0.04),
        ("rewiring", "reversed", -3.5 + shift, 0.01),
        ("assistant", "none", 0.25 + shift, 0.5),
    )
)


def write_ablation(run: Path, effects: tuple[Effect, ...] = EFFECTS) -> None:
    """``studies/ablate.json``, as `dynabert.studies.ablate` writes it."""
    found = Ablation("small", "accuracy", {"mean": 82.0, "w0.5-d0.5": 80.0}, 1e-3, (42,), 1e12, effects)
    _write(run / STUDIES / ABLATED, found.to_dict())


def deployed_sweep(engine: str, dtype: str, own: Sweep | None = None, **context: object) -> Sweep:
    """A sweep as an engine runs it: with times at two shapes, and sizes of files.

    :param own: that of a run; by default `made_sweep`.
    """
    own, latency = own or made_sweep(**context), LatencySettings(engine=engine, dtype=dtype, batch=(1, 8), seq=(16,))
    rows = []
    for place, row in enumerate(own.rows):
        times = tuple(Timing(*shape, (8 - place) * shape[0], 9.0 * shape[0], 0.01) for shape in latency.shapes)
        sizes = {"file_bytes": (9 - place) * 10**6, "peak_bytes": (30 - place) * 10**6}
        rows.append(replace(row, cost=replace(row.cost, latency_ms=times[0].median_ms, timings=times, **sizes)))
    machine = replace(own.context.machine, engine=f"{engine} 1.0")
    return Sweep(tuple(rows), replace(own.context, precision=dtype, latency=latency, machine=machine))


def write_deployed(run: Path, own: Sweep | None = None) -> None:
    """Sweeps of two deployed forms, as `dynabert measure` writes them; `own` as above."""
    for engine, dtype in (("openvino", "int8"), ("onnxruntime", "fp32")):
        deployed_sweep(engine, dtype, own).to_json(run / sweep_file(engine, dtype))


def _write(path: Path, saved: dict[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_json(path, saved)
