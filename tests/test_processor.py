"""What the processor can do, from what the system says."""

import platform
from pathlib import Path

import pytest

from dynabert import processor

LISTS = {
    "vnni": "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fma avx2 avx512_vnni\nprocessor : 1\nmodel name : Other",
    "amx": "model name : Some CPU\nflags : fma avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8",
    "none": "model name : Some CPU\nflags : fma avx2",
}


@pytest.fixture(autouse=True)
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine whose list of processors is made up."""

    def be(text: str | None, machine: str = "x86_64") -> None:
        path = tmp_path / "cpuinfo"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        monkeypatch.setattr(processor, "_CPUINFO", path)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        processor._field.cache_clear()

    yield be
    processor._field.cache_clear()


@pytest.mark.parametrize(
    ("text", "machine", "vnni", "overflows"),
    [
        (LISTS["vnni"], "x86_64", True, False),
        (LISTS["none"], "x86_64", False, True),
        (LISTS["none"].replace("avx2", "avx_vnni"), "AMD64", True, False),
        (None, "AMD64", False, True),  # not said: the safe way
        (None, "arm64", False, False),
    ],
)
def test_overflow_is_of_x86_without_vnni(listed, text: str | None, machine: str, vnni: bool, overflows: bool) -> None:
    listed(text, machine)
    assert (processor.has_vnni(), processor.int8_overflows()) == (vnni, overflows)


@pytest.mark.parametrize(("text", "has"), [(LISTS["amx"], True), (LISTS["vnni"], False), (None, False)])
def test_amx_is_known_by_its_tiles(listed, text: str | None, has: bool) -> None:
    listed(text)
    assert processor.has_amx() == has


def test_the_name_is_that_of_the_first_or_what_python_says(listed, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(LISTS["vnni"])
    assert processor.cpu_name() == "Some CPU"
    monkeypatch.setattr(platform, "processor", lambda: "")
    listed(None, "riscv")
    assert processor.cpu_name() == "riscv"
