"""The four arms end to end, by the commands that users run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from integration_helpers import ARMS, ROOT, metrics_of, predictions_of, run_influence

from influence_masking import Mask
from modules.backbone import load_backbone

FIELDS = {
    *("dataset", "arm", "seed", "split_sizes", "eval_split", "accuracy", "macro_f1", "nll", "ece"),
    *("trainable_parameters", "seconds", "peak_memory_bytes", "device", "precision", "versions"),
    *("dataset_fingerprint", "backbone", "backbone_fingerprint"),
}
MASK_FIELDS = {"masked_parameters", "candidate_parameters", "predicted_change", "measured_change", "mask_digest"}
CANDIDATES = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64)
"""Attention and MLP weights of the tiny Qwen2: two layers of q and o, k and v, gate, up and down."""


def masked_names(run: Path) -> dict[str, torch.Tensor]:
    mask = Mask.load(run / "mask.safetensors")
    return {name: mask.flags(name) for name in mask.shapes}


def test_every_condition_leaves_what_the_documentation_promises(study):
    for arm in ARMS:
        run = study / "docstrings" / arm / "seed0"
        left = {path.name for path in run.iterdir()}
        assert {"config.yaml", "metrics.json", "predictions.parquet"} <= left
        assert any(name.startswith("events.out.tfevents") for name in left)
        assert metrics_of(run).keys() | {"seconds", "peak_memory_bytes"} >= FIELDS
        assert ("mask.safetensors" in left) == arm.startswith("influence")


def test_the_mask_has_exactly_five_percent_of_the_candidates(study):
    metrics = metrics_of(study / "docstrings" / "influence" / "seed0")
    assert metrics.keys() >= MASK_FIELDS
    assert metrics["candidate_parameters"] == CANDIDATES
    assert metrics["masked_parameters"] == CANDIDATES * 5 // 100


def test_static_masking_takes_no_optimisation_step(study):
    metrics = metrics_of(study / "docstrings" / "influence" / "seed0")
    assert metrics["optimisation_steps"] == 0
    assert metrics["trainable_parameters"] == 0


def test_masked_weights_are_zero_after_training_and_the_others_moved(study, tiny_qwen):
    run = study / "docstrings" / "influence_tuned" / "seed0"
    static = study / "docstrings" / "influence" / "seed0"
    trained = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert metrics_of(static)["mask_digest"] == metrics_of(run)["mask_digest"]
    untrained = {f"backbone.{name}": p for name, p in load_backbone(tiny_qwen).named_parameters()}
    total = 0
    for name, bits in masked_names(run).items():
        assert torch.count_nonzero(trained[name][bits]) == 0
        assert not torch.equal(trained[name][~bits], untrained[name][~bits])
        total += int(bits.sum())
    assert total == metrics_of(run)["masked_parameters"]


def test_checkpoints_of_frozen_arms_are_small_and_refer_to_their_backbone(study):
    for arm, limit in (("baseline", 30_000), ("influence", 40_000), ("lora", 150_000)):
        path = study / "docstrings" / arm / "seed0" / "checkpoints" / "best.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        assert path.stat().st_size < limit
        assert checkpoint["backbone"]["fingerprint"] == metrics_of(path.parents[1])["backbone_fingerprint"]


@pytest.mark.parametrize("arm", ["baseline", "influence", "lora"])
def test_fit_then_validate_gives_the_numbers_of_the_experiment(arm, study, condition_words, influence, tmp_path):
    words = condition_words(arm, "alone")
    start = study / "docstrings" / "baseline" / "seed0" / "start.safetensors"
    from_start = [] if arm == "baseline" else [f"--model.start={start}"]
    epochs = ["--trainer.max_epochs=2"]
    assert influence("fit", *words, *epochs, *from_start) == 0
    run = tmp_path / "outputs" / "alone" / "docstrings" / arm / "seed0"
    assert not (run / "metrics.json").exists()
    assert influence("validate", *words, *epochs, f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}") == 0

    ours = study / "docstrings" / arm / "seed0"
    assert metrics_of(run) == metrics_of(ours)
    assert predictions_of(run) == predictions_of(ours)


def test_two_processes_write_every_prediction_once(study, condition_words, tmp_path):
    ours = study / "docstrings" / "lora" / "seed0"
    words = [*condition_words("lora", "ddp"), f"--ckpt_path={ours / 'checkpoints' / 'best.ckpt'}"]
    done = run_influence("validate", *words, "--trainer.devices=2", "--trainer.strategy=ddp", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "ddp" / "docstrings" / "lora" / "seed0"
    found, expected = predictions_of(run), predictions_of(ours)
    assert (found["row"], found["label"]) == (expected["row"], expected["label"])
    torch.testing.assert_close(torch.tensor(found["logits"]), torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-5)
    assert metrics_of(run)["accuracy"] == metrics_of(ours)["accuracy"]


def test_the_saved_config_runs_again_as_it_is(study, influence, tmp_path):
    run = study / "docstrings" / "influence" / "seed0"
    assert (
        influence("fit", "-c", run / "config.yaml", f"--outputs={tmp_path / 'again'}", f"--model.start={_start(study)}")
        == 0
    )
    again = tmp_path / "again" / "study-quick" / "docstrings" / "influence" / "seed0"
    assert Mask.load(again / "mask.safetensors").digest == metrics_of(run)["mask_digest"]


def _start(study: Path) -> Path:
    return study / "docstrings" / "baseline" / "seed0" / "start.safetensors"


@pytest.mark.parametrize("batch_size", [3, 50])
def test_the_mask_does_not_depend_on_the_training_batch_size(batch_size, study, condition_words, influence, tmp_path):
    words = [*condition_words("influence", "batches"), f"--data.batch_size={batch_size}"]
    assert influence("fit", *words, f"--model.start={_start(study)}") == 0
    mask = tmp_path / "outputs" / "batches" / "docstrings" / "influence" / "seed0" / "mask.safetensors"
    assert Mask.load(mask).digest == metrics_of(study / "docstrings" / "influence" / "seed0")["mask_digest"]


def test_a_resumed_fit_equals_an_uninterrupted_one_to_the_bit(study, condition_words, influence, tmp_path):
    overlay = tmp_path / "every_epoch.yaml"
    overlay.write_text(
        "trainer:\n  callbacks+:\n    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
        "      init_args: {save_top_k: -1, filename: '{epoch}', monitor: null}\n"
    )
    words = [*condition_words("influence_tuned", "whole"), "-c", overlay, f"--model.start={_start(study)}"]
    assert influence("fit", *words) == 0
    whole = tmp_path / "outputs" / "whole" / "docstrings" / "influence_tuned" / "seed0"
    first = whole / "checkpoints" / "epoch=0.ckpt"
    assert influence("fit", *words, "--experiment=resumed", f"--ckpt_path={first}") == 0

    resumed = tmp_path / "outputs" / "resumed" / "docstrings" / "influence_tuned" / "seed0"
    last = [torch.load(run / "checkpoints" / "epoch=1.ckpt", weights_only=True) for run in (whole, resumed)]
    for name, tensor in last[0]["state_dict"].items():
        assert torch.equal(tensor, last[1]["state_dict"][name]), name
    for name, bits in masked_names(resumed).items():
        assert torch.count_nonzero(last[1]["state_dict"][name][bits]) == 0
    assert Mask.load(resumed / "mask.safetensors").digest == Mask.load(whole / "mask.safetensors").digest


def test_a_second_run_finds_everything_complete(study, study_words):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("metrics.json")}
    done = run_influence(*study_words, cwd=study.parents[1])
    assert done.returncode == 0
    assert "5 conditions, 5 of them complete" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in study.rglob("metrics.json")} == before


@pytest.mark.parametrize("until", ["baseline", "influence_tuned"])
def test_killed_in_the_middle_and_started_again_it_ends_with_the_same_table(until, study, study_words, tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
    command = [sys.executable, "-m", "lightning_app", *study_words]
    run = tmp_path / "outputs" / "study-quick" / "docstrings" / until / "seed0"
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE
    ) as process:
        while not (run / "config.yaml").is_file():  # the condition has begun
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (run / "metrics.json").is_file()

    done = run_influence(*study_words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for arm in ARMS:
        again, ours = (folder / "docstrings" / arm / "seed0" for folder in (run.parents[2], study))
        assert metrics_of(again) == metrics_of(ours)
        assert predictions_of(again) == predictions_of(ours)


def test_a_failed_condition_does_not_stop_the_others_and_is_told_at_the_end(study_words, tmp_path):
    folder = tmp_path / "outputs" / "study-quick" / "docstrings"
    folder.mkdir(parents=True)
    (folder / "lora").write_text("a file where a folder should be")
    done = run_influence(*study_words, cwd=tmp_path)
    assert done.returncode == 1
    assert "failed: docstrings/lora/seed0: " in done.stderr
    assert [arm for arm in ARMS if (folder / arm / "seed0" / "metrics.json").is_file()] == [
        arm for arm in ARMS if arm != "lora"
    ]
    assert "full_ft" in done.stdout.split("| dataset")[1]
