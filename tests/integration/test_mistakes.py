"""A user's mistakes: one clear message, exit status 2, no traceback, nothing expensive begun."""

import pytest


def told(capsys) -> str:
    """The message; an exception that got through would have failed the test already."""
    return capsys.readouterr().err.rpartition("error: ")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--datasets", "sst3"], "Unknown dataset 'sst3'. Did you mean sst2?"),
        (["--arms", "lorra"], "Unknown arm 'lorra'. Did you mean lora?"),
        (["--backbone", "no/such/folder"], "The backbone 'no/such/folder' could not be loaded"),
        (["--arms", "influence", "--set", "influence:model.fraction=1.5"], "1.5"),
        (["--set", "influense:model.fraction=0.1"], "Unknown arm 'influense'. Did you mean influence"),
        (["--set", "model.learning_rate"], "has no value: write KEY=VALUE"),
        (["--set", "model.learnin_rate=1"], "learnin_rate"),
        (["--set", "data.train_size=100000"], "usable ones are found"),
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


def test_a_missing_start_prints_the_command_that_makes_it(condition_words, influence, capsys):
    assert influence("fit", *condition_words("lora", "early")) == 2
    assert "Make it: influence fit -c configs/base.yaml -c configs/data/docstrings.yaml" in told(capsys)


def test_a_start_of_another_seed_is_refused_before_the_gradient(study, condition_words, influence, capsys, tmp_path):
    start = study / "docstrings" / "baseline" / "seed0" / "start.safetensors"
    words = [*condition_words("influence", "other"), f"--model.start={start}", "--seed_everything=1"]
    assert influence("fit", *words) == 2
    assert "other rows, sizes or seed" in told(capsys)
    assert not list(tmp_path.rglob("mask.safetensors"))


def test_a_missing_checkpoint_is_told(condition_words, influence, capsys):
    assert influence("validate", *condition_words("lora", "early"), "--ckpt_path=nowhere.ckpt") == 2
    assert "nowhere.ckpt" in told(capsys)
