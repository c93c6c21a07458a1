"""How fast every size is in every engine and type, beside the full size and beside stock transformers.

    python benchmarks/inference.py --quick                              one shape, few sizes, few repeats
    python benchmarks/inference.py --json docs/results/inference.json   bert-base and MiniLM shapes, random weights

All sizes of an engine and type take turns, at batch 1 with the stock model (transformers as it stands, fp32, full size)
in every round, in PyTorch in fp32 with the views of the corners of the grid. `speedup` is over the full size of the
same engine and type, `of_flops` that speed-up as a share of the ratio of FLOPs, `vs_stock` over the stock model. All
twelve sizes run. A type that this processor does not compute in is left out and named; with `--emulated` it runs too,
PyTorch's bf16 emulated and OpenVINO's computed in fp32, and is named as such. The result is written after every engine
and type. One thread by default.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import bert_base, finish, machine, median, minilm, options, table, usable_forms

from dynabert.elastic import ElasticModel
from dynabert.engines import Inputs, Int8, Session, engine_of
from dynabert.engines.torch_engine import TorchSession
from dynabert.measurement import ENGINE_DTYPES
from dynabert.subnet import Subnet, encoder_flops
from dynabert.timing import interleaved, timing_of

SMALL = Subnet(0.25, 0.5)
CORNERS = (Subnet(), Subnet(0.25), Subnet(1, 0.5), SMALL)
STOCK = "stock"
VIEW = "view of "
SIZES = ((1, 32), (1, 128), (16, 32), (16, 128))
QUICK_SIZES = SIZES[:3]
REPEATS_OF_MANY = 5
"""At a batch above 1, where a call of the full size takes seconds; at most as many as at batch 1."""
FROM_TOKENS = 512
"""In one call: from here on the share of the ratio of FLOPs is summed up."""


def inputs_of(batch: int, seq: int) -> dict[str, np.ndarray]:
    """Random tokens without padding, (batch, seq)."""
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, seq))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def calibration() -> list[dict[str, np.ndarray]]:
    """Rows for the ranges of int8: with random weights any will do."""
    return [inputs_of(1, seq) for seq in (16, 32, 64, 128) for _ in range(2)]


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
            engine.write(elastic.extract(subnet).eval(), folder, dtype=dtype, int8=Int8(calibration()))
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


def timed(
    elastic: ElasticModel,
    opened: dict[Subnet, Session],
    views: dict[str, Session],
    shape: tuple[int, int],
    repeats: int,
) -> dict[str, np.ndarray]:
    """Seconds of each call at one batch and length, all taking turns: sizes by name, views, and the stock model."""
    given, many = inputs_of(*shape), shape[0] > 1
    runs: dict[str, Session] = {subnet.name: run for subnet, run in opened.items()} | views
    calls: dict[str, Callable[[], object]] = {name: partial(run, given) for name, run in runs.items()}
    if not many:
        calls = {STOCK: stock_call(elastic, given), **calls}
    return interleaved(calls, min(repeats, REPEATS_OF_MANY) if many else repeats)


def row_of(
    elastic: ElasticModel, subnet: Subnet, taken: dict[str, np.ndarray], shape: tuple[int, int]
) -> dict[str, Any]:
    """One size at one batch and length, beside the full size and the stock model of the same rounds."""
    seconds, full = taken[subnet.name], taken[Subnet().name]
    timing, stock = timing_of(seconds, shape=shape), taken.get(STOCK)
    costs = (encoder_flops(elastic.shape, elastic.slices(size), shape[1]) for size in (Subnet(), subnet))
    ratio, speedup = next(costs) / next(costs), float(np.median(full) / np.median(seconds))
    stock_ms = None if stock is None else timing_of(stock, shape=shape).median_ms
    return {
        "batch": shape[0],
        "seq": shape[1],
        "subnet": subnet.name,
        "ms": timing.median_ms,
        "p95_ms": timing.p95_ms,
        "spread": timing.spread,
        "repeats": len(seconds),
        "speedup": speedup,
        "flops_ratio": ratio,
        "of_flops": speedup / ratio,
        "stock_ms": stock_ms,
        "vs_stock": None if stock_ms is None else stock_ms / timing.median_ms,
    }


def view_row(subnet: Subnet, taken: dict[str, np.ndarray], shape: tuple[int, int]) -> dict[str, Any]:
    """A view beside its extracted form."""
    view, extracted = taken[VIEW + subnet.name], taken[subnet.name]
    return {
        "batch": shape[0],
        "seq": shape[1],
        "subnet": subnet.name,
        "extracted_ms": 1e3 * median(extracted),
        "view_ms": 1e3 * median(view),
        "view_over_extracted": median(view / extracted),
    }


def measured(
    elastic: ElasticModel, name: str, dtype: str, chosen: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One engine and type: a row for each size at each batch and length; and, in PyTorch in fp32, for each view."""
    subnets = CORNERS if chosen.corners else tuple(elastic.grid)
    if chosen.quick:
        subnets = (Subnet(), SMALL)
    views: dict[str, Session] = {}
    if (name, dtype) == ("torch", "fp32"):
        views = {VIEW + s.name: TorchSession(elastic.at(s).eval(), n_threads=chosen.threads) for s in CORNERS}
        views = {key: view for key, view in views.items() if key.removeprefix(VIEW) in {s.name for s in subnets}}
    rows, view_rows = [], []
    with sessions(elastic, name, dtype, subnets, chosen.threads) as opened:
        for shape in QUICK_SIZES if chosen.quick else SIZES:
            taken = timed(elastic, opened, views, shape, chosen.repeats)
            rows += [row_of(elastic, s, taken, shape) for s in subnets]
            view_rows += [view_row(s, taken, shape) for s in subnets if VIEW + s.name in taken]
    return rows, view_rows


