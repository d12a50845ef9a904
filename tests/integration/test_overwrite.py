"""What is complete is neither removed nor replaced, by any command, unless `--overwrite` says so."""

import hashlib
import shutil
from pathlib import Path

import pytest
from integration_helpers import metrics_of, predictions_of

RUN = Path("outputs", "study-quick", "docstrings", "influence+all", "seed0")
CHECKPOINT = f"--ckpt={RUN / 'checkpoints' / 'best.ckpt'}"
COMMANDS = {
    "fit": [],
    "fit for a trial": ["--trainer.fast_dev_run=true"],
    "fit of another length": ["--trainer.max_epochs=1"],
    "validate": [],
    "validate in part": ["--trainer.limit_val_batches=1"],
    "test": [],
    "predict": [CHECKPOINT, "--input=table.csv", "--output=labelled.csv"],
    "export": [CHECKPOINT, "--out=exported"],
}


@pytest.fixture
def words(study, study_words, condition_words, tmp_path):
    """Return the words of a command in a folder where all that it would write is complete; the folder is ready."""
    shutil.copytree(study.parent, tmp_path / "outputs")
    (tmp_path / "table.csv").write_text("text\nreturn the sum\n")
    (tmp_path / "labelled.csv").write_text("somebody's own")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").write_text("{}")

    def make(name: str) -> list[str]:
        command, more = name.split()[0], COMMANDS[name]
        condition = [] if CHECKPOINT in more else condition_words(RUN.parts[3], RUN.parts[1])
        start = [f"--model.start={study / 'docstrings' / 'baseline' / 'seed0' / 'start.safetensors'}"]
        return [command, *condition, *(start if condition else []), *more]

    return make


def contents(folder: Path) -> dict[str, str]:
    """Return digests of the files; hidden ones are locks, and what the runs printed."""
    files = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_to_replace_what_is_complete(name, words, forks, tmp_path):
    asked = words(name)
    before = contents(tmp_path)
    refused = forks.run(*asked, cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.count("error: ") == 1
    assert "--overwrite" in refused.stderr
    assert contents(tmp_path) == before


def test_with_overwrite_a_fit_replaces_it_and_a_validation_measures_the_same(words, study, forks, tmp_path):
    fitted = forks.run(*words("fit"), "--overwrite", cwd=tmp_path)
    assert fitted.returncode == 0, fitted.stderr
    assert not (tmp_path / RUN / "metrics.json").exists()
    for more in ([], ["--overwrite"]):
        measured = forks.run(*words("validate"), *more, cwd=tmp_path)
        assert measured.returncode == 0, measured.stderr
        ours, theirs = tmp_path / RUN, study / Path(*RUN.parts[2:])
        assert (metrics_of(ours), predictions_of(ours)) == (metrics_of(theirs), predictions_of(theirs))


def test_an_experiment_leaves_a_complete_fit_that_it_did_not_make(words, study_words, forks, tmp_path):
    for name in ("condition.json", "metrics.json"):
        (tmp_path / RUN / name).unlink()
    before = contents(tmp_path / RUN)
    refused = forks.run(*study_words, cwd=tmp_path)
    assert refused.returncode == 2
    assert "has no condition.json, so no experiment made it" in refused.stderr
    assert contents(tmp_path / RUN) == before


def test_a_trial_run_leaves_nothing_that_looks_complete(condition_words, forks, tmp_path):
    words = ["fit", *condition_words("baseline", "trial")]
    assert forks.run(*words, "--trainer.fast_dev_run=true", cwd=tmp_path).returncode == 0
    assert forks.run(*words, cwd=tmp_path).returncode == 0
