import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_app.errors import UsageError
from lightning_app.report import comparison_table, half_width, latest_experiment, load_results, summarise, write_report


def write_condition(folder: Path, dataset: str, arm: str, seed: int, accuracy: float, **more) -> None:
    run = folder / dataset / arm / f"seed{seed}"
    run.mkdir(parents=True)
    metrics = {
        "dataset": dataset,
        "arm": arm,
        "seed": seed,
        "backbone": "some/backbone",
        "accuracy": accuracy,
        "macro_f1": accuracy - 0.01,
        "nll": 0.5,
        "trainable_parameters": 1000,
        "eval_split": "test",
        "early_stop_on": "dev",
        "split_sizes": {"train": 10},
        "seconds": {"fit": 1.0, "evaluate": 2.0},
        "dataset_fingerprint": "f" * 64,
    }
    (run / "metrics.json").write_text(json.dumps(metrics | more))


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "study"
    for seed, accuracy in enumerate((0.70, 0.72, 0.77)):
        write_condition(folder, "sst2", "baseline", seed, accuracy)
    write_condition(folder, "sst2", "lora", 0, 0.8)
    write_condition(folder, "agnews", "influence", 0, 0.6, predicted_change=11.8, measured_change=0.25)
    return folder


def test_half_width_is_that_of_students_t_interval():
    values = pd.Series([0.70, 0.72, 0.77])
    # t quantile 4.302653 at 2 degrees of freedom, from a printed table
    assert half_width(values) == pytest.approx(4.302653 * np.std(values, ddof=1) / np.sqrt(3), rel=1e-6)
    assert np.isnan(half_width(pd.Series([0.7])))


def test_seeds_are_averaged_and_rows_follow_the_order_of_the_study(experiment):
    summary = summarise(load_results(experiment))
    assert list(zip(summary["dataset"], summary["arm"], summary["seeds"], strict=True)) == [
        ("sst2", "baseline", 3),
        ("sst2", "lora", 1),
        ("agnews", "influence", 1),
    ]
    assert summary["accuracy"].iloc[0] == pytest.approx(0.73)
    assert summary["seconds"].iloc[0] == 3.0


def test_the_table_shows_intervals_and_both_changes(experiment):
    table = comparison_table(load_results(experiment))
    assert "73.0 ± 9.0" in table
    assert "+11.800" in table
    assert "+0.250" in table
    assert "nan" not in table


def test_the_report_holds_table_picture_and_protocol(experiment):
    write_report(experiment)
    page = (experiment / "report.md").read_text()
    assert comparison_table(load_results(experiment)) in page
    assert "![Accuracy and macro-F1 by dataset and arm](scores.png)" in page
    assert "f" * 12 in page
    assert (experiment / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (experiment / "scores.svg").read_text()


def test_early_stopping_on_eval_is_said_in_the_report(experiment):
    write_condition(experiment, "yelp", "lora", 0, 0.5, early_stop_on="eval")
    assert "these scores are optimistic" in write_report(experiment)


def test_the_newest_experiment_is_found_and_a_missing_one_is_told(experiment, tmp_path):
    assert latest_experiment(experiment.parent) == experiment
    with pytest.raises(UsageError, match="No results below"):
        latest_experiment(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="No results in"):
        load_results(tmp_path / "nowhere")


def test_a_damaged_metrics_file_is_told_by_its_path(experiment):
    (experiment / "sst2" / "lora" / "seed0" / "metrics.json").write_text('{"dataset": "ss')
    with pytest.raises(UsageError, match=r"lora/seed0/metrics\.json is not a JSON file"):
        load_results(experiment)


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        ({"backbone": "other/backbone"}, "the results mix backbone: some/backbone and other/backbone"),
        ({"early_stop_on": "eval"}, "the results mix early_stop_on: dev and eval"),
        ({"split_sizes": {"train": 20}}, "the results of sst2 mix split_sizes: {'train': 10} and {'train': 20}"),
        ({"dataset_fingerprint": "e" * 64}, "the results of sst2 seed 1 mix dataset_fingerprint"),
    ],
)
def test_results_of_different_settings_are_told_apart(difference, sentence, experiment):
    assert "NOT COMPARABLE" not in write_report(experiment)
    write_condition(experiment, "sst2", "full_ft", 1, 0.8, **difference)
    assert f"NOT COMPARABLE: {sentence}" in write_report(experiment)
    assert f"NOT COMPARABLE: {sentence}" in (experiment / "report.md").read_text()