def best(rows: list[dict[str, Any]], subnet: Subnet) -> dict[str, Any]:
    """The fastest form of a size, each against the stock model of its own rounds."""
    row = max((row for row in rows if row["subnet"] == subnet.name), key=lambda row: row["vs_stock"])
    return {
        "engine": row["engine"],
        "dtype": row["dtype"],
        "ms": row["ms"],
        "p95_ms": row["p95_ms"],
        "speedup": row["vs_stock"],
    }


def shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The share of the ratio of FLOPs at (0.25, 0.5), one row for each engine, type and shape."""
    found = []
    for row in rows:
        if row["subnet"] == SMALL.name and row["batch"] * row["seq"] >= FROM_TOKENS:
            found.append({key: row[key] for key in ("shape", "engine", "dtype", "batch", "seq", "speedup", "of_flops")})
    return found


def headlines(rows: list[dict[str, Any]], views: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the goals name, of the shape of bert-base where it was measured."""
    shape = "bert-base" if any(row["shape"] == "bert-base" for row in rows) else rows[0]["shape"]
    at = [row for row in rows if (row["shape"], row["batch"], row["seq"]) == (shape, 1, 128)]
    small, full = best(at, SMALL), best(at, Subnet())
    off = max((row["view_over_extracted"] for row in views), default=None)
    return {
        "shape": shape,
        "best_small_vs_stock_fp32": small,
        "best_full_vs_stock_fp32": full,
        # Both against the stock model of their own rounds, so that a busy minute does not count for one of them alone.
        "best_small_vs_best_full": {"speedup": small["speedup"] / full["speedup"]},
        "slowest_view_over_extracted": off,
        f"share_of_flops_ratio_from_{FROM_TOKENS}_tokens": shares(rows),
    }


def engines_part(chosen: argparse.Namespace) -> dict[str, Any]:
    """Every engine, type, size and shape."""
    shapes = {"bert-base": bert_base, "minilm": minilm}
    wanted = (chosen.shapes or ("minilm" if chosen.quick else ",".join(shapes))).split(",")
    forms = [(name, dtype) for name, dtypes in ENGINE_DTYPES.items() for dtype in dtypes]
    if chosen.engines:
        forms = [form for form in forms if form[0] in chosen.engines.split(",")]
    if chosen.dtypes:
        forms = [form for form in forms if form[1] in chosen.dtypes.split(",")]
    forms, foreign = usable_forms(forms, emulated=chosen.emulated)
    if not forms:
        sys.exit("nothing to measure: no engine that was asked for has such a type on this processor")
    about, started = machine("cpu"), time.perf_counter()
    rows: list[dict[str, Any]] = []
    views: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for shape in wanted:
        elastic = shapes[shape]("cpu")
        elastic.model.eval()
        for name, dtype in forms:
            found, seen = measured(elastic, name, dtype, chosen)
            rows += [{"shape": shape, "engine": name, "dtype": dtype, **row} for row in found]
            views += [{"shape": shape, **row} for row in seen]
            seconds = time.perf_counter() - started
            print(f"{shape}, {name} {dtype}, after {seconds / 60:.1f} minutes")
            table([{key: value for key, value in row.items() if key != "stock_ms"} for row in found])
            table(seen)
            known = {"machine": about, "seconds": seconds, "emulated" if chosen.emulated else "left_out": foreign}
            result = {**known, **headlines(rows, views), "rows": rows, "views": views}
            finish(result, chosen.json)  # what is there is kept if the next one fails
    return result


def main() -> None:
    """Print the tables, write JSON."""
    chosen = options(
        __doc__,
        repeats={"type": int, "default": 9, "help": f"timed calls of each; at a batch above 1 {REPEATS_OF_MANY}"},
        engines={"default": "", "help": "comma-separated; all by default"},
        dtypes={"default": "", "help": "comma-separated; all by default"},
        emulated={"action": "store_true", "help": "the types too that this processor does not compute in"},
        shapes={"default": "", "help": "bert-base, minilm or both; both by default, with --quick minilm"},
        corners={"action": "store_true", "help": "four sizes instead of twelve"},
    )
    if chosen.quick:
        chosen.repeats = 3
    result = engines_part(chosen)
    table(result[f"share_of_flops_ratio_from_{FROM_TOKENS}_tokens"])
    for name in ("best_small_vs_stock_fp32", "best_full_vs_stock_fp32", "best_small_vs_best_full"):
        print(name, result[name])
    print("slowest view over its extracted form:", result["slowest_view_over_extracted"])


if __name__ == "__main__":
    main()
