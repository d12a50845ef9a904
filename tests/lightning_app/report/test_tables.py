import pandas as pd
import pytest

from lightning_app.report import comparison_table, load_results, summarize
from lightning_app.report.page import Table
from lightning_app.report.styles import PALETTE, arm_styles
from lightning_app.report.tables import show_p_value


def test_seeds_are_averaged_and_datasets_are_in_alphabetical_order(experiment):
    summary = summarize(load_results(experiment))
    assert list(zip(summary["dataset"], summary["arm"], summary["seeds"], strict=True)) == [
        ("agnews", "influence", 1),
        ("sst2", "baseline", 3),
        ("sst2", "lora", 1),
    ]
    assert summary["accuracy"].iloc[1] == pytest.approx(0.73)
    assert summary["total_seconds"].iloc[1] == 3.0


def test_arms_are_ordered_by_role_and_name_and_those_with_a_control_come_first(tmp_path, write):
    for arm in ("full_ft", "lora", "influence+head", "influence", "abc", "baseline_converged", "baseline"):
        write.condition(tmp_path, "sst2", arm, 0, 0.7)
    assert load_results(tmp_path)["arm"].tolist() == [
        *("baseline", "baseline_converged", "influence", "abc", "influence+head", "lora", "full_ft")
    ]


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


def looks_of(*records: dict) -> list:
    defaults = {"role": "mask", "trains": "none", "color": None}
    return [*arm_styles(pd.DataFrame([defaults | record for record in records])).values()]


def test_an_arm_has_its_own_color_and_keeps_it_when_something_trains_under_its_mask():
    static, head = looks_of(
        {"arm": "influence", "color": "#D55E00"}, {"arm": "influence+head", "color": "#D55E00", "trains": "head"}
    )
    assert (static.color, head.color) == ("#D55E00", "#D55E00")
    assert (static.marker, static.line) != (head.marker, head.line)


def test_an_arm_without_a_color_gets_one_by_its_name():
    mine, same, head, typo = looks_of(
        {"arm": "mine"}, {"arm": "other"}, {"arm": "mine+head", "trains": "head"}, {"arm": "typo", "color": "no color"}
    )
    assert mine == looks_of({"arm": "mine"})[0]
    assert head.color == mine.color
    assert {mine.color, same.color, typo.color} <= set(PALETTE)


@pytest.mark.parametrize(
    ("value", "text"), [(float("nan"), ""), (0.0, "< 0.0001"), (0.00012, "0.00012"), (0.051, "0.051"), (1.0, "1")]
)
def test_p_values_have_two_digits(value, text):
    assert show_p_value(value) == text


def test_columns_of_numbers_are_told_from_words():
    table = Table("t", "", pd.DataFrame({"a": ["+1.0", "", "< 0.1"], "b": ["1", "x", "2"], "c": ["-3", "4 ± 1", "5"]}))
    assert [column for column in table.shown if table.is_number(column)] == ["a", "c"]
