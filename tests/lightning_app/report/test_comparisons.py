from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lightning_app.errors import UsageError
from lightning_app.report import load_results, write_report
from lightning_app.report.comparisons import Comparisons, compare_arms
from lightning_app.results.design import Design
from lightning_app.results.files import read_json, write_json, write_parquet
from lightning_app.results.predictions import read_evaluation
from lightning_app.results.records import settings_digest
from lightning_app.results.statistics import seed_intervals


def compared(folder: Path) -> Comparisons:
    results = load_results(folder)
    return compare_arms(folder, results, Design.of(results))


@pytest.fixture
def study(tmp_path: Path, write) -> Path:
    return write.study(tmp_path / "study", baseline=0.75, influence=0.52, random_matched=0.73, lora=0.8)


def test_the_numbers_in_the_csv_are_those_of_the_statistics(study):
    write_report(study)
    table = pd.read_csv(study / "tables" / "differences.csv")
    found = compared(study).differences
    for column in ("estimate", "low", "high", "p_value", "p_equivalence", "p_holm", "smallest_detectable"):
        np.testing.assert_allclose(table[column], [asdict(one)[column] for one in found], rtol=1e-13)
    row = table[(table["arm"] == "influence") & (table["reference"] == "baseline") & (table["metric"] == "accuracy")]
    assert row["estimate"].item() == pytest.approx(-0.23, abs=1e-6)
    assert float(row["mcnemar"].item().split()[0]) == pytest.approx(2 * 0.5**230)  # 230 rows, all in one direction
    assert row["declared"].item()
    assert not table[table["arm"] == "lora"]["declared"].any()


def test_the_intervals_in_the_csv_are_those_of_the_statistics(study):
    write_report(study)
    table = pd.read_csv(study / "tables" / "intervals.csv")
    folders = [study / "sst2" / "lora" / f"seed{seed}" for seed in range(3)]
    expected = seed_intervals([read_evaluation(folder) for folder in folders]).reset_index(drop=True)
    pd.testing.assert_frame_equal(table[table["arm"] == "lora"].reset_index(drop=True), expected)


def test_a_verdict_corrects_over_the_datasets_that_have_one(study, write):
    write.study(study, dataset="agnews", baseline=0.75, influence=0.76, random_matched=0.75)
    write.study(study, dataset="yelp", baseline=0.75, influence=0.76)
    comparison = compared(study)
    assert [each.dataset for each in comparison.verdicts] == ["agnews", "sst2"]
    declared = [each for each in comparison.differences if each.arm == "influence" and each.mcnemar]
    by_name = {(each.dataset, each.reference): each for each in declared}
    assert by_name["agnews", "baseline"].p_holm == comparison.verdicts[0].reference.p_holm
    assert by_name["sst2", "baseline"].p_holm == comparison.verdicts[1].reference.p_holm
    assert np.isnan(by_name["yelp", "baseline"].p_holm)


def test_a_missing_control_is_named_with_the_command_that_runs_it(tmp_path, write):
    folder = write.study(tmp_path / "study", baseline=0.75, influence=0.52)
    assert compared(folder).verdicts == []
    terminal = write_report(folder)
    assert "masking hurts" not in terminal
    for name in ("report.md", "report.html"):
        page = (folder / name).read_text()
        assert "random_matched is missing" in page
        assert (
            "influence experiment --backbone some/backbone --name study --datasets sst2 --arms random_matched "
            "--seeds 0 1 2" in page
        )


def test_the_command_repeats_the_settings_of_what_is_there(tmp_path, write):
    folder = write.study(tmp_path / "experiment-backbone-quick", seeds=1, baseline=0.75)
    write.condition(folder, "sst2", "influence", 0, 0.8)
    shared = ["--model.backbone=some/backbone", "--data.eval_size=50", "--data.max_length=48"]
    for arm, own in (("baseline", "--model.learning_rate=0.1"), ("influence", "--model.tune=head")):
        settings = {"configs": [], "overrides": [*shared, own]}
        record = {"digest": settings_digest(settings), "settings": settings}
        write_json(folder / "sst2" / arm / "seed0" / "condition.json", record)
    assert (
        compared(folder)
        .gaps["sst2", "influence"]
        .endswith(
            "`influence experiment --backbone some/backbone --datasets sst2 --arms influence random_matched --seeds 0 "
            "--set data.max_length=48 baseline:model.learning_rate=0.1 --quick --overwrite`"
        )
    )


def test_arms_without_a_common_seed_have_no_verdict(tmp_path, write):
    folder = write.study(tmp_path / "study", seeds=2, baseline=0.75, influence=0.52)
    write.predictions(write.condition(folder, "sst2", "random_matched", 5, 0.7), 0.7)
    gap = compared(folder).gaps["sst2", "influence"]
    assert "random_matched has the seeds [5]" in gap
    assert "--arms influence baseline random_matched --seeds 0 1 5" in gap


