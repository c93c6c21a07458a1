"""How fast every size is in every engine and type, beside the full size and beside stock transformers.

    python benchmarks/inference.py --quick                              one shape, four sizes, few repeats
    python benchmarks/inference.py --json docs/results/inference.json   bert-base and MiniLM shapes, random weights

All sizes of an engine and the stock model (transformers as it stands, fp32, full size, in every round) take turns.
`speedup` is over the full size of the same engine, `of_flops` that speed-up as a share of the ratio of FLOPs,
`vs_stock` over the stock model. One thread by default.
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import bert_base, finish, machine, median, minilm, options, side_by_side, table

from dynabert.elastic import ElasticModel
from dynabert.engines import Inputs, Session, engine_of
from dynabert.measurement import ENGINE_DTYPES
from dynabert.subnet import Subnet, encoder_flops

SMALL = Subnet(0.25, 0.5)
CORNERS = (Subnet(), Subnet(0.25), Subnet(1, 0.5), SMALL)
STOCK = "stock"


def inputs_of(batch: int, seq: int) -> dict[str, np.ndarray]:
    """Random tokens without padding, (batch, seq)."""
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, seq))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def calibration() -> list[dict[str, np.ndarray]]:
    """Rows for the ranges of int8: with random weights any will do."""
    return [inputs_of(1, seq) for seq in (16, 32, 64, 128) for _ in range(8)]


@contextmanager
def sessions(
    elastic: ElasticModel, name: str, dtype: str, subnets: tuple[Subnet, ...], threads: int
) -> Iterator[dict[Subnet, Session]]:
    """Every size, written and opened by an engine."""
    engine, found = engine_of(name, dtype), {}
    with TemporaryDirectory(prefix="dynabert-") as scratch:
        for place, subnet in enumerate(subnets):
            folder = Path(scratch) / str(place)
            folder.mkdir()
            engine.write(elastic.extract(subnet).eval(), folder, dtype=dtype, calibration=calibration())
            found[subnet] = engine.open(folder, dtype=dtype, n_threads=threads)
        yield found
    del found
    gc.collect()


def stock_call(elastic: ElasticModel, inputs: Inputs) -> Callable[[], object]:
    """The full network as transformers runs it."""
    tensors = {name: torch.from_numpy(rows) for name, rows in inputs.items()}

    def call() -> object:
        with torch.inference_mode():
            return elastic.model(**tensors)

    return call


def engine_rows(
    shape: str,
    elastic: ElasticModel,
    name: str,
    dtype: str,
    subnets: tuple[Subnet, ...],
    sizes: list[tuple[int, int]],
    chosen: argparse.Namespace,
) -> list[dict[str, Any]]:
    """One engine and type: a row for each size at each batch and length."""
    rows = []
    with sessions(elastic, name, dtype, subnets, chosen.threads) as opened:
        for batch, seq in sizes:
            given = inputs_of(batch, seq)
            calls: dict[Any, Callable[[], object]] = {subnet: partial(run, given) for subnet, run in opened.items()}
            taken = side_by_side({STOCK: stock_call(elastic, given), **calls}, chosen.repeats, warm_up=2)
            medians = {key: 1e3 * median(times) for key, times in taken.items()}
            flops = {s: encoder_flops(elastic.shape, elastic.slices(s), seq) for s in subnets}
            for subnet in subnets:
                ratio, speedup = flops[Subnet()] / flops[subnet], medians[Subnet()] / medians[subnet]
                rows.append(
                    {
                        "shape": shape,
                        "engine": name,
                        "dtype": dtype,
                        "batch": batch,
                        "seq": seq,
                        "subnet": subnet.name,
                        "ms": medians[subnet],
                        "speedup": speedup,
                        "flops_ratio": ratio,
                        "of_flops": speedup / ratio,
                        "stock_ms": medians[STOCK],
                        "vs_stock": medians[STOCK] / medians[subnet],
                    }
                )
    return rows


def view_rows(
    shape: str,
    elastic: ElasticModel,
    subnets: tuple[Subnet, ...],
    sizes: list[tuple[int, int]],
    chosen: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A view beside its extracted form, PyTorch in fp32."""
    rows = []
    for subnet in subnets:
        pair = {"view": elastic.at(subnet).eval(), "extracted": elastic.extract(subnet).eval()}
        for batch, seq in sizes:
            tensors = {name: torch.from_numpy(rows_) for name, rows_ in inputs_of(batch, seq).items()}
            with torch.inference_mode():
                taken = side_by_side({name: partial(m, **tensors) for name, m in pair.items()}, 2 * chosen.repeats)
            ratios = np.array(taken["view"]) / np.array(taken["extracted"])
            rows.append(
                {
                    "shape": shape,
                    "subnet": subnet.name,
                    "batch": batch,
                    "seq": seq,
                    "extracted_ms": 1e3 * median(taken["extracted"]),
                    "view_over_extracted": float(np.median(ratios)),
                }
            )
    return rows


