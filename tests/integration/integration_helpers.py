"""Runs the real command line, and reads what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
ARMS = ("baseline", "influence", "influence_tuned", "lora", "full_ft")
UNREPEATABLE = ("seconds", "peak_memory_bytes", "fit_peak_memory_bytes", "gradient_shared")
"""What may differ between two runs of one condition."""


def environment(**env: str) -> dict[str, str]:
    """That of a process which runs the code of this repository."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "callbacks"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | env


def run_influence(*words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `influence ...` in a process of its own."""
    command = [sys.executable, "-m", "lightning_app", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=800)


STOPPING = """
import os, sys
from importlib import import_module
from lightning_app.__main__ import main

number, where, call, words = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
module, _, name = where.partition(":")
owner, _, name = name.rpartition(".")
owner = getattr(import_module(module), owner) if owner else import_module(module)
whole, calls = getattr(owner, name), 0

def stopping(*args, **kwargs):
    global calls
    calls += 1
    if calls == call:
        os.kill(os.getpid(), number)
    return whole(*args, **kwargs)

setattr(owner, name, stopping)
sys.exit(main(words))
"""


def run_stopped(number: int, where: str, call: int, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `influence ...` and sends it signal `number` as it makes call `call` to `where` (`module:name`)."""
    command = [sys.executable, "-c", STOPPING, str(int(number)), where, str(call), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=800)


def table_of(printed: str) -> list[list[str]]:
    """The rows of the comparison table in what a command printed, without the seconds."""
    rows = [line.strip("| \n").split("|") for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row[:-1]] for row in rows if not row[0].startswith(":")]


def metrics_of(run: Path) -> dict:
    """What a condition measured, without clock and memory."""
    metrics = json.loads((run / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in UNREPEATABLE}


def predictions_of(run: Path) -> dict:
    """Rows, labels and logits, to the bit."""
    return pq.read_table(run / "predictions.parquet").to_pydict()
