"""A token of the Hub that is in the environment is never written or printed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOKEN = "hf_secretOfTheUserThatNobodyMaySee"


def assert_untold(folder: Path, *printed: str) -> None:
    """Assert that neither the output nor any file contains the token."""
    assert not [text for text in printed if TOKEN in text]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_runs_that_succeed_and_runs_that_fail_tell_no_token(words, influence, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert influence("fit", *words("lora")) == 0
    assert influence("validate", *words("lora")) == 0
    assert influence("fit", *words("lora", "--model.rank=0")) == 2
    assert influence("fit", *words("lora", "--model.backbone=nowhere/at/all")) == 2
    left = {path.name.partition(".")[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config", "metrics", "events", "fit", "predictions"} <= left
    assert_untold(tmp_path, *capfd.readouterr())


FAILING = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from datamodules import HubTextDataModule
from lightning_app.grid import condition as conditions, experiment
from lightning_app.__main__ import main

def fail(condition, verbose):
    raise RuntimeError("a fault of ours")

statuses = [main(sys.argv[1:])]
conditions.run_condition, experiment.check_inputs = fail, lambda todo: experiment.Plan("cpu", 1, {})
statuses.append(main(sys.argv[1:]))
print("statuses", statuses)
"""


def test_a_hub_that_does_not_answer_is_told_without_the_token(tiny_qwen, tmp_path):
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    dead |= {f"{library}_VERBOSITY": "debug" for library in ("TRANSFORMERS", "HF_HUB", "DATASETS")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
    grid = ["--datasets", "sst2", "--arms", "baseline", "--backbone", tiny_qwen, "--quick"]
    done = subprocess.run(
        [sys.executable, "-c", FAILING, "experiment", *grid],
        env=os.environ | dead | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "statuses [2, 1]" in done.stdout, done.stderr
    assert "could not be loaded, neither from http://127.0.0.1:9 nor from a local copy" in done.stderr
    assert list(tmp_path.rglob("errors/*.txt"))
    assert_untold(tmp_path, done.stdout, done.stderr)
