"""How long a training step takes in one process and in two, at the same rows of a step.

    DYNABERT_DATA=DIR python benchmarks/scale.py [--quick] [--json docs/results/scale.json]

MiniLM (6 layers, 12 heads, 384 wide) on real SST-2 batches, products in bf16 where the processor has it, one thread for
each process. It starts itself by torchrun. The same two processes do both sides in turn: first rank 0 takes a step of
32 rows while rank 1 waits, then both take one of 16 rows each. Medians over the repeats. The exchange of the gradients
is measured apart, after a barrier. Beside the clock stands the processor time of rank 0, which other work on the
machine hardly lengthens. What this says about more processes than two is computed by `scale_on_paper.py`.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from common import data_folder, finish, machine, median, minilm, options, sst2_rows

from dynabert.batches import Batches, Encoded
from dynabert.distill import StageRun, Training
from dynabert.distributed import ALONE, World, joined, n_launched
from dynabert.losses import Reduction
from dynabert.recipes import RECIPES
from dynabert.workload import step_flops

BATCH_SIZE = 32
STAGES = {"sandwich": RECIPES["default"].stages[0], "depth": RECIPES["two-stage"].stages[1]}


def batches_of(encoded: Encoded, pad_id: int, world: World) -> Batches:
    """Batches of a world's rank."""
    return Batches(encoded, batch_size=BATCH_SIZE, seed=42, pad_id=pad_id, rank=world.rank, world=world.size)


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """How long a call takes, in milliseconds: by the clock, and of this process's processor time."""
    began, began_cpu = time.perf_counter(), time.process_time()
    action()
    return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - began_cpu)


def measure_stage(name: str, world: World, encoded: Encoded, pad_id: int, repeats: int) -> dict:
    """Medians of one stage, in milliseconds."""
    stage, training = replace(STAGES[name], epochs=1), Training(log_every=10**9)
    models = [minilm("cpu") for _ in range(2)]
    runs = [
        StageRun(
            elastic,
            stage,
            batches_of(encoded, pad_id, side),
            teacher=elastic.copy(),
            reduction=Reduction(),
            training=training,
            world=side,
        )
        for elastic, side in zip(models, (ALONE, world), strict=True)
    ]
    alone, shared = runs
    times: dict[str, list[tuple[float, float]]] = {"one_process": [], "two_processes": [], "exchange": []}
    rates = []
    for repeat in range(-1, repeats):  # the first round warms up
        world.barrier()
        taken = {"one_process": timed(alone.step) if world.is_first else (0.0, 0.0)}
        world.barrier()
        taken["two_processes"] = timed(shared.step)
        world.barrier()
        taken["exchange"] = timed(lambda: world.sum(shared.gradients.flat))
        if repeat < 0:
            continue
        for key, value in taken.items():
            times[key].append(value)
        seq = batches_of(encoded, pad_id, ALONE).at(repeat + 1).inputs["input_ids"].shape[1]
        flops = BATCH_SIZE * step_flops(stage, models[0], seed=training.seed, step=repeat + 1, seq=seq)
        rates.append(flops / max(taken["one_process"][0], 1e-9) / 1e6)
    medians: dict[str, float] = {}
    ranges = {}
    for key, values in times.items():
        clock, processor = zip(*values, strict=True)
        medians[f"{key}_ms"] = round(median(clock), 1)
        medians[f"{key}_cpu_ms"] = round(median(processor), 1)
        ranges[f"{key}_range_ms"] = [round(min(clock), 1), round(max(clock), 1)]
    return {
        **medians,
        **ranges,
        "cpu_ratio": round(medians["one_process_cpu_ms"] / medians["two_processes_cpu_ms"], 2),
        "speed_up": round(medians["one_process_ms"] / medians["two_processes_ms"], 2),
        "gflops_per_s": round(median(rates), 1),
        "gradient_bytes": shared.gradients.flat.numel() * shared.gradients.flat.element_size(),
    }


def measure(chosen: argparse.Namespace) -> None:
    """What each of the two processes does; rank 0 prints and writes."""
    encoded, pad_id = sst2_rows(4000)
    repeats = 2 if chosen.quick else 15
    with joined("cpu") as world:
        about = {**machine("cpu"), "model": "all-MiniLM-L6-v2", "task": "sst2"}
        about |= {"batch_size": BATCH_SIZE, "repeats": repeats}
        results = {}
        for name in STAGES:
            results[name] = measure_stage(name, world, encoded, pad_id, repeats)
            if world.is_first:
                print(lines_of(name, results[name]), flush=True)
        if world.is_first:
            finish({"about": about, "stages": results}, chosen.json)


def lines_of(name: str, found: dict) -> str:
    """One stage as lines of text."""
    lines = [f"{name} stage, {BATCH_SIZE} rows a step, median ms by the clock (range), and of processor time on rank 0"]
    for key, said in (("one_process", "one process"), ("two_processes", "two processes"), ("exchange", "the exchange")):
        low, high = found[f"{key}_range_ms"]
        lines.append(f"  {said:14} {found[f'{key}_ms']:8.1f}  ({low:.1f} to {high:.1f})  {found[f'{key}_cpu_ms']:8.1f}")
    megabytes = found["gradient_bytes"] / 1e6
    lines.append(
        f"  {found['speed_up']:.2f} times as fast, {found['cpu_ratio']:.2f} in processor time; "
        f"{megabytes:.0f} MB exchanged; {found['gflops_per_s']} GFLOP/s alone"
    )
    return "\n".join(lines)


def main() -> None:
    """Start two processes of this program, or be one of them."""
    chosen = options(__doc__, device={"default": "cpu", "help": "cpu, the only one that is measured"})
    if chosen.device != "cpu":
        print(
            f"scale.py measures two processes on the CPU, not on {chosen.device!r}; leave out --device", file=sys.stderr
        )
        sys.exit(2)
    if n_launched() > 1:
        measure(chosen)
        return
    data_folder()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run([*launch, __file__, *sys.argv[1:]], env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
