"""A user's mistakes: one clear message, exit status 2, no traceback, nothing expensive begun."""

import shlex
import shutil

import pytest


def told(capsys) -> str:
    """Return the message; an exception that got through would have failed the test already."""
    return capsys.readouterr().err.rpartition("error: ")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--datasets", "sst3"], "Unknown dataset 'sst3'. Did you mean sst2?"),
        (["--arms", "lorra"], "Unknown arm 'lorra'. Did you mean lora?"),
        (["--backbone", "no/such/folder"], "The backbone 'no/such/folder' could not be loaded"),
        (["--arms", "influence", "--set", "influence:model.masking.fraction=1.5"], "1.5"),
        (["--set", "influense:model.masking.fraction=0.1"], "Unknown arm 'influense'. Did you mean influence"),
        (["--set", "model.learning_rate"], "has no value: write KEY=VALUE"),
        (
            ["--set", "model.learnin_rate=1"],
            "Arm baseline: There is no option model.learnin_rate. Did you mean model.learning_rate?",
        ),
        (["--set", "data.train_size=100000"], "usable ones are found"),
        (["--arms", "influence", "--set", "influence:model.targets=[q_porj]"], "q_proj"),
        (["--arms", "influence", "--set", "influence:model.masking.score=sing_gradient"], "sign_gradient"),
        (["--arms", "influence", "--set", "influence:data.calibration_size=0"], "calibration_size is 0"),
        (["--arms", "lora", "--set", "lora:model.rank=0"], "Arm lora: model.rank is 0, but must be 1 or more."),
        (
            ["--arms", "full_ft", "--set", "full_ft:model.learning_rate=-1"],
            "Arm full_ft: model.learning_rate is -1.0",
        ),
        (["--accelerator", "gpu"], "gpu"),
        (["--accelerator", "cuda"], "Unknown accelerator 'cuda'. Did you mean gpu?"),
        (
            ["--set", "trainer.accelerator=warp"],
            "Arm baseline: trainer.accelerator is 'warp', but must be one of ",
        ),
        (["--set", "trainer.max_epochs=-2"], "Arm baseline: trainer.max_epochs is -2, but must be -1 or more"),
        (["--set", "lora:model.rank=4"], "--set lora:model.rank=4 is for an arm that is not run."),
        (["--set", "trainer.devices=2"], "Arm baseline: trainer.devices and trainer.num_nodes ask for 2 devices"),
        (["--set", "trainer.limit_val_batches=1"], "Arm baseline: trainer.limit_val_batches is 1 "),
        (["--set", "trainer.fast_dev_run=true"], "eval must be read completely"),
        (["--set", "data.seed=1"], "Arm baseline: --data.seed cannot be set: it follows from --seed_everything"),
        (["--seeds", "-1"], "seed_everything is -1"),
    ],
)
def test_a_mistake_is_refused_before_any_training(words, message, tiny_qwen, data_cache, influence, capsys, tmp_path):
    base = ["experiment", "--datasets", "docstrings", "--backbone", tiny_qwen, "--arms", "baseline"]
    sets = ["--set", f"data.cache_dir={data_cache}"]
    if "--set" in words:
        sets += words[words.index("--set") + 1 :]
        words = words[: words.index("--set")]
    assert influence(*base, *words, *sets) == 2
    assert message in told(capsys)
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_pattern_that_matches_nothing_is_refused_with_near_misses(
    study, condition_words, influence, capsys, tmp_path
):
    start = study / "docstrings" / "baseline" / "seed0" / "start.safetensors"
    words = [*condition_words("influence", "typo"), f"--model.start={start}", "--model.targets=[q_porj]"]
    assert influence("fit", *words) == 2
    assert "q_proj" in told(capsys)
    assert not list(tmp_path.rglob("mask.safetensors"))