def test_a_condition_without_predictions_is_said_and_left_out(study):
    (study / "sst2" / "lora" / "seed1" / "predictions.parquet").unlink()
    comparison = compared(study)
    assert comparison.left_out == ["sst2/lora/seed1 has no predictions.parquet: it is left out of the statistics."]
    assert {each.seeds for each in comparison.differences if each.arm == "lora"} == {(0, 2)}
    write_report(study)
    assert "sst2/lora/seed1 has no predictions.parquet" in (study / "report.html").read_text()


def test_a_diverged_condition_is_said_and_left_out(study):
    logits = [[1.0, float("nan")], [0.0, 1.0]]
    table = pa.table({"row": [0, 1], "label": [0, 1], "logits": logits})
    write_parquet(study / "sst2" / "lora" / "seed1" / "predictions.parquet", table)
    with pytest.raises(UsageError, match=r"lora/seed1 gives accuracy 0\.5, but metrics\.json has 0\.8"):
        compared(study)
    metrics = study / "sst2" / "lora" / "seed1" / "metrics.json"
    nan = float("nan")
    write_json(metrics, read_json(metrics) | {"accuracy": 0.5, "macro_f1": 1 / 3, "nll": nan, "ece": 0.6932418})
    (sentence,) = compared(study).left_out
    assert "sst2/lora/seed1" in sentence
    assert "diverged" in sentence


def test_damaged_predictions_are_a_mistake_to_mend(study):
    (study / "sst2" / "lora" / "seed1" / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"lora/seed1/predictions\.parquet is damaged"):
        write_report(study)


def test_a_damaged_metrics_file_is_told_by_its_path(experiment):
    (experiment / "sst2" / "lora" / "seed0" / "metrics.json").write_text('{"dataset": "ss')
    with pytest.raises(UsageError, match=r"lora/seed0/metrics\.json is not a JSON file"):
        load_results(experiment)


def test_arms_that_predict_other_rows_are_said_and_the_other_datasets_stay(study, write):
    write.study(study, dataset="agnews", baseline=0.75, influence=0.76, random_matched=0.75)
    write.predictions(study / "agnews" / "influence" / "seed0", 0.7, rows=500)
    comparison = compared(study)
    assert [each.dataset for each in comparison.verdicts] == ["sst2"]
    assert "The arms of agnews cannot be compared" in comparison.left_out[0]
    assert list(comparison.gaps) == [("agnews", "influence")]


def test_every_arm_is_compared_with_the_arm_that_it_starts_from(study, write):
    write.study(study, baseline_converged=0.77, warm=0.78)
    for seed in range(3):
        own = read_json(study / "sst2" / "warm" / f"seed{seed}" / "metrics.json")["accuracy"]
        run = write.condition(study, "sst2", "warm", seed, own, starts_from="baseline_converged")
        assert read_json(run / "metrics.json")["starts_from"] == "baseline_converged"
    pairs = dict.fromkeys((each.arm, each.reference) for each in compared(study).differences)
    assert list(pairs) == [
        ("influence", "baseline"),
        ("influence", "random_matched"),
        ("baseline_converged", "baseline"),
        ("random_matched", "baseline"),
        ("warm", "baseline_converged"),
        ("lora", "baseline"),
    ]


def test_each_arm_with_a_control_has_a_verdict_and_all_are_one_family(study, write):
    write.study(study, learned=0.85)
    for seed in range(3):
        run = study / "sst2" / "learned" / f"seed{seed}"
        write_json(run / "metrics.json", read_json(run / "metrics.json") | {"control": "random_matched"})
    comparison = compared(study)
    assert [(each.arm, each.outcome) for each in comparison.verdicts] == [("influence", "hurts"), ("learned", "helps")]
    assert sum(not np.isnan(each.p_holm) for each in comparison.differences) == 4


def test_without_a_control_no_verdict_is_asked_for(tmp_path, write):
    folder = write.study(tmp_path / "study", baseline=0.75, lora=0.8)
    comparison = compared(folder)
    assert (comparison.verdicts, comparison.gaps) == ([], {})
    assert "names a control" in write_report_page(folder)


def write_report_page(folder: Path) -> str:
    write_report(folder)
    return (folder / "report.md").read_text()


def test_the_command_names_datasets_and_arms_as_they_were_typed(tmp_path, write):
    folder = write.study(tmp_path / "study", seeds=1, baseline=0.75, influence=0.52)
    settings = {"configs": [], "overrides": []}
    record = {"digest": settings_digest(settings), "settings": settings}
    for arm in ("baseline", "influence"):
        typed = {"dataset": "mine/films.yaml", "arm": f"mine/{arm}.yaml"}
        write_json(folder / "sst2" / arm / "seed0" / "condition.json", record | {"typed": typed})
    (folder / "sst2" / "influence" / "seed0" / "predictions.parquet").unlink()
    gap = compared(folder).gaps["sst2", "influence"]
    assert "--datasets mine/films.yaml --arms mine/influence.yaml random_matched --seeds 0" in gap
