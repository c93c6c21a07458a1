"""Programs run as several processes that form a gloo world, without a launcher: what torchrun sets is set here."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

TESTS = Path(__file__).parent


def start_ranks(*command: object, n: int = 2, **environment: str) -> list[subprocess.Popen[str]]:
    """Start `python command...` once for each rank; standard output and error come back together."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared = {**os.environ, "OMP_NUM_THREADS": "1", **world, **environment}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=TESTS,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(n)
    ]


def wait_for(processes: list[subprocess.Popen[str]], timeout_s: float = 120) -> list[tuple[int, str]]:
    """Exit code and output of each; none outlives this call."""
    try:
        said = [process.communicate(timeout=timeout_s)[0] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()
