"""Peak memory of the depth stage against plain fine-tuning of the full model, each in a process of its own.

    python benchmarks/train_memory.py --json docs/results/train_memory.json

bert-base shape, 32 rows of 128 tokens, bf16 matrix products, dropout on; ours with its teacher, the low-precision
copies and the best weights so far, as in a run after its first evaluation. Plain fine-tuning is the stock model under
torch's autocast with fused AdamW. The peak is the process's highest resident size (VmHWM) after two
steps, less what it had before the model was made; on a GPU the highest allocation.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import bert_base, finish, machine, options, table
from train_step import DEPTH, LENGTH, ROWS, full_rows, our_steps

from dynabert.batches import Batch
from dynabert.recipes import TEACHER

STEPS = 2


def plain(batch: Batch, device: str) -> None:
    """Fine-tune the stock model for two steps."""
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
    step = our_steps(bert_base(device), {"depth": DEPTH, "teacher": TEACHER}[stage], [batch])
    step.__self__.best.keep()  # type: ignore[attr-defined]  # as after the first evaluation
    for _ in range(STEPS):
        step()


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (at most so far) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


def measure(variant: str, device: str) -> None:
    """In a process of its own: run a variant and print the bytes of its peak."""
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
    """The peak of a variant, measured in a fresh process."""
    command = [sys.executable, __file__, "--variant", variant, "--threads", str(chosen.threads)]
    command += ["--device", chosen.device]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(json.loads(output.splitlines()[-1])["peak_bytes"])


def main() -> None:
    """Measure, print, write."""
    chosen = options(__doc__, variant={"help": argparse.SUPPRESS})
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
    peaks = {variant: peak_of(variant, chosen) for variant in names}
    rows: list[dict[str, Any]] = [
        {"what": names[variant], "peak_mib": round(peak / 2**20), "ratio": peak / peaks["plain"]}
        for variant, peak in peaks.items()
    ]
    table(rows)
    finish(
        {
            **machine(chosen.device),
            "rows": ROWS,
            "tokens": LENGTH,
            "peak_bytes": peaks,
            "depth_stage_memory": {"ratio": peaks["depth"] / peaks["plain"]},
        },
        chosen.json,
    )


if __name__ == "__main__":
    main()
