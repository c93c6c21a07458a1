"""Our sizes beside what a user would take instead: metric against latency, all in one run on one machine.

    python benchmarks/peers.py --run runs/four/trec --json docs/results/peers-trec.json

Peers: the fine-tuned network as it is, in every engine and type; its first layers, fine-tuned on the labels; and
physically narrower encoders (the leading heads and neurons as they came), fine-tuned likewise. Every peer is trained by
`--share` of the FLOPs of the run's recipe, and all are run by the same engines and types as ours. `above` says that
no size of ours is both as good and as fast; `by` how much less our best at that latency has, in points.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import finish, machine, median, options, side_by_side, table

from dynabert.baselines.layerdrop import whole_layers
from dynabert.baselines.plain import Rows, fine_tuned
from dynabert.deployed import answers, calibration_of
from dynabert.engines import Session, engine_of
from dynabert.measure import labels_of
from dynabert.results import load_result
from dynabert.statistics import ROW_METRICS, paired_difference
from dynabert.studies.trials import Study
from dynabert.subnet import Subnet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMS = (("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnxruntime", "int8"))


def peers_of(study: Study, seed: int, share: float) -> "dict[str, PreTrainedModel]":
    """Each peer as a model of its own, by name."""
    rows, start = study.rows(seed), study.start(seed)
    shape, half = start.shape, start.shape.n_layers // 2
    wanted = {f"first {half} layers": whole_layers(shape, range(half)), "first 2 layers": whole_layers(shape, range(2))}
    wanted |= {"narrower, half": Subnet(0.5), "narrower, quarter": Subnet(0.25)}
    trained = fine_tuned(
        start,
        Rows(rows.train, rows.select, rows.task),
        subnets=tuple(wanted.values()),
        training=study.plan.training,
        lr=study.plan.recipe.stages[-1].lr,
        budget_flops=share * len(wanted) * study.cost(study.plan.recipe),
    )
    found = {name: trained.members[subnet.name].model for name, subnet in wanted.items()}
    return {"fine-tuned, full size": study.network(seed).extract(Subnet()), **found}


def measured(chosen: argparse.Namespace) -> dict[str, Any]:
    """All networks in all forms: a row for each."""
    study = Study(chosen.run)
    seed, ours = study.plan.training.seed, load_result(chosen.run)
    rows = study.rows(seed)
    models = {f"ours {subnet.name}": ours.extract(subnet) for subnet in ours.grid}
    models |= peers_of(study, seed, 0.02 if chosen.quick else chosen.share)
    metric, labels = ROW_METRICS[rows.task.primary_metric], labels_of(rows.validation)
    ranges = calibration_of(rows.select)
    ids = np.random.default_rng(0).integers(1000, 20000, (1, chosen.seq))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    found: list[dict[str, Any]] = []
    logits: list[np.ndarray] = []
    for name, dtype in FORMS[2:3] if chosen.quick else FORMS:
        engine = engine_of(name, dtype)
        with TemporaryDirectory(prefix="dynabert-") as scratch:
            sessions: dict[str, Session] = {}
            for place, (who, model) in enumerate(models.items()):
                folder = Path(scratch) / str(place)
                folder.mkdir()
                engine.write(model.eval(), folder, dtype=dtype, calibration=ranges)
                sessions[who] = engine.open(folder, dtype=dtype, n_threads=chosen.threads)
            calls = {who: (lambda run=run: run(given)) for who, run in sessions.items()}
            taken = side_by_side(calls, chosen.repeats, warm_up=2)
            for who, run in sessions.items():
                logits.append(answers(run, rows.validation))
                ms, value = 1e3 * median(taken[who]), 100 * metric(labels, logits[-1])
                found.append({"network": who, "engine": name, "dtype": dtype, "metric": value, "ms": ms})
    for place, row in enumerate(found):
        compare_with_front(row, place, found, logits, labels, metric)
    return {"task": rows.task.name, "seq": chosen.seq, "rows": found}


def compare_with_front(
    row: dict[str, Any],
    place: int,
    found: list[dict[str, Any]],
    logits: list[np.ndarray],
    labels: np.ndarray,
    metric: Any,  # noqa: ANN401 (a metric of dynabert.statistics)
) -> None:
    """Whether a peer lies above our front, and by how much, with the interval over rows."""
    row |= {"above": "", "by": "", "low": "", "high": ""}
    if row["network"].startswith("ours"):
        return
    within = [n for n, other in enumerate(found) if other["network"].startswith("ours") and other["ms"] <= row["ms"]]
    if not within:
        row["above"] = True  # nothing of ours is as fast
        return
    best = max(within, key=lambda n: found[n]["metric"])
    gap = paired_difference(metric, labels, logits[place], logits[best])
    row |= {"above": gap.mean > 0, "by": 100 * gap.mean, "low": 100 * gap.low, "high": 100 * gap.high}


def main() -> None:
    """Print the table, write JSON."""
    chosen = options(
        __doc__,
        run={"type": Path, "required": True, "help": "a finished run folder"},
        share={"type": float, "default": 0.1, "help": "training FLOPs of each peer, as a share of the run's recipe"},
        seq={"type": int, "default": 64, "help": "tokens of the timed input, batch 1"},
        repeats={"type": int, "default": 15, "help": "timed calls of each"},
    )
    if chosen.quick:
        chosen.repeats = 3
    torch.manual_seed(0)
    result = measured(chosen)
    table(sorted(result["rows"], key=lambda row: row["ms"]))
    finish({"machine": machine("cpu"), "quick": chosen.quick, **result}, chosen.json)


if __name__ == "__main__":
    main()
