"""What this machine's processor is called and can do, as far as the system says. No torch."""

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}


def cpu_name() -> str:
    """The model name that Linux knows; elsewhere what Python says."""
    return _field("model name") or platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Whether an x86 processor adds up products of int8 in 32 bits at once; no where the system does not say."""
    return not _VNNI.isdisjoint(_field("flags").split())


def has_amx() -> bool:
    """Whether an x86 processor multiplies tiles of bf16 and int8, several times as fast as vectors."""
    return "amx_tile" in _field("flags").split()


def int8_overflows() -> bool:
    """Whether sums of int8 products can overflow: x86 without VNNI adds pairs of them in 16 bits.

    Weights of 7 bits cannot make it overflow. They are written too where the system does not say what there is.
    """
    return platform.machine().lower() in ("x86_64", "amd64") and not has_vnni()


@cache
def _field(name: str) -> str:
    """The first value of a field in Linux's list of processors; empty where there is none."""
    lines = _CPUINFO.read_text(errors="replace").splitlines() if _CPUINFO.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name)
    return next(values, "")
