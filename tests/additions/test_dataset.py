"""A dataset of one's own is a YAML file, or a class; results call it as its file does."""

import csv
import json
import random
from pathlib import Path

import pytest
import yaml

WORDS = {"negative": ["dull", "slow", "empty", "loud"], "positive": ["warm", "funny", "clever", "bright"]}
CLASS = '''
import pyarrow as pa

from datamodules import TextDataModule


class Parity(TextDataModule):
    """Is the number even or odd?"""

    name = "parity"
    label_names = ("even", "odd")
    eval_split_name = "the last 100 numbers"

    def load_source(self) -> tuple[pa.Table, pa.Table]:
        numbers = range(300)
        table = pa.table(
            {"row": list(numbers), "text": [f"number {n}" for n in numbers], "label": [n % 2 for n in numbers]}
        )
        return table.slice(0, 200), table.slice(200)
'''


def write_reviews(folder: Path) -> None:
    """Two CSV files, and two configurations of one class, which differ in name and length."""
    rng = random.Random(0)
    rows = [
        (f"film {number} was {' and '.join(rng.sample(WORDS[label], 2))}", label)
        for number in range(300)
        for label in [list(WORDS)[number % 2]]
    ]
    for split, part in (("train", rows[:200]), ("test", rows[200:])):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("review", "sentiment"), *part])
    options = {
        "name": "reviews",
        "path": "csv",
        "data_files": {"train": "train.csv", "test": "test.csv"},
        "text_columns": ["review"],
        "label_column": "sentiment",
        "label_names": list(WORDS),
    }
    for file, content, length in (("reviews", {}, 64), ("a_file", {"dataset": "short reviews"}, 16)):
        data = {"class_path": "datamodules.HubTextDataModule", "init_args": options | {"max_length": length}}
        (folder / f"{file}.yaml").write_text(yaml.safe_dump(content | {"data": data}))


@pytest.mark.slow
def test_datasets_by_a_file_and_by_a_class_go_through_experiment_and_report(
    influence, tiny_qwen, tmp_path, monkeypatch, capsys
):
    write_reviews(tmp_path)
    (tmp_path / "my_data.py").write_text(CLASS)
    (tmp_path / "parity.yaml").write_text("data: {class_path: my_data.Parity}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    files = {"reviews": "reviews.yaml", "short reviews": "a_file.yaml", "parity": "parity.yaml"}
    grid = ["--datasets", *files.values(), "--arms", "baseline", "--backbone", tiny_qwen, "--name", "own", "--quick"]
    assert influence("experiment", *grid, "--set", "trainer.accelerator=cpu") == 0

    experiment = tmp_path / "outputs" / "own-quick"
    for dataset, file in files.items():
        run = experiment / dataset / "baseline" / "seed0"
        assert json.loads((run / "metrics.json").read_text())["dataset"] == dataset
        assert json.loads((run / "condition.json").read_text())["typed"] == {"dataset": file, "arm": "baseline"}

    capsys.readouterr()
    assert influence("report", "--results", experiment) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {row[1].strip() for row in rows[2:]} == files.keys()
    assert all(dataset in (experiment / "report.md").read_text() for dataset in files)
