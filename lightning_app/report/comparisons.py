"""Compare the arms of an experiment, decide verdicts, and say what is missing for the others."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_app.errors import UsageError
from lightning_app.report.loading import read_evaluations
from lightning_app.results.design import Design
from lightning_app.results.predictions import Evaluation
from lightning_app.results.records import read_condition
from lightning_app.results.statistics import Difference, differences, holm, seed_intervals
from lightning_app.results.verdict import Verdict, verdict


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of arms, from the stored predictions.

    Attributes:
        intervals: As `seed_intervals` gives them.
        differences: Of every arm from its reference, and the declared ones, with Holm's p for those of verdicts.
        verdicts: One per dataset and arm with a control for which both declared differences exist.
        gaps: For every other dataset and arm with a control, what is missing and the command that makes it.
        left_out: A sentence for each condition or dataset that could not be compared.
    """

    intervals: pd.DataFrame
    differences: list[Difference]
    verdicts: list[Verdict]
    gaps: dict[tuple[str, str], str]
    left_out: list[str]


def compare_arms(experiment: Path, results: pd.DataFrame, design: Design) -> Comparisons:
    """Compare the arms of an experiment, one dataset after the other.

    Args:
        experiment: Its folder.
        results: As `load_results` gives them.
        design: Which arms are compared.

    Raises:
        UsageError: If stored predictions are damaged.
    """
    intervals, compared, gaps, left_out = [], list[Difference](), dict[tuple[str, str], str](), list[str]()
    for dataset, group in results.groupby("dataset", sort=False):
        evaluations, unread = read_evaluations(group["folder"])
        intervals.append(seed_intervals(evaluations))
        pairs = [(arm, other) for arm, other in design.pairs if _seeds(evaluations, arm) & _seeds(evaluations, other)]
        left_out += unread
        try:
            compared += differences(evaluations, pairs, design.declared)
        except UsageError as error:  # rows that differ: the experiment mixes what cannot be compared
            left_out.append(f"The arms of {dataset} cannot be compared: {error}")
            pairs = []
        for arm in design.controls:
            if not set(design.verdict_pairs(arm)) <= set(pairs):
                needed = list(dict.fromkeys(name for pair in design.verdict_pairs(arm) for name in pair))
                gaps[dataset, arm] = _gap(experiment, results, dataset, needed, evaluations)
    compared = holm(compared, lambda each: each.declared and (each.dataset, each.arm) not in gaps)
    verdicts = _verdicts(compared, design, gaps)
    return Comparisons(pd.concat(intervals, ignore_index=True), compared, verdicts, gaps, left_out)


def _verdicts(compared: list[Difference], design: Design, gaps: dict[tuple[str, str], str]) -> list[Verdict]:
    declared = {(each.dataset, each.arm, each.reference): each for each in compared if each.declared}
    return [
        verdict(*(declared[dataset, *pair] for pair in design.verdict_pairs(arm)))
        for dataset in dict.fromkeys(each.dataset for each in compared)
        for arm in design.controls
        if (dataset, arm) not in gaps
    ]


def _seeds(evaluations: list[Evaluation], arm: str) -> set[int]:
    return {evaluation.seed for evaluation in evaluations if evaluation.arm == arm}


def _gap(
    experiment: Path, results: pd.DataFrame, dataset: str, needed: list[str], evaluations: list[Evaluation]
) -> str:
    """Return what a dataset lacks for a verdict, and the command that makes it."""
    complete = set(results["arm"][results["dataset"] == dataset])
    missing = [arm for arm in needed if not _seeds(evaluations, arm)]
    fault = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    if not missing:
        fault = "; ".join(f"{arm} has the seeds {sorted(_seeds(evaluations, arm))}" for arm in needed)
    command = make_command(experiment, results, dataset, missing or needed, overwrite=bool(complete & set(missing)))
    return f"A verdict needs {', '.join(needed)} with the same seeds and rows; {fault}. Make it: `{command}`"


def make_command(
    experiment: Path, results: pd.DataFrame, dataset: str, arms: list[str], overwrite: bool = False
) -> str:
    """Return the command that adds arms to a dataset of an experiment, under the settings of its other arms."""
    group = results[results["dataset"] == dataset]
    records = {folder: _condition_record(folder) for folder in results["folder"]}
    typed = [(row, records[row.folder].get("typed", {})) for row in results.itertuples()]
    datasets, known = (
        {getattr(row, kind): words.get(kind, getattr(row, kind)) for row, words in typed} for kind in ("dataset", "arm")
    )
    name, backbone = experiment.resolve().name, str(group["backbone"].iloc[0])
    quick = name.endswith("-quick")
    name = name.removesuffix("-quick")
    words = ["influence", "experiment", "--backbone", backbone]
    words += [] if name == f"experiment-{Path(backbone).name}" else ["--name", name]
    words += ["--datasets", datasets[dataset], "--arms", *(known.get(arm, arm) for arm in arms)]
    words += ["--seeds", *map(str, sorted(group["seed"].unique()))]
    settings = _settings([(row.arm, records[row.folder]) for row in group.itertuples()], quick)
    words += (["--set", *settings] if settings else []) + ["--quick"] * quick + ["--overwrite"] * overwrite
    return shlex.join(words)


def _settings(records: list[tuple[str, dict[str, Any]]], quick: bool) -> list[str]:
    """Return what `--set` changed: for all arms, or only for the first one, which is the baseline if there is one."""
    first, *others = [_overrides(record) for _, record in records]
    words = [word if all(word in other for other in others) else f"{records[0][0]}:{word}" for word in first]
    return [word for word in words if not (quick and word.partition("=")[0].endswith("_size"))]


def _overrides(record: dict[str, Any]) -> list[str]:
    words = record["settings"]["overrides"] if record else []
    return [word.removeprefix("--") for word in words if not word.startswith("--model.backbone=")]


def _condition_record(folder: Path) -> dict[str, Any]:
    """Return the record of the command that made a folder; empty if no experiment made it."""
    file = folder / "condition.json"
    return read_condition(file) if file.exists() else {}
