"""Our sizes beside what a user would take instead: metric against latency, all in one run on one machine.

    python benchmarks/peers.py --run runs/four/trec --json FILE --plot FILE.svg

Peers: the fine-tuned network as it is, in every engine and type; its first layers, fine-tuned on the labels; and
physically narrower encoders (the leading heads and neurons as they came), fine-tuned likewise. Each of these is trained
at the learning rate of our teacher and at twice that, each time by `--share` of the FLOPs of the run's recipe, and the
better one on the `select` rows counts. All networks run in the same engines and types, and all of them take turns.

For each peer, ours is the size and form that is best on the `select` rows among those no slower. `by` is how much
better the peer is on the validation rows, in points, with the interval over rows; `above` says that it is better at
all. Where nothing of ours is as fast, `above` is true and `by` is empty. `above_by_fastest` says the same where the
fastest call of each counts instead of the median: what else runs on a machine slows calls down and never speeds them
up. `wide` counts the medians that spread over more than a fifth: a busy machine.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import finish, machine, options, table, usable_forms

from dynabert.baselines.layerdrop import whole_layers
from dynabert.baselines.plain import TaskRows, fine_tuned
from dynabert.deployed import answers, calibration_of
from dynabert.engines import Inputs, Int8, Session, engine_of
from dynabert.files import atomic_write_bytes
from dynabert.job import Prepared
from dynabert.measure import labels_of, predict
from dynabert.recipes import TEACHER
from dynabert.results import load_result
from dynabert.statistics import ROW_METRICS, RowMetric, paired_difference
from dynabert.studies.study import Study
from dynabert.subnet import Subnet
from dynabert.sweep import WIDE_SPREAD
from dynabert.timing import interleaved, timing_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMS = (("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnxruntime", "int8"))
RATES = (TEACHER.lr, 2 * TEACHER.lr)
OURS = "ours "


@dataclass(frozen=True, order=True)
class Form:
    """A network in one engine and type."""

    network: str
    engine: str
    dtype: str

    @property
    def is_ours(self) -> bool:
        """Whether it is one of our sizes."""
        return self.network.startswith(OURS)


@dataclass(frozen=True)
class Judge:
    """The rows of a study and how answers to them are judged."""

    rows: Prepared

    @property
    def metric(self) -> RowMetric:
        """The main one of the task."""
        return ROW_METRICS[self.rows.task.primary_metric]

    @property
    def labels(self) -> np.ndarray:
        """Of the validation rows."""
        return labels_of(self.rows.validation)

    def on_select(self, logits: np.ndarray) -> float:
        """The metric on the `select` rows."""
        return self.metric(labels_of(self.rows.select), logits)


def peers_of(study: Study, judge: Judge, share: float) -> "dict[str, tuple[PreTrainedModel, float | None]]":
    """Each peer as a model of its own with the learning rate that was chosen for it, by name."""
    seed, rows = study.plan.training.seed, judge.rows
    start = study.start(seed)
    shape, half = start.shape, start.shape.n_layers // 2
    wanted = {f"first {half} layers": whole_layers(shape, range(half)), "first 2 layers": whole_layers(shape, range(2))}
    wanted |= {"narrower, half": Subnet(0.5), "narrower, quarter": Subnet(0.25)}
    found: dict[str, tuple[PreTrainedModel, float | None]] = {
        "fine-tuned, full size": (study.network(seed).extract(Subnet()), None)
    }
    best: dict[str, float] = {}
    for lr in RATES:
        trained = fine_tuned(
            start,
            TaskRows(rows.train, rows.select, rows.task),
            subnets=tuple(wanted.values()),
            training=study.plan.training,
            lr=lr,
            budget_flops=share * len(wanted) * study.cost(study.plan.recipe),
        )
        for name, subnet in wanted.items():
            model = trained.members[subnet.name].model.eval()
            score = judge.on_select(predict(model, rows.select))
            print(f"{name} at learning rate {lr:g}: {score:.4f} on the select rows", flush=True)
            if score > best.get(name, -np.inf):
                best[name], found[name] = score, (model, lr)
    return found


@contextmanager
def sessions(
    models: "Mapping[str, PreTrainedModel]",
    forms: Sequence[tuple[str, str]],
    ranges: list[Inputs],
    n_threads: int,
) -> Iterator[dict[Form, Session]]:
    """Every network in every engine and type, written and opened."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="dynabert-")))
        found: dict[Form, Session] = {}
        for engine, dtype in forms:
            for network, model in models.items():
                folder = scratch / str(len(found))
                folder.mkdir()
                runner = engine_of(engine, dtype)
                runner.write(model.eval(), folder, dtype=dtype, int8=Int8(ranges))
                found[Form(network, engine, dtype)] = runner.open(folder, dtype=dtype, n_threads=n_threads)
        yield found


