"""A few trials of every durability script; `make durability` runs them at full size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROWS = ("T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8", "T9", "T10", "T11")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the sample said of each row: one process for all of them, since imports take seconds."""
    found = tmp_path_factory.mktemp("durability") / "rows.json"
    source = str(HERE.parents[1] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "all.py"), "--sample", "--json", str(found)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.exists(), ran.stdout + ran.stderr
    return {row["row"]: row for row in json.loads(found.read_text())["rows"]}


@pytest.mark.parametrize("row", ROWS)
def test_a_sample_of_every_row_holds(row: str, rows: dict[str, dict[str, Any]]) -> None:
    assert rows[row]["passed"], rows[row]["failures"]