def test_a_missing_start_prints_the_command_that_makes_it(condition_words, influence, capsys, tmp_path):
    assert influence("fit", *condition_words("lora", "early")) == 2
    command = told(capsys).partition("Make it: ")[2].strip()
    assert command.startswith("influence fit -c configs/base.yaml -c configs/data/docstrings.yaml")
    for needed in ("--model.backbone", "--data.train_size=50", "--data.cache_dir"):
        assert needed in command
    assert influence(*shlex.split(command)[1:], "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false") == 0
    assert influence("fit", *condition_words("lora", "early"), "--trainer.fast_dev_run=1") == 0


def test_a_trial_run_leaves_no_start(condition_words, influence, tmp_path):
    assert influence("fit", *condition_words("baseline", "trial"), "--trainer.fast_dev_run=1") == 0
    assert not list(tmp_path.rglob("start.safetensors"))


def test_a_start_of_another_seed_is_refused_before_the_gradient(study, condition_words, influence, capsys, tmp_path):
    start = study / "docstrings" / "baseline" / "seed0" / "start.safetensors"
    words = [*condition_words("influence", "other"), f"--model.start={start}", "--seed_everything=1"]
    assert influence("fit", *words) == 2
    message = told(capsys)
    assert "other rows, sizes or seed" in message
    assert "--seed_everything 1" in message
    assert not list(tmp_path.rglob("mask.safetensors"))


def test_a_missing_checkpoint_is_told(condition_words, influence, capsys):
    assert influence("validate", *condition_words("lora", "early"), "--ckpt_path=nowhere.ckpt") == 2
    assert "nowhere.ckpt" in told(capsys)


@pytest.mark.parametrize(
    ("made", "loaded", "options", "message"),
    [
        ("full_ft", "influence", [], "made with arm 'FullFineTuning', but this run has 'Influence'"),
        ("lora", "lora", ["--model.rank=4"], "made with rank 8, but this run has 4"),
        ("lora", "lora", ["--seed_everything=1"], "made with seed 0, but this run has 1"),
        ("lora", "lora", ["--data.train_size=60"], "made with splits "),
        ("influence", "influence", ["--model.masking.fraction=0.1"], "made with fraction 0.05, but this run has 0.1"),
    ],
)
def test_a_checkpoint_of_another_condition_is_refused(
    made, loaded, options, message, study, condition_words, influence, capsys, tmp_path
):
    checkpoint = study / "docstrings" / made / "seed0" / "checkpoints" / "best.ckpt"
    assert influence("validate", *condition_words(loaded, "mixed"), *options, f"--ckpt_path={checkpoint}") == 2
    assert message in told(capsys)
    assert not list(tmp_path.rglob("metrics.json"))


def test_weights_alone_are_not_resumed(study, condition_words, influence, capsys):
    checkpoint = study / "docstrings" / "baseline" / "seed0" / "checkpoints" / "best.ckpt"
    assert influence("fit", *condition_words("baseline", "again"), f"--ckpt_path={checkpoint}") == 2
    assert "Cannot resume from this checkpoint: it holds only weights" in told(capsys)


def test_a_folder_that_is_not_one_is_told(condition_words, influence, capsys, tmp_path):
    (tmp_path / "taken").write_text("")
    assert influence("fit", *condition_words("baseline", "mine"), "--outputs=taken") == 2
    assert "taken" in told(capsys)


def test_the_folder_of_a_run_has_one_way_to_be_named(condition_words, influence, capsys):
    assert influence("fit", *condition_words("baseline", "mine"), "--trainer.default_root_dir=here") == 2
    assert "follows from --outputs, --experiment" in told(capsys)


def test_truncated_weights_are_told(tiny_qwen, condition_words, influence, capsys, tmp_path):
    shutil.copytree(tiny_qwen, tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert influence("fit", *condition_words("baseline", "mine"), f"--model.backbone={tmp_path / 'broken'}") == 2
    assert "broken' could not be loaded from that folder" in told(capsys)
