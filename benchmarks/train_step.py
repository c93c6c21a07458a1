"""One training step, ours against a plain implementation of the published procedure, side by side in one process.

    DYNABERT_DATA=DIR python benchmarks/train_step.py --json docs/results/train_step.json

Forward, backward and optimizer of the width and of the depth stage, MiniLM on real SST-2 batches of 32 rows.
The plain step is what the published code does: fp32, every row padded to 128 tokens, a pass of the full-width teacher
for each width, all Subnets, losses summed over layers and padding, plain slices, eager attention, stock AdamW. Ours is
the loop of `dynabert train`. Both see the same rows. The `fixed length` row gives ours rows that all have 128 tokens,
which takes padding out of the comparison. Each batch is timed `--repeats` times, and its medians count; `speedup_low`
and `speedup_high` are the least and the greatest ratio of one batch. `matmul share` is the FLOP/s of our depth step at
the shape of bert-base, 32 x 128, over the best matrix product of the same run
in the precision of training: bf16 where the processor has it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from common import bert_base, finish, machine, median, minilm, options, side_by_side, sst2_rows, table
from torch import Tensor
from torch.nn import functional as F

from dynabert.batches import Batch, Batches, Encoded
from dynabert.distill import StageRun, Training, teacher_of
from dynabert.elastic import ElasticModel
from dynabert.losses import Reduction
from dynabert.precision import AUTO, PRECISIONS, precision_on
from dynabert.recipes import RECIPES, Stage
from dynabert.subnet import Subnet, matched_states
from dynabert.workload import step_flops

WIDTH, DEPTH = RECIPES["two-stage"].stages
LENGTH, ROWS = 128, 32


class PlainStep:
    """The published procedure of one stage, written plainly: what a reader of the paper and its code would write."""

    def __init__(self, elastic: ElasticModel, stage: Stage, weight: float) -> None:
        elastic.model.set_attn_implementation("eager")
        self.elastic, self.grid, self.weight = ElasticModel(elastic.model), stage.grid(elastic.grid), weight
        self.teacher = elastic.copy().at(Subnet()).eval()
        self.optimizer = torch.optim.AdamW(elastic.model.parameters(), lr=2e-5, weight_decay=0.0)

    def __call__(self, batch: Batch) -> None:
        """All Subnets of one batch, and one optimizer step."""
        self.optimizer.zero_grad()
        for width in self.grid.widths:
            with torch.no_grad():
                target = self.teacher(**batch.inputs, output_hidden_states=True)
            for depth in self.grid.depths:
                subnet = Subnet(width, depth)
                output = self.elastic.at(subnet).train()(**batch.inputs, output_hidden_states=True)
                kept = tuple(part.layer for part in self.elastic.slices(subnet))
                states = (0, *matched_states(kept, self.elastic.shape.n_layers))
                hidden = [
                    F.mse_loss(mine, target.hidden_states[theirs])
                    for mine, theirs in zip(output.hidden_states, states, strict=True)
                ]
                logits = -(target.logits.softmax(-1) * output.logits.log_softmax(-1)).sum(-1).mean()
                (logits + self.weight * torch.stack(hidden).sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.elastic.model.parameters(), 1.0)
        self.optimizer.step()


class OneBatch:
    """Gives the loop the same batch in every step, until another one is chosen."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def choose(self, batch: Batch) -> None:
        """The batch of the steps to come."""
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def micro_batches(self, step: int) -> tuple[Batch]:
        """The chosen batch, in one piece, whatever the step."""
        return (self.batch,)


def our_run(elastic: ElasticModel, stage: Stage, source: OneBatch, *, precision: str = AUTO) -> StageRun:
    """The training loop of a stage that never ends; its `step` is what is measured."""
    return StageRun(
        elastic,
        replace(stage, epochs=1e9),
        source,
        teacher=teacher_of(stage, elastic, elastic.copy()),
        reduction=Reduction(),
        training=Training(precision=precision),
    )


def spread_over_lengths(encoded: Encoded, pad_id: int, n_batches: int) -> tuple[list[Batch], list[Batch]]:
    """Batches of an epoch whose mean length is that of all its batches; and the same rows padded to 128 tokens.

    Sorted by length and cut into equal groups, of each group the batch that is nearest to its mean.
    """
    ours = Batches(encoded, batch_size=ROWS, seed=0, pad_id=pad_id)
    lengths = np.array([ours.shape(step)[1] for step in range(len(ours) - 1)])
    groups = np.array_split(np.argsort(lengths, kind="stable"), n_batches)
    chosen = [int(group[np.argmin(np.abs(lengths[group] - lengths[group].mean()))]) for group in groups]
    padded = Batches(encoded, batch_size=ROWS, seed=0, pad_id=pad_id, pad_to=LENGTH)
    return [ours.at(step) for step in chosen], [padded.at(step) for step in chosen]


