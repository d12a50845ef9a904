"""docs/custom_dataset.md does what it says, on a small CSV file, as it is printed."""

import csv
import json
import random
import re
import shlex

import pytest
import yaml
from integration_helpers import ROOT

from lightning_app.errors import UsageError
from lightning_app.run.cli import InfluenceCLI
from lightning_app.run.configs import find_datasets

PAGE = (ROOT / "docs" / "custom_dataset.md").read_text()
LOCAL, HUB = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^influence .*$", PAGE, re.MULTILINE)
WORDS = {"negative": ["dull", "slow", "empty", "loud"], "positive": ["warm", "funny", "clever", "bright"]}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Return the example's two CSV files and its YAML, with fewer rows than it asks for by default."""
    rng, number = random.Random(0), 0
    for split, rows in (("train", 160), ("test", 40)):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["review", "sentiment", "stars"])
            for row in range(rows):
                number += 1
                label = ["negative", "positive"][row % 2]
                writer.writerow([f"film {number} was {' and '.join(rng.sample(WORDS[label], 2))}", label, row % 5])
    small = re.sub(r"(head_init|train|dev)_size: \d+", r"\1_size: 20", LOCAL)
    (tmp_path / "reviews.yaml").write_text(small)
    (tmp_path / "emotion.yaml").write_text(HUB)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_page_run_on_small_files(files, influence, tiny_qwen, capsys):
    experiment, predict, fit, _ = (shlex.split(command)[1:] for command in COMMANDS)
    tiny = ["--backbone", tiny_qwen, "--name", "experiment-Qwen2-0.5B", "--set", "trainer.max_epochs=1"]
    assert influence(*experiment, *tiny, "trainer.accelerator=cpu") == 0
    runs = files / "outputs" / "experiment-Qwen2-0.5B" / "reviews"
    assert sorted(path.name for path in runs.iterdir()) == ["baseline", "influence", "lora"]
    metrics = json.loads((runs / "lora" / "seed0" / "metrics.json").read_text())
    assert (metrics["dataset"], metrics["eval_split"]) == ("reviews", "test")
    assert metrics["split_sizes"] == {"head_init": 20, "train": 20, "dev": 20, "eval": 40}

    assert influence(*predict, "--accelerator", "cpu") == 0
    with (files / "labelled.csv").open() as file:
        rows = list(csv.DictReader(file))
    accuracy = sum(row["predicted_label"] == row["sentiment"] for row in rows) / len(rows)
    assert accuracy == pytest.approx(metrics["accuracy"])

    by_hand = [f"--model.backbone={tiny_qwen}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert influence(*fit, *by_hand) == 0
    assert (files / "outputs" / "single" / "reviews" / "baseline" / "seed0" / "start.safetensors").is_file()


def test_the_command_that_makes_a_missing_start_of_an_own_dataset_runs(files, influence, tiny_qwen, capsys):
    words = ["-c", "configs/base.yaml", "-c", "reviews.yaml", "-c", "configs/arms/lora.yaml"]
    assert influence("fit", *words, f"--model.backbone={tiny_qwen}") == 2
    command = capsys.readouterr().err.partition("Make it: ")[2].strip()
    assert influence(*shlex.split(command)[1:], "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false") == 0
    assert (files / "outputs" / "single" / "reviews" / "baseline" / "seed0" / "start.safetensors").is_file()


def test_the_example_of_the_hub_is_a_dataset(files, tiny_qwen):
    words = ["-c", str(ROOT / "configs" / "base.yaml"), "-c", "emotion.yaml"]
    words += ["-c", str(ROOT / "configs" / "arms" / "baseline.yaml"), f"--model.backbone={tiny_qwen}"]
    data = InfluenceCLI(words, run=False).datamodule
    assert (data.name, data.path, data.config, data.num_labels) == ("emotion", "dair-ai/emotion", "split", 6)
    assert yaml.safe_load(HUB)["data"]["init_args"]["label_names"] == data.label_names


def test_results_call_a_dataset_as_its_file_does_and_two_of_a_name_are_refused(files):
    found = find_datasets(["sst2", "reviews.yaml"])
    assert {name: choice.files[0].name for name, choice in found.items()} == {
        "sst2": "sst2.yaml",
        "reviews": "reviews.yaml",
    }
    (files / "mine.yaml").write_text(LOCAL)
    with pytest.raises(UsageError, match=r"reviews\.yaml and mine\.yaml are both called 'reviews'"):
        find_datasets(["reviews.yaml", "mine.yaml"])
    with pytest.raises(UsageError, match=r"There is no file gone\.yaml, which --datasets names"):
        find_datasets(["gone.yaml"])
