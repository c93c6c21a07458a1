"""Peak memory of cutting a size out of a large elastic folder, each way in a process of its own.

The process first cuts the same size out of a tiny folder, so that whatever is imported on the way is there; its
resident size then is the baseline. Then the kernel's high-water mark is begun anew and the large folder is cut:
reading, checking and writing, to the finished folder. The peak is the mark less the baseline. Goal: at most 1.3 times
the bytes of the extracted weights.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import median, table
from transformers import BertConfig, BertForSequenceClassification

from dynabert.elastic import ElasticModel
from dynabert.extraction import extract_folder
from dynabert.loading import save_model
from dynabert.memory import peak_memory
from dynabert.subnet import Subnet

SUBNET = Subnet(0.25, 0.5)
GOAL = 1.3
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TINY = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}


def write_elastic(folder: Path, **sizes: int) -> None:
    """An elastic folder of random weights."""
    torch.manual_seed(0)
    ElasticModel(BertForSequenceClassification(BertConfig.from_dict(sizes))).save_pretrained(folder)


def lazily(folder: Path, out: Path) -> None:
    """Read what the size keeps."""
    extract_folder(folder, SUBNET, out)


def whole(folder: Path, out: Path) -> None:
    """Load the full network, then cut."""
    save_model(ElasticModel.from_pretrained(folder).extract(SUBNET), out)


WAYS = {"lazy": lazily, "whole": whole}


def measure(way: str, tiny: Path, large: Path, out: Path) -> None:
    """Cut in this process, which does nothing else, and print its peak in bytes above the baseline."""
    torch.set_num_threads(1)
    WAYS[way](tiny, out)
    status = Path("/proc/self/status").read_text().splitlines()
    baseline = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    peak = peak_memory()
    WAYS[way](large, out)
    print(json.dumps({"peak_bytes": peak() - baseline, "baseline_bytes": baseline}))


def peak_of(way: str, *folders: Path) -> dict[str, int]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, way, *map(str, folders)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, int] = json.loads(output.splitlines()[-1])
    return found


def memory(*, quick: bool) -> dict[str, Any]:
    """Measure each way, one repeat of a shallow network if quick, and print a table."""
    sizes = LARGE | ({"num_hidden_layers": 4} if quick else {})
    with TemporaryDirectory() as temporary:
        tiny, large, out = (Path(temporary) / name for name in ("tiny", "large", "small"))
        write_elastic(tiny, **TINY)
        write_elastic(large, **sizes)
        full_bytes = (large / "model.safetensors").stat().st_size
        repeats = [{way: peak_of(way, tiny, large, out) for way in WAYS} for _ in range(1 if quick else 3)]
        small_bytes = (out / "model.safetensors").stat().st_size
    peaks = {way: round(median([repeat[way]["peak_bytes"] for repeat in repeats])) for way in WAYS}
    ratios = {way: [repeat[way]["peak_bytes"] / small_bytes for repeat in repeats] for way in WAYS}
    table(
        [
            {
                "way": way,
                "subnet": SUBNET.name,
                "full_mib": round(full_bytes / 2**20),
                "extracted_mib": round(small_bytes / 2**20),
                "peak_mib": round(peaks[way] / 2**20),
                "peak / extracted": median(ratios[way]),
            }
            for way in WAYS
        ]
    )
    return {
        "subnet": SUBNET.name,
        "shape": sizes,
        "full_bytes": full_bytes,
        "extracted_bytes": small_bytes,
        "peak_bytes": peaks,
        "peak_over_extracted": {way: median(ratios[way]) for way in WAYS},
        "repeats": repeats,
        "goal": GOAL,
        "reached": max(ratios["lazy"]) <= GOAL,
    }


if __name__ == "__main__":
    measure(sys.argv[1], *map(Path, sys.argv[2:]))
