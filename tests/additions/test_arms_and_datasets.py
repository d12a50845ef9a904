"""What a user adds from outside the package: arms by a YAML file alone, datasets by a YAML file or by a class."""

import csv
import json
import random
from pathlib import Path

import pytest
import yaml

ARMS = {
    "warm": ("baseline", None, {"class_path": "modules.Baseline"}),
    "cut": ("mask", "warm", {"class_path": "modules.Influence", "init_args": {"tune": "none"}}),
    "ranks": ("adapter", "warm", {"class_path": "modules.LoRA", "init_args": {"rank": 2}}),
    "everything": ("full", "warm", {"class_path": "modules.FullFineTuning"}),
    "fractions": ("sweep", "warm", {"class_path": "modules.Sweep", "init_args": {"fractions": [0.01, 0.1]}}),
}
"""By the name of the file: role, start and model."""

TRAINS = {"warm": "head", "cut": "none", "cut+head": "head", "ranks": "adapter", "everything": "all", "fractions": "none"}
WORDS = {"negative": ["dull", "slow", "empty", "loud"], "positive": ["warm", "funny", "clever", "bright"]}

CLASS = '''
import numpy as np
import pyarrow as pa

from datamodules import TextDataModule


class Parity(TextDataModule):
    """Whether the last digit of a number is even."""

    name = "parity"
    label_names = ("even", "odd")
    eval_split_name = "held out"

    def load_source(self):
        tables = [
            pa.table({"row": np.arange(len(part)), "text": [f"number {n}" for n in part], "label": np.array(part) % 2})
            for part in (range(300), range(300, 400))
        ]
        return tables[0], tables[1]
'''


def write_reviews(folder: Path) -> None:
    """Two CSV files, and two configurations of one class that differ in name and length."""
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
    data = {"class_path": "datamodules.HubTextDataModule", "init_args": options}
    (folder / "reviews.yaml").write_text(yaml.safe_dump({"data": data}))
    short = data | {"init_args": options | {"max_length": 16}}
    (folder / "other_file.yaml").write_text(yaml.safe_dump({"dataset": "short reviews", "data": short}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user with files of their own."""
    write_reviews(tmp_path)
    (tmp_path / "parity.py").write_text(CLASS)
    (tmp_path / "parity.yaml").write_text("data: {class_path: parity.Parity}\n")
    for name, (role, start, model) in ARMS.items():
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump({"arm": {"role": role, "starts_from": start}, "model": model})
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_arms_and_datasets_go_through_experiment_and_report(folder, influence, tiny_qwen, capsys):
    datasets = {"reviews": "reviews.yaml", "short reviews": "other_file.yaml", "parity": "parity.yaml"}
    arms = [f"{name}.yaml" for name in ("cut", "ranks", "everything", "fractions")]  # the start is found beside them
    words = ["--datasets", *datasets.values(), "--arms", *arms, "cut.yaml+head", "--backbone", tiny_qwen, "--name", "own"]
    sets = ["trainer.accelerator=cpu", "trainer.max_epochs=1"]
    assert influence("experiment", *words, "--quick", "--set", *sets) == 0

    experiment = folder / "outputs" / "own-quick"
    for dataset, file in datasets.items():
        records = {
            path.parents[1].name: json.loads(path.read_text())
            for path in (experiment / dataset).glob("*/seed0/metrics.json")
        }
        assert {name: record["trains"] for name, record in records.items()} == TRAINS
        for label, record in records.items():
            name, _, overlay = label.partition("+")
            role, start, _ = ARMS[name]
            assert (record["dataset"], record["arm"]) == (dataset, label)
            assert (record["role"], record["starts_from"]) == (role, start)
            made = json.loads((experiment / dataset / label / "seed0" / "condition.json").read_text())
            assert made["typed"] == {"dataset": file, "arm": f"{name}.yaml{'+' * bool(overlay)}{overlay}"}
        start = experiment / dataset / "warm" / "seed0" / "start.safetensors"
        assert f"start: outputs/{start.relative_to(folder / 'outputs')}" in (
            experiment / dataset / "ranks" / "seed0" / "config.yaml"
        ).read_text()

    capsys.readouterr()
    assert influence("report", "--results", experiment) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {(row[1].strip(), row[2].strip()) for row in rows[2:]} == {
        (dataset, arm) for dataset in datasets for arm in TRAINS if ARMS[arm.partition("+")[0]][0] != "sweep"
    }
    page = (experiment / "report.md").read_text()
    assert all(arm in page for arm in TRAINS)
