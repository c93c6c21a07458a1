"""Peak memory of the depth stage against plain fine-tuning of the full model, each in a process of its own.

    python benchmarks/train_memory.py --json docs/results/train_memory.json

bert-base shape, 32 rows of 128 tokens, bf16 matrix products, dropout on. Ours holds its teacher, the low-precision
copies and the best weights so far, as a run does after its first evaluation. Plain fine-tuning is the stock model under
torch's autocast with fused AdamW. On the CPU the peak is the highest resident size of the process (VmHWM) over two
steps, less its size before the model was made; on a GPU it is the most memory that was allocated.

Each repeat measures every variant once; a ratio is that of the peaks of one repeat. `peak_bytes` are medians.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import bert_base, finish, machine, median, options, table
from train_step import DEPTH, LENGTH, ROWS, OneBatch, full_rows, our_run

from dynabert.batches import Batch
from dynabert.recipes import TEACHER

STEPS = 2


def plain(batch: Batch, device: str) -> None:
    """Two steps of fine-tuning the stock model."""
    model = bert_base(device).model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
            loss = model(**batch.inputs, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def ours(stage: str, batch: Batch, device: str) -> None:
    """Two steps of a stage of the training loop."""
    trained = {"depth": DEPTH, "teacher": TEACHER}[stage]
    run = our_run(bert_base(device), trained, OneBatch(batch), precision="bf16")  # as the stock model has
    run.best.keep()  # as after the first evaluation
    for _ in range(STEPS):
        run.step()


def resident_bytes(field: str) -> int:
    """The resident size of this process.

    :param field: ``VmRSS`` for its size now, ``VmHWM`` for the highest so far.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


def measure(variant: str, device: str) -> None:
    """Run one variant in this process, which does nothing else, and print its peak in bytes."""
    (batch,) = (batch.to(device) for batch in full_rows(1))
    torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)  # loads the products' library
    before = resident_bytes("VmRSS")
    if variant == "plain":
        plain(batch, device)
    else:
        ours(variant, batch, device)
    on_gpu = device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident_bytes("VmHWM") - before
    print(json.dumps({"peak_bytes": peak}))


def peak_of(variant: str, chosen: argparse.Namespace) -> int:
    """The peak of one variant in bytes, measured in a fresh process."""
    command = [sys.executable, __file__, "--variant", variant, "--threads", str(chosen.threads)]
    command += ["--device", chosen.device]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(json.loads(output.splitlines()[-1])["peak_bytes"])


def ratios_of(variant: str, repeats: list[dict[str, int]]) -> dict[str, float]:
    """The peak of a variant over that of plain fine-tuning: the median over the repeats, the least, the greatest.

    :param repeats: of each, the peaks by variant, in bytes.
    """
    ratios = [repeat[variant] / repeat["plain"] for repeat in repeats]
    return {"ratio": median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}


def main() -> None:
    """Measure, print, write."""
    chosen = options(
        __doc__,
        repeats={"type": int, "default": 3, "help": "times that each variant is measured; one with --quick"},
        variant={"help": argparse.SUPPRESS},
    )
    if chosen.variant:
        measure(chosen.variant, chosen.device)
        return
    names = {
        "plain": "fine-tuning, stock model",
        "teacher": "fine-tuning, our loop",
        "depth": "depth stage with teacher",
    }
    if chosen.quick:
        del names["teacher"]
        chosen.repeats = 1
    repeats = [{variant: peak_of(variant, chosen) for variant in names} for _ in range(chosen.repeats)]
    peaks = {variant: round(median([repeat[variant] for repeat in repeats])) for variant in names}
    ratios = {variant: ratios_of(variant, repeats) for variant in names}
    table([{"what": names[name], "peak_mib": round(peaks[name] / 2**20), **ratios[name]} for name in names])
    finish(
        {
            **machine(chosen.device),
            "quick": chosen.quick,
            "repeats": chosen.repeats,
            "rows": ROWS,
            "tokens": LENGTH,
            "peak_bytes": peaks,
            "depth_stage_memory": ratios["depth"],
        },
        chosen.json,
    )


if __name__ == "__main__":
    main()
