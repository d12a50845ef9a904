import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch

from lightning_app.errors import UsageError
from lightning_app.report import comparison_table, latest_experiment, load_results, write_report


class Outline(HTMLParser):
    """What a page consists of, and what it refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, write) -> Path:
    """Return an experiment that has something for every section, and its report."""
    folder = write.study(
        tmp_path_factory.mktemp("outputs") / "study", baseline=0.75, influence=0.52, random_matched=0.73
    )
    for arm, first in (("influence", 0), ("random_matched", 2)):
        for seed in range(3):
            flags = torch.arange(64).reshape(8, 8) % 8 < 4
            names = [f"layers.{layer}.mlp.{name}.weight" for layer in range(2) for name in ("up", "down")]
            run = folder / "sst2" / arm / f"seed{seed}"
            digest = write.mask(run, {name: flags.roll(first + seed, 1) for name in names})
            changes = {"predicted_change": 8.9, "measured_change": 1.1, "mask_digest": digest}
            sizes = {"masked_parameters": 128, "candidate_parameters": 256}
            write.condition(folder, "sst2", arm, seed, 0.5, **changes, **sizes)
    curves = {"val__accuracy": {9: 0.6, 19: 0.7}, "train__loss": {5: 0.6, 15: 0.5}}
    write.curves(folder / "sst2" / "baseline" / "seed0", **curves)
    write.sweep(folder, "sst2")
    write_report(folder)
    return folder


def test_the_report_holds_table_picture_and_protocol(experiment):
    write_report(experiment)
    page = (experiment / "report.md").read_text()
    assert comparison_table(load_results(experiment)) in page
    assert "![Accuracy and macro-F1 by dataset and arm](figures/scores.png)" in page
    assert "f" * 12 in page
    assert (experiment / "figures" / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert (experiment / "figures" / "scores.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (experiment / "figures" / "scores.svg").read_text()


def test_a_full_report_has_every_section_and_each_table_and_figure_in_all_its_forms(full):
    page, outline = (full / "report.md").read_text(), Outline((full / "report.html").read_text())
    titles = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert titles == [
        "Arms by dataset",
        "Differences from the baseline",
        "Masks of many sizes",
        "Where the masks lie",
        "What the masks have in common",
        "Learning curves",
        "Cost and accuracy",
        "What the original study protocol expects",
        "Protocol",
    ]
    tables = [name.removeprefix("table-") for name in outline.ids if name.startswith("table-")]
    assert {"arms", "verdicts", "differences", "sweep", "mask_shares", "overlaps", "curves", "costs"} <= set(tables)
    assert {path.name for path in (full / "tables").iterdir()} == {
        f"{n}.{kind}" for n in tables for kind in ("csv", "tex")
    }
    drawn = [name.removeprefix("figure-") for name in outline.ids if name.startswith("figure-")]
    assert {"scores", "differences", "predicted", "fractions", "mask_0", "overlap_arms", "costs"} <= set(drawn)
    kinds = ("svg", "pdf", "png")
    assert {path.name for path in (full / "figures").iterdir()} == {f"{n}.{kind}" for n in drawn for kind in kinds}
    assert all(f"(figures/{name}.png)" in page for name in drawn)
    assert outline.tags.count("svg") == len(drawn)


def test_the_page_refers_to_nothing_outside_itself(full):
    page = (full / "report.html").read_text()
    outline = Outline(page)
    assert all(reference.startswith(("#", "data:")) for reference in outline.references)
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert "@import" not in page
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert page.count("url(") == page.count("url(#")


def test_the_same_results_give_the_same_files(full):
    written = [full / "report.html", full / "report.md", *full.glob("tables/*"), *full.glob("figures/*")]
    before = {path: path.read_bytes() for path in written}
    write_report(full)
    assert [path.name for path in written if path.read_bytes() != before[path]] == []


def test_what_comes_from_the_data_is_escaped(tmp_path, write):
    folder = write.study(tmp_path / "a&b", dataset="<script>alert(1)", baseline=0.7, **{"x|$y$": 0.6})
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "<td>&lt;script&gt;alert(1)</td>" in page
    assert "script" not in Outline(page).tags
    assert "<title>a&amp;b</title>" in page
    assert "x|$y$" in page
    written = (folder / "report.md").read_text()
    assert "<script" not in written
    assert "x\\|$y$" in written


@pytest.mark.parametrize(
    ("accuracy", "verdict", "reason"),
    [
        (0.52, "masking hurts", "influence is worse than baseline (-18.00 points"),
        (0.80, "masking helps", "influence beats both baseline (+10.00 points"),
    ],
)
def test_a_verdict_is_on_the_page_and_in_the_terminal(accuracy, verdict, reason, tmp_path, write):
    folder = write.study(tmp_path / "study", baseline=0.70, random_matched=0.69, influence=accuracy)
    terminal = write_report(folder)
    assert f"* sst2: {verdict}; {reason}" in terminal
    assert terminal.startswith(comparison_table(load_results(folder)))
    assert terminal.endswith(f"Report: {folder / 'report.html'} (and report.md)")
    for name in ("report.html", "report.md"):
        page = (folder / name).read_text()
        points = f"{abs(100 * accuracy - 70):.1f} points {'below' if accuracy < 0.7 else 'above'} baseline and"
        assert f"{verdict.capitalize()} on sst2: influence is {points}" in page
        assert reason in page


def test_the_answer_says_what_was_predicted_what_was_measured_and_what_is_not_shown(full):
    page = (full / "report.md").read_text()
    assert "raised the training loss by 1.10 nats per sample (predicted: +8.90); as a group they were useful" in page
    assert "from some/backbone on sst2, with masks of 50 % of the candidates and 3 seeds per arm." in page
    assert "The original study protocol asks about Qwen/Qwen2-0.5B, which was not run here." in page


def test_the_answer_names_the_mask_of_the_sweep_that_lowered_the_loss_most(tmp_path, write):
    folder = write.study(tmp_path / "study", seeds=1, baseline=0.7)
    write.sweep(folder, "sst2")
    write_report(folder)
    page = (folder / "report.md").read_text()
    assert "On sst2, the best mask of the sweep is the highest 0.01 % of the candidates: it changed the" in page
    assert "training loss by -0.050 (predicted: -0.100) and dev accuracy by -12.0 points. The best of 6 masks" in page
    write.sweep(folder, "sst2", points=0)
    write_report(folder)
    assert "the sweep" not in (folder / "report.md").read_text()


def test_the_sources_table_stands_beside_ours(tmp_path, write):
    folder = write.study(tmp_path / "study", seeds=1, dataset="yelp", baseline=0.55, full_ft=0.6)
    write_report(folder)
    table = pd.read_csv(folder / "tables" / "expected.csv", dtype=str).set_index("dataset")
    assert table.loc["yelp", "Full FT expected"] == "85"
    assert table.loc["yelp", "Full FT ours"] == "60.0"
    assert pd.isna(table.loc["sst2", "Full FT ours"])
    assert "above the published bound of 70.7 %" in (folder / "report.md").read_text()


def test_early_stopping_on_eval_is_said_in_the_report(experiment, write):
    write.condition(experiment, "yelp", "lora", 0, 0.5, early_stop_on="eval")
    assert "these scores are optimistic" in write_report(experiment)
    assert "these scores are optimistic" in (experiment / "report.html").read_text()


def test_the_newest_experiment_is_found_and_a_missing_one_is_told(experiment, tmp_path):
    assert latest_experiment(experiment.parent) == experiment
    with pytest.raises(UsageError, match="No results below"):
        latest_experiment(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="No results in"):
        load_results(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        ({"backbone": "other/backbone"}, "the results mix backbone: some/backbone and other/backbone"),
        ({"early_stop_on": "eval"}, "the results mix early_stop_on: dev and eval"),
        ({"split_sizes": {"train": 20}}, "the results of sst2 mix split_sizes: {'train': 10} and {'train': 20}"),
        ({"dataset_fingerprint": "e" * 64}, "the results of sst2 seed 1 mix dataset_fingerprint"),
    ],
)
def test_results_of_different_settings_are_told_apart(difference, sentence, experiment, write):
    assert "NOT COMPARABLE" not in write_report(experiment)
    write.condition(experiment, "sst2", "full_ft", 1, 0.8, **difference)
    assert f"NOT COMPARABLE: {sentence}" in write_report(experiment)
    assert f"NOT COMPARABLE: {sentence}" in (experiment / "report.md").read_text()


def test_a_reader_who_ends_early_leaves_no_traceback(experiment):
    command = [sys.executable, "-m", "lightning_app", "report", "--results", str(experiment)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait() == 141
