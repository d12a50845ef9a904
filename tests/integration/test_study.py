"""The four arms end to end, by the commands that users run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from integration_helpers import ARMS, metrics_of, predictions_of, run_influence, table_of

from influence_masking import Mask
from modules.backbone import load_backbone
from modules.start import Start

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
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics.keys() >= FIELDS | (MASK_FIELDS if arm.startswith("influence") else set())
        assert metrics["seconds"]["fit"] >= metrics["seconds"]["train"] >= 0
        assert metrics["seconds"]["evaluate"] > 0
        assert metrics["peak_memory_bytes"] > 10**8
        assert not (run / "checkpoints" / "last.ckpt").exists()
        assert ("mask.safetensors" in left) == arm.startswith("influence")


def test_the_start_is_the_head_that_was_evaluated(study):
    run = study / "docstrings" / "baseline" / "seed0"
    start = Start.load(run / "start.safetensors")
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert best.keys() == {f"head.{name}" for name in start.head}
    for name, tensor in start.head.items():
        assert torch.equal(tensor, best[f"head.{name}"])
    assert (start.reference.train_on, start.reference.epochs) == ("head_init", 2)


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
    run = study / "docstrings" / "influence+all" / "seed0"
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


@pytest.mark.parametrize("arm", ARMS)
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


CONTROLS = ("baseline_converged", "influence_highest", "influence_highest+head", "random_matched", "sweep")


@pytest.fixture(scope="module")
def controls(study, study_words, tmp_path_factory) -> Path:
    """Return the same experiment, continued with controls and a sweep."""
    folder = tmp_path_factory.mktemp("controls")
    shutil.copytree(study.parent, folder / "outputs")
    done = run_influence(*study_words, "--arms", *ARMS, *CONTROLS, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 conditions, 5 of them complete" in done.stdout
    assert {row[1] for row in table_of(done.stdout)[1:]} == {*ARMS, *CONTROLS} - {"sweep"}
    return folder / "outputs" / study.name


@pytest.mark.parametrize("arm", ["baseline_converged", "influence_highest+head", "random_matched"])
def test_a_control_by_itself_gives_the_numbers_that_it_has_after_others(
    arm, controls, condition_words, influence, tmp_path
):
    words = condition_words(arm, "alone")
    from_start = [] if arm == "baseline_converged" else [f"--model.start={_start(controls)}"]
    assert influence("fit", *words, *from_start) == 0
    assert influence("validate", *words) == 0
    run = tmp_path / "outputs" / "alone" / "docstrings" / arm / "seed0"
    assert metrics_of(run) == metrics_of(controls / "docstrings" / arm / "seed0")
    assert predictions_of(run) == predictions_of(controls / "docstrings" / arm / "seed0")


def test_masking_arms_of_an_experiment_take_one_gradient(controls):
    records = [
        json.loads((controls / "docstrings" / arm / "seed0" / "metrics.json").read_text())
        for arm in ("influence", "influence_highest", "influence_highest+head", "random_matched")
    ]
    # the first was run by an earlier process, which left the gradient on disk
    assert all(record["gradient_shared"] for record in records[1:])
    assert len({record["seconds"]["gradient"] for record in records}) == 1


def test_a_matched_control_masks_as_many_of_each_tensor(controls):
    paths = [controls / "docstrings" / arm / "seed0" / "mask.safetensors" for arm in ("influence", "random_matched")]
    informed, control = map(Mask.load, paths)
    assert informed.digest != control.digest
    for name in informed.shapes:
        assert informed.flags(name).sum() == control.flags(name).sum()


def test_a_sweep_leaves_its_points_and_the_score_of_the_unmasked_model(controls):
    run = controls / "docstrings" / "sweep" / "seed0"
    swept = json.loads((run / "sweep.json").read_text())
    (point,) = (p for p in swept["points"] if (p["tail"], p["fraction"]) == ("lowest", 0.05))
    influence = metrics_of(controls / "docstrings" / "influence" / "seed0")
    assert point["digest"] == influence["mask_digest"]
    assert point["measured_change"] == influence["measured_change"]
    assert metrics_of(run)["accuracy"] == metrics_of(controls / "docstrings" / "baseline" / "seed0")["accuracy"]


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


@pytest.mark.parametrize("arm", ["baseline", "influence", "lora"])
def test_the_saved_config_runs_again_as_it_is(arm, study, influence, tmp_path):
    shutil.copytree(study.parent, tmp_path / "outputs")
    run = tmp_path / "outputs" / "study-quick" / "docstrings" / arm / "seed0"
    shutil.rmtree(run / "checkpoints")
    assert influence("fit", "-c", run / "config.yaml") == 2  # what is complete stays
    assert influence("fit", "-c", run / "config.yaml", "--overwrite") == 0
    assert "overwrite: false" in (run / "config.yaml").read_text()
    assert not (run / "metrics.json").exists()  # what the earlier fit measured is gone
    assert influence("validate", "-c", run / "config.yaml") == 0
    assert (run / "validate.yaml").is_file()
    assert metrics_of(run) == metrics_of(study / "docstrings" / arm / "seed0")


def _start(study: Path) -> Path:
    return study / "docstrings" / "baseline" / "seed0" / "start.safetensors"


@pytest.mark.parametrize(
    "option", ["data.batch_size=3", *(f"model.masking.micro_batch_size={size}" for size in (1, 7, 50))]
)
def test_the_mask_does_not_depend_on_how_many_rows_are_taken_at_once(
    option, study, condition_words, influence, tmp_path
):
    assert (
        influence("fit", *condition_words("influence", "batches"), f"--{option}", f"--model.start={_start(study)}") == 0
    )
    run = tmp_path / "outputs" / "batches" / "docstrings" / "influence" / "seed0"
    assert f"{option.rpartition('.')[2].replace('=', ': ')}\n" in (run / "config.yaml").read_text()
    expected = metrics_of(study / "docstrings" / "influence" / "seed0")["mask_digest"]
    assert Mask.load(run / "mask.safetensors").digest == expected


def test_a_second_run_finds_everything_complete(study, study_words):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("metrics.json")}
    done = run_influence(*study_words, cwd=study.parents[1])
    assert done.returncode == 0
    assert "5 conditions, 5 of them complete" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in study.rglob("metrics.json")} == before


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
