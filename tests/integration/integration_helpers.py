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
UNREPEATABLE = ("seconds", "peak_memory_bytes", "fit_peak_memory_bytes")
"""What may differ between two runs of one condition."""


def run_influence(*words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `influence ...` in a process of its own."""
    command = [sys.executable, "-m", "lightning_app", *map(str, words)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "callbacks"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path} | env
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=800)


def metrics_of(run: Path) -> dict:
    """What a condition measured, without clock and memory."""
    metrics = json.loads((run / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in UNREPEATABLE}


def predictions_of(run: Path) -> dict:
    """Rows, labels and logits, to the bit."""
    return pq.read_table(run / "predictions.parquet").to_pydict()
