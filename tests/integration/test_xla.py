"""The study on XLA's CPU runtime, by the command that a TPU user runs: needs torch 2.9 with torch_xla 2.9."""

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from integration_helpers import ARMS, environment, metrics_of, predictions_of, run_influence

from influence_masking import Mask

pytest.importorskip("torch_xla", reason="make test-tpu runs these, with torch 2.9 and torch_xla 2.9")

LENGTHS = (48, 64)
ONCE = 28
"""Programs of an arm beside those of its padded lengths: first two steps, every shape of weights, what is logged."""


@pytest.fixture(scope="module")
def words(tiny_qwen: str, data_cache: Path) -> list[str]:
    grid = ["--datasets", "docstrings", "--backbone", tiny_qwen, "--name", "study", "--quick"]
    sets = [
        f"data.cache_dir={data_cache}",
        "trainer.max_epochs=3",
        "trainer.precision=32-true",  # also on a CPU that the results are compared with
        "data.max_length=64",
        "data.batch_size=8",
        "trainer.log_every_n_steps=1",
    ]
    return ["experiment", *grid, "--set", *sets, f"data.pad_lengths={list(LENGTHS)}"]


def run_on_xla(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("xla_worker.py")), *words, "--accelerator", "tpu"]
    variables = environment(PJRT_DEVICE="CPU", **env)
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=800)


def run_folder(cwd: Path, arm: str) -> Path:
    return cwd / "outputs" / "study-quick" / "docstrings" / arm / "seed0"


@pytest.fixture(scope="module")
def study(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Where all arms ran, and what was counted."""
    folder = tmp_path_factory.mktemp("xla")
    done = run_on_xla(*words, "--arms", *ARMS, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_each_program_is_compiled_once_and_none_after_the_first_epoch(study):
    counts = study[1]["compilations"]
    begins = [(name, count) for name, count in counts if name in (*ARMS, "end")]
    for (arm, before), (_, after) in itertools.pairwise(begins):
        assert after - before <= 4 * len(LENGTHS) + ONCE, arm
    epochs = dict(map(tuple, counts))
    for arm in ("Baseline", "Influence", "LoRA", "FullFineTuning"):
        assert epochs[f"{arm} 1"] == epochs[f"{arm} 2"], arm


def test_no_operator_is_missing_on_xla(study):
    assert set(study[1]["fallbacks"]) <= {"aten::_local_scalar_dense"}  # numbers that are logged


def test_the_mask_is_exact_and_held(study):
    run = run_folder(study[0], "influence+all")
    mask = Mask.load(run / "mask.safetensors")
    metrics = metrics_of(run)
    assert mask.num_masked == metrics["masked_parameters"] == metrics["candidate_parameters"] * 5 // 100
    weights = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name in mask.shapes:
        assert not weights[name][mask.flags(name)].any(), name
        assert weights[name].any(), name


def test_the_results_are_those_of_the_cpu(study, words, tmp_path):
    done = run_influence(*words, "--arms", *ARMS, "--accelerator", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for arm in ARMS:
        here, there = (predictions_of(run_folder(folder, arm)) for folder in (study[0], tmp_path))
        assert here["row"] == there["row"]
        assert here["label"] == there["label"]
        np.testing.assert_allclose(here["logits"], there["logits"], atol=2e-3, err_msg=arm)
        ours, theirs = (metrics_of(run_folder(folder, arm)) for folder in (study[0], tmp_path))
        assert ours["nll"] == pytest.approx(theirs["nll"], abs=1e-3)
        assert ours["split_sizes"] == theirs["split_sizes"]
        assert len(here["row"]) == ours["split_sizes"]["eval"]


def test_a_killed_fit_goes_on_and_ends_with_the_same_results(study, words, tmp_path):
    killed = run_on_xla(*words, "--arms", "lora", cwd=tmp_path, KILL_AT="LoRA 2")
    assert killed.returncode == -signal.SIGKILL
    resumed = run_on_xla(*words, "--arms", "lora", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resuming from its last checkpoint" in resumed.stdout
    assert predictions_of(run_folder(tmp_path, "lora")) == predictions_of(run_folder(study[0], "lora"))
    assert metrics_of(run_folder(tmp_path, "lora")) == metrics_of(run_folder(study[0], "lora"))


def test_two_chips_run_a_condition_each_with_the_same_results(study, words, tmp_path):
    done = run_on_xla(*words, "--arms", "influence", "lora", "--devices", "2", cwd=tmp_path, CHIPS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    for arm in ("baseline", "influence", "lora"):
        assert predictions_of(run_folder(tmp_path, arm)) == predictions_of(run_folder(study[0], arm))
        assert metrics_of(run_folder(tmp_path, arm)) == metrics_of(run_folder(study[0], arm))
    refused = run_on_xla(*words, "--arms", "baseline", "full_ft", "--devices", "3", cwd=tmp_path, CHIPS="2")
    assert refused.returncode == 2
    assert "--devices is 3, found 2 TPU chips. Give 1 to 2." in refused.stderr


@pytest.mark.parametrize(
    ("setting", "found"), [("trainer.precision=bf16-true", "'bf16-true'"), ("trainer.precision=bf16-mixed", "bf16")]
)
def test_a_precision_that_would_not_take_effect_is_refused(setting, found, words, tmp_path):
    refused = run_on_xla(*words, setting, "--arms", "baseline", cwd=tmp_path)
    assert refused.returncode == 2
    assert found in refused.stderr
    assert "Traceback" not in refused.stderr
