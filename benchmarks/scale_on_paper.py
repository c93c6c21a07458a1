"""How step time would grow from 1 to 256 GPUs, computed: nothing here is measured but where it says so.

    python benchmarks/scale_on_paper.py [--tflops 150] [--measured docs/results/scale.json] [--json FILE]

The model: a step of n GPUs takes the time of its largest share of the rows, and then one ring all-reduce of all
gradients, with nothing overlapped, as the training loop does it:

    compute  = max(operations of the rows of one GPU / rate,  Subnets passes x shortest time of a pass)
    exchange = 2 (n - 1) / n x bytes / bandwidth + 2 (n - 1) x latency

Rate, shortest time, bandwidths and latencies are assumptions, printed above the tables; put in what you measured.
Operations and bytes are exact for BERT-base. What every process does however few its rows (optimizer, copies) is not in
it. Below the tables stand one and two processes as `scale.py` measured them.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import finish, options

from dynabert.recipes import RECIPES, Stage
from dynabert.subnet import EncoderShape, SubnetGrid, encoder_flops

BERT_BASE = EncoderShape(n_layers=12, n_heads=12, head_dim=64, hidden=768, n_neurons=3072)
N_PARAMS = 109_482_240
"""BertModel with its pooler; a task head of two classes adds 1,538."""
SEQ = 128
GRID = SubnetGrid()
STAGES = {"sandwich": RECIPES["sandwich"].stages[0], "depth": RECIPES["default"].stages[1]}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PER_NODE = 8
PAYS_ABOVE = 0.5


@dataclass(frozen=True)
class Link:
    """What joins the GPUs of one ring. The numbers are assumptions: usable, not printed on the box.

    :param gigabytes_per_s: in each direction; between machines, of one machine.
    :param latency_us: of one hop.
    """

    name: str
    gigabytes_per_s: float
    latency_us: float


NVLINK = Link("NVLink", 300.0, 5.0)
BETWEEN = (
    Link("InfiniBand, 400 Gb/s", 45.0, 10.0),
    Link("100 Gb Ethernet", 11.0, 30.0),
    Link("10 Gb Ethernet", 1.1, 50.0),
)


def operations(stage: Stage) -> tuple[float, int]:
    """Encoder operations of one row of a step, and how many passes there are (a student's counts forward and backward).

    A Subnet costs three forward passes (its backward counts twice), a teacher output one. A sandwich draws two of the
    other Subnets: their mean stands for each.
    """
    cost = {subnet: encoder_flops(BERT_BASE, subnet.slices(BERT_BASE), SEQ) for subnet in GRID}
    subnets = list(cost)
    taught = {stage.teacher_of(subnet) for subnet in subnets}
    teachers = sum(encoder_flops(BERT_BASE, subnet.slices(BERT_BASE), SEQ) for subnet in taught)
    if stage.schedule.kind == "all":
        return 3.0 * sum(cost.values()) + teachers, len(subnets) + len(taught)
    ends = cost[GRID.largest] + cost[GRID.smallest]
    n_random = stage.schedule.n_random
    mean = (sum(cost.values()) - ends) / (len(subnets) - 2)
    return 3.0 * (ends + n_random * mean) + teachers, 2 + n_random + len(taught)


def exchange_ms(n: int, between: Link, n_bytes: float) -> float:
    """A ring over n GPUs; it crosses each machine's network once each way, so the slower link counts."""
    if n == 1:
        return 0.0
    slowest = NVLINK if n <= PER_NODE else min(NVLINK, between, key=lambda link: link.gigabytes_per_s)
    hops = 2 * (n - 1)
    n_between = 0 if n <= PER_NODE else 2 * (n // PER_NODE)
    latency_us = (hops - n_between) * NVLINK.latency_us + n_between * between.latency_us
    return 1e3 * 2 * (n - 1) / n * n_bytes / (slowest.gigabytes_per_s * 1e9) + latency_us / 1e3


def compute_ms(stage: Stage, rows: float, assumed: argparse.Namespace) -> float:
    """All passes of one GPU in a step."""
    flops, passes = operations(stage)
    return max(1e3 * flops * rows / (assumed.tflops * 1e12), passes * assumed.shortest_ms)


def growth(name: str, assumed: argparse.Namespace, *, fixed: str) -> list[dict[str, Any]]:
    """Step time, speed and efficiency by number of GPUs, for one way to choose the rows of a step."""
    stage, n_bytes = STAGES[name], 4.0 * N_PARAMS
    alone = assumed.rows if fixed == "gpu" else assumed.global_rows
    speed_alone = alone / compute_ms(stage, alone, assumed)
    rows = []
    for n in [1] if assumed.quick else SIZES:
        if fixed == "global" and n > assumed.global_rows:
            continue
        own = assumed.rows if fixed == "gpu" else assumed.global_rows / n
        compute = compute_ms(stage, own, assumed)
        links = {}
        for link in BETWEEN:
            exchange = exchange_ms(n, link, n_bytes)
            speed = n * own / (compute + exchange)
            links[link.name] = {
                "exchange_ms": exchange,
                "rows_per_s": 1e3 * speed,
                "efficiency": speed / speed_alone / n,
            }
        rows.append({"stage": name, "fixed": fixed, "gpus": n, "rows": n * own, "compute_ms": compute, "links": links})
    return rows


def print_table(rows: list[dict[str, Any]], assumed: argparse.Namespace) -> None:
    """What `growth` gives, as a table."""
    per_gpu = rows[0]["fixed"] == "gpu"
    what = f"{assumed.rows} rows on each GPU" if per_gpu else f"{assumed.global_rows} rows a step over all"
    names = [link.name for link in BETWEEN]
    columns = ["GPUs", "rows of a step", "compute ms", *(f"exchange ms, {name}" for name in names)]
    columns += [f"rows/s, {name}" for name in names]
    print(f"\n{rows[0]['stage']} stage, {what}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        links = row["links"].values()
        told = [f"{row['gpus']}", f"{row['rows']:.0f}", f"{row['compute_ms']:.1f}"]
        told += [f"{link['exchange_ms']:.1f}" for link in links]
        told += [f"{link['rows_per_s']:,.0f} ({link['efficiency']:.0%})" for link in links]
        print(f"| {' | '.join(told)} |")
    pays = {name: max(row["gpus"] for row in rows if row["links"][name]["efficiency"] >= PAYS_ABOVE) for name in names}
    told = [f"{name} {n}" for name, n in pays.items()]
    print(f"\nAt least {PAYS_ABOVE:.0%} of n times the speed of one GPU, up to: {', '.join(told)}.")


def print_measured(path: Path) -> None:
    """Two processes beside one, as `scale.py` measured them, and what each process does twice."""
    found = json.loads(path.read_text())
    about = found["about"]
    print(
        f"\nMeasured ({path}, {about['date'][:10]}, load average {about['load_average']:.1f}): {about['model']} on",
        end=" ",
    )
    print(
        f"{about['task']}, {about['batch_size']} rows a step, one machine, ms by the clock (processor time of rank 0)."
    )
    print(
        "What is not halved is done by every process: the optimizer, copying weights, what a batch costs of any size.\n"
    )
    print("| stage | one process | two processes | the exchange alone | not halved, of processor time |")
    print("|---|---|---|---|---|")
    for name, row in found["stages"].items():
        keys = ("one_process", "two_processes", "exchange")
        told = [f"{row[f'{key}_ms']:.1f} ({row[f'{key}_cpu_ms']:.1f})" for key in keys]
        kept = 2 * (row["two_processes_cpu_ms"] - row["exchange_cpu_ms"]) - row["one_process_cpu_ms"]
        print(f"| {name} | " + " | ".join(told) + f" | {kept:.1f} |")


def main() -> None:
    """Print the assumptions and all tables."""
    assumed = options(
        __doc__,
        tflops={"type": float, "default": 150.0, "help": "assumed rate of one GPU, 10^12 operations a second"},
        shortest_ms={"type": float, "default": 6.0, "help": "assumed shortest time of one pass of a Subnet"},
        rows={"type": int, "default": 32, "help": "rows on each GPU, where those are fixed"},
        global_rows={"type": int, "default": 256, "help": "rows of a step, where those are fixed"},
        measured={"type": Path, "default": Path("docs/results/scale.json"), "help": "what scale.py wrote"},
    )
    print(f"BERT-base, {N_PARAMS:,} parameters, {4 * N_PARAMS / 1e6:.0f} MB of fp32 gradients, rows of {SEQ} tokens.")
    print(
        f"Assumed: {assumed.tflops:.0f} TFLOP/s a GPU, {assumed.shortest_ms} ms a pass or more, {PER_NODE} GPUs a node."
    )
    for link in (NVLINK, *BETWEEN):
        print(f"Assumed: {link.name}: {link.gigabytes_per_s} GB/s, {link.latency_us} us a hop.")
    for name, stage in STAGES.items():
        flops, passes = operations(stage)
        print(f"Exact: a row of the {name} stage takes {flops / 1e9:.0f} GFLOP in {passes} passes.")
    tables = [growth(name, assumed, fixed=fixed) for name in STAGES for fixed in ("gpu", "global")]
    for rows in tables:
        print_table(rows, assumed)
    if assumed.measured.exists():
        print_measured(assumed.measured)
    given = {"tflops": assumed.tflops, "shortest_ms": assumed.shortest_ms, "gpus_per_node": PER_NODE}
    finish({"assumed": given, "rows": [row for rows in tables for row in rows]}, assumed.json)


if __name__ == "__main__":
    main()
