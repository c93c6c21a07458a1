"""How step time would grow from 1 to 256 processes, computed from measured CPU steps, and for GPUs from assumptions.

    python benchmarks/scale_on_paper.py > docs/results/scale-on-paper.md
    python benchmarks/scale_on_paper.py --cards 8 --tflops 300 --json FILE

In both models n processes take their shares of the rows and then exchange all gradients once, as a ring, with nothing
overlapped, as the training loop does it.

CPU, of nothing but what `scale.py` measured at one and at two processes. A step of one process has a part that is
halved with its rows and a part that is not (the optimizer, copies of the weights, what a batch costs of any size):

    one process = kept + halved,    two processes = kept + halved / 2 + exchange of two
    step of n   = kept + halved x rows of a process / rows measured + 2 (n - 1) / n x exchange of two

GPUs, of BERT-base, whose operations and bytes are exact; all rates are assumptions, printed above their tables:

    compute  = max(operations of the rows of one GPU / rate,  Subnets passes x shortest time of a pass) + fixed
    exchange = 2 (n - 1) / n x bytes / bandwidth + 2 (n - 1) x latency
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import finish, options

from dynabert.recipes import RECIPES, Schedule, Stage
from dynabert.subnet import EncoderShape, SubnetGrid, encoder_flops

BERT_BASE = EncoderShape(n_layers=12, n_heads=12, head_dim=64, hidden=768, n_neurons=3072)
N_PARAMS = 109_482_240
"""BertModel with its pooler; a task head of two classes adds 1,538."""
SEQ = 128
GRID = SubnetGrid()
STAGES = {"sandwich": RECIPES["default"].stages[0], "depth": RECIPES["two-stage"].stages[1]}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
QUICK_SIZES = (1, 8, 16)
PER_NODE = 8
PAYS_ABOVE = 0.5
GPU_CLASS = "A100"
GPU_PEAK_TFLOPS = 312.0
"""Of dense bf16 products, by the data sheet of that class; what is assumed is the part of it that is reached."""


@dataclass(frozen=True)
class Link:
    """What joins the GPUs of one ring. The numbers are assumptions: usable, not printed on the box.

    :param gigabytes_per_s: in each direction; between machines, of one network card.
    :param latency_us: of one hop.
    """

    name: str
    gigabytes_per_s: float
    latency_us: float


NVLINK = Link("NVLink", 230.0, 5.0)
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
    schedule = stage.schedule
    assert isinstance(schedule, Schedule)
    if schedule.kind == "all":
        return 3.0 * sum(cost.values()) + teachers, len(subnets) + len(taught)
    ends = cost[GRID.largest] + cost[GRID.smallest]
    n_random = schedule.n_random
    mean = (sum(cost.values()) - ends) / (len(subnets) - 2)
    return 3.0 * (ends + n_random * mean) + teachers, 2 + n_random + len(taught)


def exchange_ms(n: int, between: Link, n_bytes: float, cards: int) -> float:
    """Rings over n GPUs, one for each network card of a node; each takes its share of the bytes.

    Together they cross the network once each way with the bandwidth of all cards, and NVLink with what it has; the
    slower of the two counts.
    """
    if n == 1:
        return 0.0
    slowest = NVLINK.gigabytes_per_s
    n_between = 0
    if n > PER_NODE:
        slowest, n_between = min(slowest, cards * between.gigabytes_per_s), 2 * (n // PER_NODE)
    hops = 2 * (n - 1)
    latency_us = (hops - n_between) * NVLINK.latency_us + n_between * between.latency_us
    return 1e3 * 2 * (n - 1) / n * n_bytes / (slowest * 1e9) + latency_us / 1e3


def compute_ms(stage: Stage, rows: float, assumed: argparse.Namespace) -> float:
    """All passes of one GPU in a step, and what it does once a step."""
    flops, passes = operations(stage)
    return max(1e3 * flops * rows / (assumed.tflops * 1e12), passes * assumed.shortest_ms) + assumed.fixed_ms


def sizes(assumed: argparse.Namespace, most: int | None = None) -> list[int]:
    """The numbers of processes that are computed.

    :param most: rows of a step, where those are fixed: a process needs one at least.
    """
    return [n for n in (QUICK_SIZES if assumed.quick else SIZES) if most is None or n <= most]


def growth(name: str, assumed: argparse.Namespace, *, fixed: str) -> list[dict[str, Any]]:
    """Step time, speed and efficiency by number of GPUs, for one way to choose the rows of a step."""
    stage, n_bytes = STAGES[name], 4.0 * N_PARAMS
    alone = assumed.rows if fixed == "gpu" else assumed.global_rows
    speed_alone = alone / compute_ms(stage, alone, assumed)
    rows = []
    for n in sizes(assumed, assumed.global_rows if fixed == "global" else None):
        own = assumed.rows if fixed == "gpu" else assumed.global_rows / n
        compute = compute_ms(stage, own, assumed)
        links = {}
        for link in BETWEEN:
            exchange = exchange_ms(n, link, n_bytes, assumed.cards)
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
    columns = ["GPUs", "rows of a step", "compute and fixed ms", *(f"exchange ms, {name}" for name in names)]
    columns += [f"rows/s, {name}" for name in names]
    print(f"\n### Assumed {GPU_CLASS} GPUs: {rows[0]['stage']} stage, {what}\n")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        links = row["links"].values()
        told = [f"{row['gpus']}", f"{row['rows']:.0f}", f"{row['compute_ms']:.1f}"]
        told += [f"{link['exchange_ms']:.1f}" for link in links]
        told += [f"{link['rows_per_s']:,.0f} ({link['efficiency']:.0%})" for link in links]
        print(f"| {' | '.join(told)} |")
    pays = {name: max(row["gpus"] for row in rows if row["links"][name]["efficiency"] >= PAYS_ABOVE) for name in names}
    told = [f"{name} {n}" for name, n in pays.items()]
    print(f"\nAt least {PAYS_ABOVE:.0%} of n times the speed of one GPU, up to: {', '.join(told)}.")


@dataclass(frozen=True)
class Measured:
    """A stage as `scale.py` measured it; all times in milliseconds by the clock.

    :param rows: of a step, in both measurements.
    """

    name: str
    one: float
    two: float
    exchange: float
    rows: int

    @property
    def kept(self) -> float:
        """What every process does however few its rows."""
        return max(0.0, 2 * (self.two - self.exchange) - self.one)

    def step_ms(self, n: int, rows: float) -> float:
        """A step of n processes.

        :param rows: of each process.
        """
        return self.kept + (self.one - self.kept) * rows / self.rows + 2 * (n - 1) / n * self.exchange


def cpu_growth(stage: Measured, assumed: argparse.Namespace, rows: int, *, fixed: str) -> list[dict[str, Any]]:
    """Step time, speed and efficiency by number of processes.

    :param rows: of a step over all processes where `fixed` is ``global``, of each process where it is ``process``.
    """
    found = []
    for n in sizes(assumed, rows if fixed == "global" else None):
        own = rows / n if fixed == "global" else rows
        took, speed_alone = stage.step_ms(n, own), rows / stage.step_ms(1, rows)
        found.append(
            {
                "stage": stage.name,
                "fixed": fixed,
                "processes": n,
                "rows": n * own,
                "step_ms": took,
                "rows_per_s": 1e3 * n * own / took,
                "efficiency": own / took / speed_alone,
            }
        )
    return found


def print_cpu_table(stage: Measured, assumed: argparse.Namespace) -> list[dict[str, Any]]:
    """The three ways to choose the rows of a step side by side; what it printed, as rows."""
    ways = {
        f"{stage.rows} rows a step": cpu_growth(stage, assumed, stage.rows, fixed="global"),
        f"{assumed.global_rows} rows a step": cpu_growth(stage, assumed, assumed.global_rows, fixed="global"),
        f"{stage.rows} rows each": cpu_growth(stage, assumed, stage.rows, fixed="process"),
    }
    print(f"\n### {stage.name} stage: ms of a step, rows/s (of n times the speed of one process)\n")
    print(f"| processes | {' | '.join(ways)} |\n{'|---' * (len(ways) + 1)}|")
    for n in sizes(assumed):
        cells = []
        for rows in ways.values():
            row = next((row for row in rows if row["processes"] == n), None)
            told = "-" if row is None else f"{row['step_ms']:,.0f}: {row['rows_per_s']:,.0f} ({row['efficiency']:.0%})"
            cells.append(told)
        print(f"| {n} | {' | '.join(cells)} |")
    pays = {way: max(row["processes"] for row in rows if row["efficiency"] >= PAYS_ABOVE) for way, rows in ways.items()}
    told = ", ".join(f"{way} {n}" for way, n in pays.items())
    print(
        f"\nAt least {PAYS_ABOVE:.0%} of n times the speed of one process, up to: {told}. With the rows of a step fixed"
    )
    print(
        f"it approaches {stage.kept + 2 * stage.exchange:.0f} ms: the part that is not halved and twice the exchange."
    )
    return [row for rows in ways.values() for row in rows]


def print_cpu(path: Path, assumed: argparse.Namespace) -> list[dict[str, Any]]:
    """All that follows from what `scale.py` measured; what it printed, as rows."""
    found = json.loads(path.read_text())
    about = found["about"]
    stages = [
        Measured(name, row["one_process_ms"], row["two_processes_ms"], row["exchange_ms"], about["batch_size"])
        for name, row in found["stages"].items()
    ]
    n_bytes = next(iter(found["stages"].values()))["gradient_bytes"]
    print("\n## CPU processes, from measured steps\n")
    print(
        f"Measured ({path}, {about['date'][:10]}, load average {about['load_average']:.1f}): {about['model']} on",
        end=" ",
    )
    print(
        f"{about['task']}, {about['batch_size']} rows a step,\n{n_bytes // 4:,} parameters, {n_bytes / 1e6:.0f} MB of",
        end=" ",
    )
    print("fp32 gradients, one machine; medians by the clock, ms. The split follows from the two steps.\n")
    print("| stage | one process | two processes | the exchange of two | halved | not halved |")
    print("|---|---|---|---|---|---|")
    for stage in stages:
        times = (stage.one, stage.two, stage.exchange, stage.one - stage.kept, stage.kept)
        print(f"| {stage.name} | " + " | ".join(f"{time:.1f}" for time in times) + " |")
    print("\nComputed from it: as if every process had a core like those, and every link of the ring were like the one")
    print("between the two, which is memory of one machine: a network is slower, and its latency would come on top.")
    print("The halved part is taken to grow with the rows, beyond those that were measured too.")
    return [row for stage in stages for row in print_cpu_table(stage, assumed)]


def print_gpus(assumed: argparse.Namespace) -> list[dict[str, Any]]:
    """The assumptions and all tables of GPUs; what it printed, as rows."""
    print("\n## GPUs, from assumptions\n\nNothing in this part is measured.\n")
    print(f"- Exact: {N_PARAMS:,} parameters of BERT-base, {4 * N_PARAMS / 1e6:.0f} MB of fp32 gradients.")
    for name, stage in STAGES.items():
        flops, passes = operations(stage)
        print(f"- Exact: a row of the {name} stage, {SEQ} tokens, takes {flops / 1e9:.0f} GFLOP in {passes} passes.")
    share = assumed.tflops / GPU_PEAK_TFLOPS
    print(f"- Assumed: GPUs of the class of the {GPU_CLASS} that reach {assumed.tflops:.0f} TFLOP/s in bf16", end=" ")
    print(f"({share:.0%} of its data sheet), {assumed.shortest_ms} ms a pass or more.")
    print(f"- Assumed: {assumed.fixed_ms} ms a step whatever its rows: optimizer, clipping, copies of the weights.")
    print(f"- Assumed: {PER_NODE} GPUs a node, {assumed.cards} network card{'s' * (assumed.cards > 1)} a node.")
    for link in (NVLINK, *BETWEEN):
        each = "" if link is NVLINK else " a card"
        print(f"- Assumed: {link.name}: {link.gigabytes_per_s} GB/s{each}, {link.latency_us} us a hop.")
    tables = [growth(name, assumed, fixed=fixed) for name in STAGES for fixed in ("gpu", "global")]
    for rows in tables:
        print_table(rows, assumed)
    return [row for rows in tables for row in rows]


def main() -> None:
    """Print what follows from measurements, then what follows from assumptions."""
    assumed = options(
        __doc__,
        tflops={
            "type": float,
            "default": 150.0,
            "help": f"assumed rate of one GPU ({GPU_CLASS}), 10^12 operations a second",
        },
        shortest_ms={"type": float, "default": 6.0, "help": "assumed shortest time of one pass of a Subnet"},
        fixed_ms={
            "type": float,
            "default": 4.0,
            "help": "assumed time of optimizer and copies a step: by default 50 bytes a parameter at 1.4 TB/s",
        },
        cards={"type": int, "default": 1, "help": "network cards of each node"},
        rows={"type": int, "default": 32, "help": "rows on each GPU, where those are fixed"},
        global_rows={"type": int, "default": 256, "help": "rows of a step, where those are fixed"},
        measured={"type": Path, "default": Path("docs/results/scale.json"), "help": "what scale.py wrote"},
    )
    print("# Scale on paper: steps of 1 to 256 processes")
    cpu = print_cpu(assumed.measured, assumed) if assumed.measured.exists() else []
    gpus = print_gpus(assumed)
    names = ("tflops", "shortest_ms", "fixed_ms", "cards")
    given = {name: getattr(assumed, name) for name in names} | {"gpu_class": GPU_CLASS, "gpus_per_node": PER_NODE}
    finish({"measured_cpu": cpu, "assumed": given, "rows": gpus}, assumed.json)


if __name__ == "__main__":
    main()
