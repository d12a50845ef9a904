"""What an experiment left on disk, as tables of numbers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_app.errors import UsageError
from lightning_app.report.names import ARM_ORDER, DATASET_ORDER, rank
from lightning_app.results.files import METRICS_FILE, PREDICTIONS_FILE, SWEEP_FILE
from lightning_app.results.records import read_metrics, read_sweep
from lightning_app.results.statistics import DivergedError, Evaluation, read_evaluation

SWEEP = "sweep"
"""The arm that measures many masks and trains nothing: it is in no table of arms."""

CURVES = {"val/accuracy": "dev accuracy", "train/loss": "training loss"}


def load_results(experiment: Path) -> pd.DataFrame:
    """One row a complete condition of `<outputs>/<experiment>`, in the order of dataset, arm and seed.

    Returns:
        What `metrics.json` holds, and the columns `folder`, `fit_seconds` (with a gradient that was taken before for
        another arm) and `total_seconds` (with the evaluation).

    Raises:
        UsageError: If the folder holds no complete condition, or a file is damaged.
    """
    files = sorted(experiment.glob(f"*/*/seed*/{METRICS_FILE}"))
    rows = [row for row in map(_read_condition, files) if row["arm"] != SWEEP]
    if not rows:
        raise UsageError(
            f"No results in {experiment}: asked for <dataset>/<arm>/seed<k>/{METRICS_FILE}, found none. "
            "Make them: influence experiment"
        )
    datasets, arms = rank(DATASET_ORDER), rank(ARM_ORDER)
    return pd.DataFrame(sorted(rows, key=lambda row: (datasets(row["dataset"]), arms(row["arm"]), row["seed"])))


def _read_condition(file: Path) -> dict[str, Any]:
    row = read_metrics(file)
    seconds = row["seconds"]
    shared = seconds.get("gradient", 0) if row.get("gradient_shared") else 0
    fit = seconds.get("fit", 0) + shared
    return row | {"folder": file.parent, "fit_seconds": fit, "total_seconds": fit + seconds.get("evaluate", 0)}


def read_evaluations(folders: Iterable[Path]) -> tuple[list[Evaluation], list[str]]:
    """The scored predictions of conditions, and a sentence for each that cannot be scored.

    Raises:
        UsageError: If a file is damaged.
    """
    found, left_out = [], []
    for folder in folders:
        if not (folder / PREDICTIONS_FILE).is_file():
            left_out.append(
                f"{'/'.join(folder.parts[-3:])} has no {PREDICTIONS_FILE}: it is left out of the statistics."
            )
            continue
        try:
            found.append(read_evaluation(folder))
        except DivergedError as error:
            left_out.append(f"{error} It is left out of the statistics.")
    return found, left_out


def load_sweeps(experiment: Path) -> pd.DataFrame:
    """One row a mask of the sweeps, with `unmasked_accuracy` and `unmasked_nll` beside it; empty without a sweep.

    Raises:
        UsageError: If a file lacks what a sweep records.
    """
    rows: list[dict[str, Any]] = []
    for file in sorted(experiment.glob(f"*/{SWEEP}/seed*/{SWEEP_FILE}"), key=_dataset_rank):
        unmasked, points = read_sweep(file)
        named = {"dataset": file.parents[2].name, "seed": _seed(file.parent)}
        rows += [named | point | {f"unmasked_{name}": value for name, value in unmasked.items()} for point in points]
    return pd.DataFrame(rows)


def _seed(folder: Path) -> int:
    number = folder.name.removeprefix("seed")
    if not number.isascii() or not number.isdigit():
        raise UsageError(
            f"{folder} is named after no seed: give it its name, seed<k>, or take it out of the experiment."
        )
    return int(number)


def _dataset_rank(file: Path) -> tuple[tuple[int, str], Path]:
    return rank(DATASET_ORDER)(file.parents[2].name), file


def load_curves(results: pd.DataFrame) -> pd.DataFrame:
    """Dev accuracy and training loss by optimisation step, from the event files: one row a point."""
    rows = [
        {"dataset": run.dataset, "arm": run.arm, "seed": run.seed, "curve": curve, "step": step, "value": value}
        for run in results.itertuples()
        if any(run.folder.glob("events.out.tfevents.*"))
        for curve, points in _read_curves(run.folder).items()
        for step, value in points.items()
    ]
    return pd.DataFrame(rows, columns=["dataset", "arm", "seed", "curve", "step", "value"])


def _read_curves(folder: Path) -> dict[str, dict[int, float]]:
    """By curve the value at each step; where a fit went on after a stop, the later one holds."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    there = events.Tags()[SCALARS]
    return {
        name: {event.step: event.value for event in events.Scalars(tag)} for tag, name in CURVES.items() if tag in there
    }
