"""Two processes of one condition, under DDP on the CPU, give what one gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from integration_helpers import metrics_of, predictions_of

from lightning_app.results.files import read_json


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Compare what JSON files hold; sums over two processes differ in their last bits."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for position, value in enumerate(expected):
            assert_close(found[position], value, f"{where}/{position}")
    else:
        same = pytest.approx(expected, rel=1e-4, abs=1e-6) if isinstance(expected, float) else expected
        assert found == same, where


@pytest.mark.parametrize("arm", ["influence", "influence_highest", "random_matched", "sweep"])
def test_an_arm_that_trains_nothing(arm: str, study, condition_words, forks, tmp_path):
    start = study / "docstrings" / "baseline" / "seed0" / "start.safetensors"
    runs: dict[str, Path] = {}
    for name, more in (("one", []), ("two", ["--trainer.devices=2", "--trainer.strategy=ddp"])):
        words = [*condition_words(arm, name), f"--model.start={start}", *more]
        for command in ("fit", "validate"):
            done = forks.run(command, *words, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        runs[name] = tmp_path / "outputs" / name / "docstrings" / arm / "seed0"

    assert_close(metrics_of(runs["two"]), metrics_of(runs["one"]))
    assert metrics_of(runs["two"]).get("mask_digest") == metrics_of(runs["one"]).get("mask_digest")
    found, expected = (predictions_of(runs[name]) for name in ("two", "one"))
    assert (found["row"], found["label"]) == (expected["row"], expected["label"])
    torch.testing.assert_close(torch.tensor(found["logits"]), torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-5)
    if arm == "sweep":
        assert_close(*(read_json(runs[name] / "sweep.json") for name in ("two", "one")))
