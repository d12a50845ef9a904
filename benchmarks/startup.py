"""Seconds until a command answers or trains, beside what Python needs to import the libraries, and a peer.

    python benchmarks/startup.py [--repeats 3]

First steps are those of the embedded model (extra `demo`) on the docstrings data, whose splits and tokens are in the
cache. The peer is `arms_peer.py`, a plain script of Hugging Face Trainer, on the same splits. Medians, taken in turns.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

from modules.backbone import EMBEDDED_NAME, resolve_backbone

ROOT = Path(__file__).parents[1]
IMPORTS = "import torch, lightning, transformers"
FIRST_STEP = """
import os, runpy, sys
from importlib import import_module

module, name, kind, target, *words = sys.argv[1:]
setattr(getattr(import_module(module), name), "training_step", lambda *args, **kwargs: os._exit(0))
sys.argv = [target, *words]
{"module": runpy.run_module, "script": runpy.run_path}[kind](target, run_name="__main__")
raise SystemExit("it ended before the first step")
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ways = commands(Path(folder))
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, command in ways.items():
                seconds[way].append(timed(command))
    floor = median(seconds[IMPORTS])
    print("| way | seconds | times the imports |\n|---|---|---|")
    for way, times in seconds.items():
        print(f"| {way} | {median(times):.2f} | {median(times) / floor:.2f} |")


def commands(folder: Path) -> dict[str, list[str]]:
    """Return what is timed; `baseline` is trained once before, so that the caches are full."""
    python, influence = [sys.executable], [sys.executable, "-m", "lightning_app"]
    files = [word for name in ("base", "data/docstrings", "arms/baseline") for word in ("-c", f"configs/{name}.yaml")]
    fit = ["fit", *files, "--model.backbone", EMBEDDED_NAME, "--outputs", str(folder), "--trainer.max_steps=1"]
    fit += ["--trainer.enable_progress_bar=false"]
    timed([*influence, *fit])
    splits = str(next((folder / "cache" / "splits").glob("docstrings-*.parquet")))
    peer = [str(ROOT / "benchmarks" / "arms_peer.py"), splits, resolve_backbone(EMBEDDED_NAME)]
    stopped = [*python, "-c", FIRST_STEP]
    return {
        IMPORTS: [*python, "-c", IMPORTS],
        "influence --help": [*influence, "--help"],
        "influence experiment --help": [*influence, "experiment", "--help"],
        "influence fit --help": [*influence, "fit", "--help"],
        "influence fit, to the first step": [*stopped, "modules", "Classifier", "module", "lightning_app", *fit],
        "Hugging Face Trainer, to the first step": [*stopped, "transformers", "Trainer", "script", *peer],
    }


def timed(command: list[str]) -> float:
    """Return seconds of a command that must succeed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "callbacks"), os.environ.get("PYTHONPATH", "")])
    start = perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    seconds = perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed: {done.stderr[-2000:]}")
    return seconds


if __name__ == "__main__":
    main()
