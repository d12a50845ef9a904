"""Runs the real command line, and reads what it left."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
ARMS = ("baseline", "influence", "influence+all", "lora", "full_ft")
UNREPEATABLE = ("seconds", "peak_memory_bytes", "fit_peak_memory_bytes", "gradient_shared")
"""What may differ between two runs of one condition."""


def environment(**env: str) -> dict[str, str]:
    """Return the environment of a process which runs the code of this repository."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "callbacks"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | env


def run_influence(*words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `influence ...` in a process of its own."""
    command = [sys.executable, "-m", "lightning_app", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=800)


@contextmanager
def serving(*options: str) -> Iterator[tuple[str, int]]:
    """Yield a local hub with options of its `serve.py`: its address and the number of its process."""
    command = [sys.executable, str(SHARED / "hub" / "serve.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            yield server.stdout.readline().strip().removeprefix("HF_ENDPOINT="), server.pid
        finally:
            server.kill()


def table_of(printed: str) -> list[list[str]]:
    """Return the rows of the comparison table in what a command printed, without the seconds."""
    rows = [line.strip("| \n").split("|") for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row[:-1]] for row in rows if not row[0].startswith(":")]


def metrics_of(run: Path) -> dict:
    """Return what a condition measured, without clock and memory."""
    metrics = json.loads((run / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in UNREPEATABLE}


def predictions_of(run: Path) -> dict:
    """Return rows, labels and logits, to the bit."""
    return pq.read_table(run / "predictions.parquet").to_pydict()


@dataclass(frozen=True)
class ForkServer:
    """Runs the command line in forks of a process that has imported everything; see `fork_server`.

    Attributes:
        address: Where it listens.
        endpoint: Where its runs look for a hub; nothing is there unless a test starts one.
        home: Their Hugging Face cache.
    """

    address: Path
    endpoint: str
    home: Path

    @property
    def port(self) -> list[str]:
        """Return options of a hub that these runs find."""
        return ["--port", self.endpoint.rpartition(":")[2]]

    def run(self, *words: object, cwd: Path, faults: Sequence[dict[str, Any]] = ()) -> subprocess.CompletedProcess[str]:
        """Run `influence ...`, with faults (arguments of `fork_server.inject`)."""
        out, err = (cwd / f".{name}.{time.monotonic_ns()}" for name in ("out", "err"))
        asked = {"words": [*map(str, words)], "cwd": str(cwd), "out": str(out), "err": str(err)}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(300)
            connection.connect(str(self.address))
            connection.sendall((json.dumps(asked | {"faults": faults}) + "\n").encode())
            status = int(connection.makefile().readline())
        return subprocess.CompletedProcess(list(words), status, out.read_text(), err.read_text())
