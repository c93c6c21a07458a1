"""How step time would grow from 1 to 256 GPUs, computed: nothing here is measured but where it says so.

    python benchmarks/scale_on_paper.py [--tflops 150] [--measured docs/results/scale.json]

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


def compute_ms(stage: Stage, rows: float, options: argparse.Namespace) -> float:
    """All passes of one GPU in a step."""
    flops, passes = operations(stage)
    return max(1e3 * flops * rows / (options.tflops * 1e12), passes * options.shortest_ms)


def print_table(name: str, options: argparse.Namespace, *, fixed: str) -> None:
    """Step time and efficiency by number of GPUs, for one way to choose the rows of a step."""
    stage, n_bytes = STAGES[name], 4.0 * N_PARAMS
    sizes = [n for n in SIZES if fixed == "gpu" or n <= options.global_rows]
    rows_of = {n: options.rows if fixed == "gpu" else options.global_rows / n for n in sizes}
    what = f"{options.rows} rows on each GPU" if fixed == "gpu" else f"{options.global_rows} rows a step over all"
    print(f"\n{name} stage, {what}\n")
    print(
        "| GPUs | rows of a step | compute ms | " + " | ".join(f"exchange ms, {link.name}" for link in BETWEEN), end=""
    )
    print(" | " + " | ".join(f"rows/s, {link.name}" for link in BETWEEN) + " |")
    print("|---" * (3 + 2 * len(BETWEEN)) + "|")
    last = dict.fromkeys(BETWEEN, 1)
    alone = options.rows if fixed == "gpu" else options.global_rows
    speed_alone = alone / compute_ms(stage, alone, options)
    for n in sizes:
        compute = compute_ms(stage, rows_of[n], options)
        exchanges = [exchange_ms(n, link, n_bytes) for link in BETWEEN]
        speeds = [n * rows_of[n] / (compute + exchange) for exchange in exchanges]
        for link, speed in zip(BETWEEN, speeds, strict=True):
            if speed / speed_alone / n >= PAYS_ABOVE:
                last[link] = n
        told = [f"{n}", f"{n * rows_of[n]:.0f}", f"{compute:.1f}", *(f"{exchange:.1f}" for exchange in exchanges)]
        shares = [f"{1e3 * speed:,.0f} ({speed / speed_alone / n:.0%})" for speed in speeds]
        print("| " + " | ".join(told + shares) + " |")
    pays = ", ".join(f"{link.name} {n}" for link, n in last.items())
    print(f"\nAt least {PAYS_ABOVE:.0%} of n times the speed of one GPU, up to: {pays}.")


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tflops", type=float, default=150.0, help="assumed rate of one GPU, 10^12 operations a second"
    )
    parser.add_argument("--shortest-ms", type=float, default=6.0, help="assumed shortest time of one pass of a Subnet")
    parser.add_argument("--rows", type=int, default=32, help="rows on each GPU, where those are fixed")
    parser.add_argument("--global-rows", type=int, default=256, help="rows of a step, where those are fixed")
    parser.add_argument("--measured", type=Path, default=Path("docs/results/scale.json"), help="what scale.py wrote")
    options = parser.parse_args()
    print(f"BERT-base, {N_PARAMS:,} parameters, {4 * N_PARAMS / 1e6:.0f} MB of fp32 gradients, rows of {SEQ} tokens.")
    print(
        f"Assumed: {options.tflops:.0f} TFLOP/s a GPU, {options.shortest_ms} ms a pass or more, {PER_NODE} GPUs a node."
    )
    for link in (NVLINK, *BETWEEN):
        print(f"Assumed: {link.name}: {link.gigabytes_per_s} GB/s, {link.latency_us} us a hop.")
    for name, stage in STAGES.items():
        flops, passes = operations(stage)
        print(f"Exact: a row of the {name} stage takes {flops / 1e9:.0f} GFLOP in {passes} passes.")
    for name in STAGES:
        print_table(name, options, fixed="gpu")
        print_table(name, options, fixed="global")
    if options.measured.exists():
        print_measured(options.measured)


if __name__ == "__main__":
    main()
