"""What a bit less in the weights of an int8 costs or mends on this processor: the part `bits` of export.py.

Where sums of int8 products overflow (x86 without VNNI), weights of 7 bits are nearer to PyTorch than those of 8.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from export_parity import FULL, SMALL, Network, networks_of

from dynabert.deployed import answers, calibration_of, write_subnet
from dynabert.engines import Int8, engine_of
from dynabert.exported import FULL_BITS, SAFE_BITS
from dynabert.measure import predict
from dynabert.processor import int8_overflows
from dynabert.subnet import Subnet

ENGINES = ("openvino", "onnxruntime")


def bits(run: Path | None, *, quick: bool) -> list[dict[str, Any]]:
    """A row for every network, size, engine and number of bits.

    :param run: see `export_parity.parity`.
    """
    print("int8 overflows on this processor:", int8_overflows())
    return [
        _row(network, subnet, engine, number)
        for network in networks_of(run)
        for subnet in ((SMALL,) if quick else (SMALL, FULL))
        for engine in ENGINES
        for number in (FULL_BITS, SAFE_BITS)
    ]


def _row(network: Network, subnet: Subnet, name: str, number: int) -> dict[str, Any]:
    checks, engine = network.checks(subnet), engine_of(name, "int8")
    same = predict(network.elastic.at(subnet), checks.validation)
    with TemporaryDirectory(prefix="dynabert-") as scratch:
        folder, ranges = Path(scratch), Int8(calibration_of(checks.select))
        with patch(f"dynabert.engines.{name}_engine.int8_overflows", lambda: number == SAFE_BITS):
            write_subnet(engine, network.elastic, subnet, folder, dtype="int8", int8=ranges)
        session = engine.open(folder, dtype="int8", n_threads=torch.get_num_threads())
        said = answers(session, checks.validation)
    return {
        "network": network.family,
        "size": subnet.name,
        "engine": name,
        "bits": number,
        "rms difference": float(np.sqrt(np.square(said - same).mean())),
        "max difference": float(np.abs(said - same).max()),
        "same as torch": float((said.argmax(axis=1) == same.argmax(axis=1)).mean()),
    }