def measured(chosen: argparse.Namespace) -> dict[str, Any]:
    """All networks in all forms: a row for each."""
    study, ours = Study(chosen.run), load_result(chosen.run)
    judge = Judge(study.rows(study.plan.training.seed))
    peers = peers_of(study, judge, 0.02 if chosen.quick else chosen.share)
    models = {OURS + subnet.name: ours.extract(subnet) for subnet in ours.grid}
    models |= {name: model for name, (model, _) in peers.items()}
    ids = np.random.default_rng(0).integers(1000, 20000, (1, chosen.seq))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    forms, _ = usable_forms(FORMS[2:3] if chosen.quick else FORMS)
    rows: dict[Form, dict[str, Any]] = {}
    logits: dict[Form, np.ndarray] = {}
    with sessions(models, forms, calibration_of(judge.rows.select), chosen.threads) as opened:
        calls: dict[Form, Callable[[], object]] = {form: partial(run, given) for form, run in opened.items()}
        taken = interleaved(calls, chosen.repeats)
        for form, run in opened.items():
            timing = timing_of(taken[form], shape=(1, chosen.seq))
            logits[form] = answers(run, judge.rows.validation)
            rows[form] = {
                "network": form.network,
                "engine": form.engine,
                "dtype": form.dtype,
                "metric": 100 * judge.metric(judge.labels, logits[form]),
                "select": 100 * judge.on_select(answers(run, judge.rows.select)),
                "ms": timing.median_ms,
                "p95_ms": timing.p95_ms,
                "fastest_ms": 1e3 * float(np.min(taken[form])),
                "spread": timing.spread,
            }
    for form, row in rows.items():
        row |= beside_ours(form, rows, logits, judge)
        row["above_by_fastest"] = beside_ours(form, rows, logits, judge, time="fastest_ms")["above"]
    return {
        "task": judge.rows.task.name,
        "main_metric": judge.rows.task.primary_metric,
        "n_rows": len(judge.labels),
        "seq": chosen.seq,
        "learning_rates": {name: lr for name, (_, lr) in peers.items() if lr is not None},
        "peers_above": sum(row["above"] is True for row in rows.values()),
        "peers_above_by_fastest": sum(row["above_by_fastest"] is True for row in rows.values()),
        "wide": sum(row["spread"] > WIDE_SPREAD for row in rows.values()),
        "peers_surely_above": sum(row["low"] is not None and row["low"] > 0 for row in rows.values()),
        "rows": list(rows.values()),
    }


def beside_ours(
    form: Form, rows: dict[Form, dict[str, Any]], logits: dict[Form, np.ndarray], judge: Judge, *, time: str = "ms"
) -> dict[str, Any]:
    """Whether a peer lies above our front, and by how much, with the interval over rows; of ours nothing is said."""
    nothing = dict.fromkeys(("against", "above", "by", "low", "high"))
    if form.is_ours:
        return nothing
    within = [other for other in rows if other.is_ours and rows[other][time] <= rows[form][time]]
    if not within:
        return nothing | {"above": True}
    best = max(within, key=lambda other: (rows[other]["select"], -rows[other][time]))
    gap = paired_difference(judge.metric, judge.labels, logits[form], logits[best])
    against = f"{best.network.removeprefix(OURS)} {best.engine} {best.dtype}"
    by, low, high = (100 * value for value in gap)
    return {"against": against, "above": by > 0, "by": by, "low": low, "high": high}


def plotted(result: dict[str, Any]) -> bytes:
    """Metric against latency, as SVG: a colour for ours and for each peer, a shape for each engine and type.

    The line is ours as it would be picked: at each latency the size and form that is best on the `select` rows.
    """
    import altair as alt

    from dynabert.report.figure import Figure, image, spec_of

    rows = result["rows"]
    data = {
        "network": ["ours" if row["network"].startswith(OURS) else row["network"] for row in rows],
        "form": [f"{row['engine']} {row['dtype']}" for row in rows],
        "metric": [row["metric"] for row in rows],
        "ms": [row["ms"] for row in rows],
    }
    ours = sorted((row for row in rows if row["network"].startswith(OURS)), key=lambda row: row["ms"])
    picked: Iterator[dict[str, Any]] = accumulate(
        ours, lambda best, row: row if row["select"] > best["select"] else best
    )
    front = {
        "network": ["ours"] * len(ours),
        "metric": [row["metric"] for row in picked],
        "ms": [row["ms"] for row in ours],
    }
    order = list(dict.fromkeys(data["network"]))
    axes = {
        "x": alt.X("ms:Q", title=f"ms a call, batch 1, {result['seq']} tokens", scale=alt.Scale(type="log")),
        "y": alt.Y("metric:Q", title=result["main_metric"], scale=alt.Scale(zero=False)),
        "color": alt.Color("network:N", title=None, sort=order, scale=alt.Scale(domain=order)),
    }
    line = alt.Chart(alt.NamedData("front")).mark_line(interpolate="step-after", strokeWidth=1.5).encode(**axes)
    points = (
        alt.Chart(alt.NamedData("points"))
        .mark_point(filled=True, size=60, opacity=0.85)
        .encode(**axes, shape=alt.Shape("form:N", title=None))
    )
    figure = Figure(
        name="peers",
        title="Beside peers",
        caption="",
        spec=spec_of((line + points).properties(height=300)),
        data={"points": data, "front": front},
        controls=(),
        tables=(),
        images={"peers": {}},
    )
    return image(figure, "peers", "svg")


def main() -> None:
    """Print the table, write JSON and the plot."""
    chosen = options(
        __doc__,
        run={"type": Path, "required": True, "help": "a finished run folder"},
        share={
            "type": float,
            "default": 0.1,
            "help": "FLOPs of each training of a peer, as a share of the run's recipe",
        },
        seq={"type": int, "default": 64, "help": "tokens of the timed input, batch 1"},
        repeats={"type": int, "default": 15, "help": "timed calls of each"},
        plot={"type": Path, "help": "where to write the plot, as SVG"},
    )
    if chosen.quick:
        chosen.repeats = 3
    torch.manual_seed(0)
    about = machine("cpu")
    result = {"machine": about, "quick": chosen.quick, **measured(chosen)}
    finish(result, chosen.json)
    table(sorted(result["rows"], key=lambda row: row["ms"]))
    for name in ("learning_rates", "peers_above", "peers_above_by_fastest", "peers_surely_above", "wide"):
        print(name, result[name])
    if chosen.plot is not None:
        atomic_write_bytes(chosen.plot, plotted(result))


if __name__ == "__main__":
    main()