def full_rows(n_batches: int) -> list[Batch]:
    """Batches in which every row has 128 tokens, none of them padding."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (n_batches, ROWS, LENGTH), generator=random)
    return [
        Batch(
            {"input_ids": rows, "attention_mask": torch.ones_like(rows), "token_type_ids": torch.zeros_like(rows)},
            torch.zeros(ROWS, dtype=torch.long),
            torch.arange(ROWS),
        )
        for rows in ids
    ]


def compare(name: str, stage: Stage, weight: float, batches: tuple[list[Batch], list[Batch]], chosen: Any) -> dict:  # noqa: ANN401
    """Time both steps on the same rows, in turns, batch after batch.

    :return: means over the batches of the median over the repeats, and the least and greatest ratio of one batch.
    """
    short, padded = ([batch.to(chosen.device) for batch in side] for side in batches)
    plain = PlainStep(minilm(chosen.device), stage, weight)
    source = OneBatch(short[0])
    ours = our_run(minilm(chosen.device), stage, source)
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    ours.step()  # step 0 and its report of losses
    for index, batch in enumerate(short):
        source.choose(batch)
        calls: dict[str, Callable[[], object]] = {"plain": partial(plain, padded[index]), "ours": ours.step}
        for side, times in side_by_side(calls, chosen.repeats, device=chosen.device, warm_up=int(index == 0)).items():
            seconds[side].append(median(times))
    means = {side: float(np.mean(times)) for side, times in seconds.items()}
    ratios = [theirs / mine for theirs, mine in zip(seconds["plain"], seconds["ours"], strict=True)]
    tokens = float(np.mean([batch.inputs["input_ids"].shape[1] for batch in short]))
    return {
        "comparison": name,
        "plain_s": means["plain"],
        "ours_s": means["ours"],
        "ours_ms_per_example": 1e3 * means["ours"] / ROWS,
        "tokens_a_row": tokens,
        "speedup": means["plain"] / means["ours"],
        "speedup_low": min(ratios),
        "speedup_high": max(ratios),
    }


def best_product(device: str, repeats: int) -> float:
    """FLOP/s of the best matrix product of a few large shapes, in the precision of training."""
    best, dtype = 0.0, PRECISIONS[precision_on(device)]
    for rows, inner, columns in ((4096, 768, 3072), (4096, 3072, 768), (4096, 768, 768), (4096, 4096, 4096)):
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(columns, inner, device=device, dtype=dtype)

        def product(left: Tensor = left, right: Tensor = right) -> Tensor:
            return F.linear(left, right)

        seconds = side_by_side({"product": product}, repeats, device=device, warm_up=2)["product"]
        best = max(best, 2.0 * rows * inner * columns / median(seconds))
    return best


def matmul_share(chosen: Any) -> dict[str, float]:  # noqa: ANN401
    """Our depth step at the shape of bert-base, 32 x 128, against the best matrix product of the same machine."""
    elastic = bert_base(chosen.device)
    (batch,) = (batch.to(chosen.device) for batch in full_rows(1))
    run = our_run(elastic, DEPTH, OneBatch(batch))
    before = best_product(chosen.device, 10)
    calls: dict[str, Callable[[], object]] = {"step": run.step}
    seconds = side_by_side(calls, chosen.repeats, device=chosen.device, warm_up=not chosen.quick)["step"]
    best = max(before, best_product(chosen.device, 10))
    achieved = ROWS * step_flops(DEPTH, elastic, seed=0, step=0, seq=LENGTH) / median(seconds)
    return {
        "step_s": median(seconds),
        "step_low_s": min(seconds),
        "step_high_s": max(seconds),
        "achieved_gflops_s": achieved / 1e9,
        "best_product_gflops_s": best / 1e9,
        "matmul_share": achieved / best,
    }


def main() -> None:
    """Measure, print, write."""
    chosen = options(
        __doc__,
        batches={"type": int, "default": 8, "help": "batches of the mean length"},
        part={"choices": ("all", "steps", "share"), "default": "all", "help": "what to measure"},
        repeats={"type": int, "default": 3, "help": "timed steps of each batch, in turns; one with --quick"},
    )
    if chosen.quick:
        chosen.repeats = 1
    result: dict[str, Any] = {**machine(chosen.device), "quick": chosen.quick, "repeats": chosen.repeats}
    if chosen.part in ("all", "steps"):
        encoded, pad_id = sst2_rows(limit=4000)
        real = spread_over_lengths(encoded, pad_id, 2 if chosen.quick else chosen.batches)
        full = full_rows(1 if chosen.quick else 2)
        for key, name, stage, weight, batches in (
            ("width_stage", "width stage, SST-2", WIDTH, 0.1, real),
            ("depth_stage", "depth stage, SST-2", DEPTH, 1.0, real),
            ("fixed_length", "depth stage, 128 tokens in every row", DEPTH, 1.0, (full, full)),
        ):
            result[key] = compare(name, stage, weight, batches, chosen)
            table([result[key]])
            finish(result, chosen.json)
    if chosen.part in ("all", "share"):
        share = matmul_share(chosen)
        table([share])
        finish(result | share, chosen.json)


if __name__ == "__main__":
    main()
