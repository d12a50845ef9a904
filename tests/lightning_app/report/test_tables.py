import numpy as np
import pandas as pd
import pytest

from lightning_app.report import comparison_table, half_width, load_results, summarise
from lightning_app.report.names import ARM_ORDER, COLOURS, look
from lightning_app.report.page import Table
from lightning_app.report.tables import p_value


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
    assert summary["total_seconds"].iloc[0] == 3.0


def test_the_table_shows_intervals_and_both_changes(experiment):
    table = comparison_table(load_results(experiment))
    assert "73.0 ± 9.0" in table
    assert "+11.800" in table
    assert "+0.250" in table
    assert "nan" not in table


def test_the_columns_of_the_table_are_those_of_the_readme(experiment):
    heading = comparison_table(load_results(experiment)).splitlines()[0]
    assert [word.strip() for word in heading.strip("|").split("|")] == [
        *("dataset", "arm", "seeds", "accuracy %", "macro-F1 %", "NLL"),
        *("trained", "masked", "predicted", "measured", "seconds"),
    ]


def test_a_shared_gradient_counts_for_the_arm_that_did_not_take_it(tmp_path, write):
    seconds = {"fit": 5.0, "gradient": 4.0, "evaluate": 2.0}
    write.condition(tmp_path, "sst2", "influence", 0, 0.5, seconds=seconds, gradient_shared=False)
    write.condition(tmp_path, "sst2", "snip_lowest", 0, 0.5, seconds=seconds, gradient_shared=True)
    results = load_results(tmp_path)
    assert results["fit_seconds"].tolist() == [5.0, 9.0]
    assert results["total_seconds"].tolist() == [7.0, 11.0]


def test_the_sweep_is_no_arm(tmp_path, write):
    write.condition(tmp_path, "sst2", "baseline", 0, 0.7)
    write.sweep(tmp_path, "sst2")
    assert load_results(tmp_path)["arm"].tolist() == ["baseline"]


def test_each_arm_has_a_colour_of_its_own_and_a_tuned_head_that_of_its_mask():
    assert len(set(COLOURS.values())) == len(COLOURS)
    looks = [look(arm) for arm in ARM_ORDER if arm not in ("lora_head", "full_ft_head", "influence_tuned_head")]
    assert len({(each.colour, each.marker) for each in looks}) >= len(looks) - 1  # baseline_converged_head is none
    assert look("influence").colour == look("influence_head").colour
    assert look("influence").marker != look("influence_head").marker


def test_an_arm_of_the_users_own_always_looks_the_same():
    assert look("my_arm") == look("my_arm")
    assert look("my_arm_head").colour == look("my_arm").colour
    assert look("my_arm").colour not in COLOURS.values()


@pytest.mark.parametrize(
    ("value", "text"), [(float("nan"), ""), (0.0, "< 0.0001"), (0.00012, "0.00012"), (0.051, "0.051"), (1.0, "1")]
)
def test_p_values_have_two_digits(value, text):
    assert p_value(value) == text


def test_columns_of_numbers_are_told_from_words():
    table = Table("t", "", pd.DataFrame({"a": ["+1.0", "", "< 0.1"], "b": ["1", "x", "2"], "c": ["-3", "4 ± 1", "5"]}))
    assert [column for column in table.shown if table.is_number(column)] == ["a", "c"]
