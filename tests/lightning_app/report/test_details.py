"""Sweeps, masks and learning curves: what is read, and the numbers made of it."""

import pandas as pd
import pytest
import torch

from lightning_app.errors import UsageError
from lightning_app.report import load_results, write_report
from lightning_app.report.loading import load_curves, load_sweeps
from lightning_app.report.masks import find_masks, mask_overlaps, masked_shares, short_names
from lightning_app.report.tables import show_shares
from lightning_app.results.files import read_json, write_json

UP, DOWN = "layers.0.mlp.up.weight", "layers.1.mlp.down.weight"


def write_masked(write, folder, dataset: str, arm: str, seed: int, up: int, down: int) -> None:
    """Write a condition whose mask has the first `up` and the first `down` of 8 weights each."""
    first = torch.arange(8)
    run = folder / dataset / arm / f"seed{seed}"
    digest = write.mask(run, {UP: first < up, DOWN: first < down})
    write.condition(folder, dataset, arm, seed, 0.5, mask_digest=digest)


@pytest.fixture
def masked(tmp_path, write):
    """Arm influence with two seeds and datasets, a copy of its mask, and another mask."""
    write_masked(write, tmp_path, "sst2", "influence", 0, 4, 0)
    write_masked(write, tmp_path, "sst2", "influence", 1, 2, 2)
    write_masked(write, tmp_path, "sst2", "influence+head", 0, 4, 0)
    write_masked(write, tmp_path, "sst2", "random", 0, 2, 4)
    write_masked(write, tmp_path, "agnews", "influence", 0, 0, 4)
    return tmp_path


def test_shares_count_by_layer_and_projection(masked):
    found = masked_shares(find_masks(load_results(masked)))
    rows = found[(found["arm"] == "random") & (found["seed"] == 0)]
    assert rows[["layer", "projection", "masked", "candidates"]].values.tolist() == [
        ["layers.0", "mlp.up", 2, 8],
        ["layers.1", "mlp.down", 4, 8],
    ]
    assert rows["share"].tolist() == [0.25, 0.5]
    shown = show_shares(rows)
    assert shown.columns.tolist() == ["dataset", "arm", "up", "down"]
    assert shown.iloc[0].tolist() == ["sst2", "random", "25.00", "50.00"]


def test_equal_masks_are_shown_once(masked):
    found = find_masks(load_results(masked))
    assert "influence+head" not in set(found["arm"])
    assert len(found) == 4


def test_overlaps_of_arms_seeds_and_datasets_stand_beside_chance(masked):
    found = mask_overlaps(find_masks(load_results(masked))).set_index(["between", "dataset", "one", "other"])
    assert found.index.tolist() == [
        ("arms", "sst2", "influence", "random"),
        ("seeds", "sst2", "seed 0", "seed 1"),
        ("datasets", "", "agnews", "sst2"),
    ]
    assert found["intersection"].tolist() == [2, 2, 0]
    assert found["jaccard"].tolist() == [2 / 8, 2 / 6, 0.0]
    by_chance = [4 * 6 / 16, 4 * 4 / 16, 4 * 4 / 16]
    assert found["chance"].tolist() == pytest.approx([by_chance[0] / (10 - 1.5), 1 / 7, 1 / 7])


def test_masks_over_other_candidates_are_not_compared(masked, write):
    run = masked / "sst2" / "snip_lowest" / "seed0"
    digest = write.mask(run, {UP: torch.ones(4, dtype=torch.bool)})
    write.condition(masked, "sst2", "snip_lowest", 0, 0.5, mask_digest=digest)
    assert "snip_lowest" not in set(mask_overlaps(find_masks(load_results(masked)))["other"])


def test_names_are_cut_to_what_tells_them_apart():
    assert short_names(["self_attn.q_proj", "mlp.up_proj"]) == ["q_proj", "up_proj"]
    bert = ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"]
    assert short_names(bert) == ["query", "attention.output.dense", "intermediate.dense", "output.dense"]


