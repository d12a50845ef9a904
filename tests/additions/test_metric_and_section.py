"""A metric is one entry of the registry, a section of the report one function: both reach every place by themselves."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from lightning_app.report.page import Section, Table
from lightning_app.report.sections import SECTIONS, Study
from lightning_app.results.metrics import METRICS, Metric
from lightning_app.results.predictions import read_predictions


def brier(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the probabilities, summed over the classes."""
    targets = torch.nn.functional.one_hot(labels, logits.shape[1])
    return (logits.softmax(-1) - targets).square().sum(-1).mean()


def hardest_dataset(study: Study) -> Section:
    """Return the section that the test adds."""
    means = study.summary.groupby("dataset")["brier"].mean().reset_index()
    return Section("Which dataset is hardest", ["Mean over the arms."], [Table("hardest", "Brier score", means)])


@pytest.fixture
def made(influence, tiny_qwen, data_cache, tmp_path: Path, monkeypatch) -> Path:
    """Return an experiment with both, its report and an export."""
    entry = Metric("brier", "Brier score", "", 1, 3, higher_is_better=False, function=brier, low=0, high=2)
    monkeypatch.setitem(METRICS, "brier", entry)
    monkeypatch.setattr("lightning_app.report.sections.SECTIONS", [*SECTIONS, hardest_dataset])
    arms = ["baseline", "influence", "sweep"]
    words = ["--datasets", "docstrings", "--arms", *arms, "--backbone", tiny_qwen, "--name", "own", "--quick"]
    sets = [f"data.cache_dir={data_cache}", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    assert influence("experiment", *words, "--set", *sets) == 0
    folder = tmp_path / "outputs" / "own-quick"
    assert influence("report", "--results", folder) == 0
    checkpoint = folder / "docstrings" / "influence" / "seed0" / "checkpoints" / "best.ckpt"
    assert influence("export", "--ckpt", checkpoint, "--out", tmp_path / "exported") == 0
    return folder


@pytest.mark.slow
def test_a_metric_and_a_section_are_everywhere_by_one_entry_each(made, tmp_path):
    run = made / "docstrings" / "influence" / "seed0"
    _, labels, logits = read_predictions(run / "predictions.parquet")
    expected = float(brier(torch.tensor(labels), torch.tensor(logits)))

    assert json.loads((run / "metrics.json").read_text())["brier"] == pytest.approx(expected, rel=1e-5)
    sweep = json.loads((made / "docstrings" / "sweep" / "seed0" / "sweep.json").read_text())
    assert 0 < sweep["baseline"]["brier"] < 2
    assert all(0 < point["brier"] < 2 for point in sweep["points"])

    arms = pd.read_csv(made / "tables" / "arms.csv").set_index("arm")
    assert arms.loc["influence", "brier"] == pytest.approx(expected, rel=1e-5)
    differences = pd.read_csv(made / "tables" / "differences.csv")
    row = differences[(differences["arm"] == "influence") & (differences["metric"] == "brier")].iloc[0]
    assert row["low"] < row["estimate"] < row["high"]

    page = (made / "report.html").read_text()
    assert f"{expected:.3f}" in page
    assert "Accuracy, macro-F1 and Brier score by dataset and arm" in page
    assert "Which dataset is hardest" in page
    hardest = pd.read_csv(made / "tables" / "hardest.csv")
    assert hardest["brier"].tolist() == pytest.approx([arms["brier"].mean()])
    assert "Brier score" in (made / "figures" / "scores.svg").read_text()
    assert "dev Brier score" in (made / "figures" / "fractions.svg").read_text()

    dashboard = EventAccumulator(str(made / "dashboard" / "influence")).Reload()
    assert dashboard.Scalars("brier/docstrings")[0].value == pytest.approx(expected, rel=1e-5)
    events = EventAccumulator(str(made / "docstrings" / "baseline" / "seed0"), size_guidance={SCALARS: 0}).Reload()
    assert {"val/brier", "eval/brier"} <= set(events.Tags()["scalars"])

    card = (tmp_path / "exported" / "README.md").read_text()
    assert re.search(rf"\| Brier score +\| {expected:.4f} +\|", card)