def headlines(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the goals name, of the shape of bert-base where it was measured."""
    shape = "bert-base" if any(row["shape"] == "bert-base" for row in rows) else rows[0]["shape"]
    at = [row for row in rows if (row["shape"], row["batch"], row["seq"]) == (shape, 1, 128)]
    small = max((row for row in at if row["subnet"] == SMALL.name), key=lambda row: row["vs_stock"])
    full = max((row for row in at if row["subnet"] == Subnet().name), key=lambda row: row["vs_stock"])

    def said(row: dict[str, Any]) -> dict[str, Any]:
        return {"engine": row["engine"], "dtype": row["dtype"], "ms": row["ms"], "speedup": row["vs_stock"]}

    shares: dict[str, list[float]] = {"fp32": [], "int8": []}
    for row in rows:
        if row["subnet"] == SMALL.name and row["batch"] * row["seq"] >= 512:
            shares.setdefault(row["dtype"].removesuffix("-static"), []).append(row["of_flops"])
    return {
        "shape": shape,
        "best_small_vs_stock_fp32": said(small),
        "best_full_vs_stock_fp32": said(full),
        # Both against the stock model of their own rounds, so that a busy minute does not count for one of them alone.
        "best_small_vs_best_full": {"speedup": small["vs_stock"] / full["vs_stock"]},
        "share_of_flops_ratio_from_512_tokens": {
            dtype: {"median": median(found), "worst": min(found), "best": max(found)}
            for dtype, found in shares.items()
            if found
        },
    }


def engines_part(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every engine, type, size and shape."""
    sizes = [(1, 32), (1, 128)] if chosen.quick else [(1, 32), (1, 128), (16, 32), (16, 128)]
    shapes = {"minilm": minilm} if chosen.quick else {"bert-base": bert_base, "minilm": minilm}
    rows, views = [], []
    for shape, make in shapes.items():
        elastic = make("cpu")
        elastic.model.eval()
        subnets = CORNERS if chosen.quick or chosen.corners else tuple(elastic.grid)
        for name, dtypes in ENGINE_DTYPES.items():
            if chosen.engines and name not in chosen.engines.split(","):
                continue
            for dtype in dtypes:
                found = engine_rows(shape, elastic, name, dtype, subnets, sizes, chosen)
                table([{key: row[key] for key in row if key not in ("shape", "stock_ms")} for row in found])
                rows += found
        views += view_rows(shape, elastic, CORNERS, sizes, chosen)
        table(views)
    result = {"machine": machine("cpu"), **headlines(rows), "rows": rows, "views": views}
    for name in ("best_small_vs_stock_fp32", "best_full_vs_stock_fp32", "best_small_vs_best_full"):
        print(name, result[name])
    print("share of the FLOPs ratio, from 512 tokens on:", result["share_of_flops_ratio_from_512_tokens"])
    return result


def main() -> None:
    """Print the tables, write JSON."""
    chosen = options(
        __doc__,
        repeats={"type": int, "default": 9, "help": "timed calls of each"},
        engines={"default": "", "help": "comma-separated; all by default"},
        corners={"action": "store_true", "help": "four sizes instead of twelve"},
    )
    if chosen.quick:
        chosen.repeats = 3
    finish(engines_part(chosen), chosen.json)


if __name__ == "__main__":
    main()