def test_without_a_control_all_masks_are_compared_between_seeds(masked, write):
    for file in masked.rglob("metrics.json"):
        write_json(file, read_json(file) | {"control": None})
    write_masked(write, masked, "sst2", "random", 1, 2, 4)
    pairs = mask_overlaps(find_masks(load_results(masked)))
    between = pairs[pairs["between"] == "seeds"]
    assert between[["one", "other"]].values.tolist() == [
        ["influence seed 0", "influence seed 1"],
        ["random seed 0", "random seed 1"],
    ]


def test_a_sweep_is_a_row_a_mask_beside_the_unmasked_model(tmp_path, write):
    write.sweep(tmp_path, "sst2", seed=3)
    points = load_sweeps(tmp_path)
    assert len(points) == 6
    assert set(points["seed"]) == {3}
    assert set(points["unmasked_accuracy"]) == {0.77}
    highest = points[points["tail"] == "highest"]
    assert highest["predicted_change"].tolist() == [-0.01, -0.1, -1.0]
    assert highest["accuracy"].tolist() == pytest.approx([0.7, 0.65, 0.6])


def test_the_report_tabulates_every_mask_of_the_sweep(tmp_path, write):
    write.condition(tmp_path, "sst2", "baseline", 0, 0.7)
    write.sweep(tmp_path, "sst2")
    write_report(tmp_path)
    written = pd.read_csv(tmp_path / "tables" / "sweep.csv")
    pd.testing.assert_frame_equal(written, load_sweeps(tmp_path), check_dtype=False)
    assert (tmp_path / "figures" / "fractions.svg").is_file()


def test_every_sweep_arm_is_in_the_table_of_sweeps_and_in_no_table_of_arms(tmp_path, write):
    write.condition(tmp_path, "sst2", "baseline", 0, 0.7)
    for arm in ("sweep", "my_sweep"):
        write.sweep(tmp_path, "sst2", arm=arm)
    write_report(tmp_path)
    assert set(pd.read_csv(tmp_path / "tables" / "sweep.csv")["arm"]) == {"sweep", "my_sweep"}
    assert set(pd.read_csv(tmp_path / "tables" / "arms.csv")["arm"]) == {"baseline"}
    assert "my_sweep: sign_gradient, lowest" in (tmp_path / "figures" / "fractions.svg").read_text()


def test_a_metric_that_a_sweep_did_not_record_is_left_empty(tmp_path, write):
    write.condition(tmp_path, "sst2", "baseline", 0, 0.7)
    write.sweep(tmp_path, "sst2")
    file = tmp_path / "sst2" / "sweep" / "seed0" / "sweep.json"
    record = read_json(file)
    for point in record["points"]:
        del point["nll"]
    write_json(file, record)
    write_report(tmp_path)
    assert load_sweeps(tmp_path)["nll"].isna().all()
    assert "nan" not in (tmp_path / "report.md").read_text()


def test_a_damaged_sweep_is_told_by_its_path(tmp_path, write):
    write.sweep(tmp_path, "sst2")
    write_json(tmp_path / "sst2" / "sweep" / "seed0" / "sweep.json", {"points": []})
    with pytest.raises(UsageError, match=r"sweep/seed0/sweep\.json has no baseline"):
        load_sweeps(tmp_path)


def test_curves_hold_every_step_and_after_a_stop_the_later_value(tmp_path, write):
    run = write.condition(tmp_path, "sst2", "lora", 0, 0.8)
    write.curves(run, val__accuracy={9: 0.5, 19: 0.25}, train__loss={4: 1.5}, other={1: 1.0})
    write.curves(run, val__accuracy={19: 0.75, 29: 0.875})
    write.condition(tmp_path, "sst2", "influence", 0, 0.8)
    curves = load_curves(load_results(tmp_path))
    assert curves.drop(columns=["dataset", "arm", "seed"]).values.tolist() == [
        ["dev accuracy", 9, 0.5],
        ["dev accuracy", 19, 0.75],
        ["dev accuracy", 29, 0.875],
        ["training loss", 4, 1.5],
    ]
