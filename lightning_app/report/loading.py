"""Load what an experiment left on disk as tables of numbers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_app.errors import UsageError
from lightning_app.report.styles import sort_key
from lightning_app.results.files import METRICS_FILE, PREDICTIONS_FILE, SWEEP_FILE
from lightning_app.results.metrics import HEADLINE, METRICS
from lightning_app.results.predictions import DivergedError, Evaluation, read_evaluation, stored_metrics
from lightning_app.results.records import read_metrics, read_sweep

DEV_CURVE, LOSS_CURVE = f"dev {METRICS[HEADLINE].title}", "training loss"
CURVE_TITLES = {f"val/{HEADLINE}": DEV_CURVE, "train/loss": LOSS_CURVE}
"""By tag of the event files."""


def load_results(experiment: Path) -> pd.DataFrame:
    """Return one row per complete condition of an experiment, in the order of the tables, without sweeps.

    Returns:
        The fields of `metrics.json`, and the columns `folder`, `fit_seconds` (including a gradient that was computed
        for another arm) and `total_seconds` (including the evaluation).

    Raises:
        UsageError: If the folder holds no complete condition, or a file is damaged.
    """
    rows = [_with_seconds(record) for record in _records(experiment) if record["role"] != "sweep"]
    if not rows:
        raise UsageError(
            f"No results in {experiment}: there is no <dataset>/<arm>/seed<k>/{METRICS_FILE}. Make them: influence "
            "experiment"
        )
    return pd.DataFrame(rows)


def _records(experiment: Path) -> list[dict[str, Any]]:
    """Return the records of all complete conditions with their `folder`, in the order of the tables."""
    files = experiment.glob(f"*/*/seed*/{METRICS_FILE}")
    return sorted((read_metrics(file) | {"folder": file.parent} for file in files), key=sort_key)


def _with_seconds(record: dict[str, Any]) -> dict[str, Any]:
    seconds = record["seconds"]
    shared = seconds.get("gradient", 0) if record.get("gradient_shared") else 0
    fit = seconds.get("fit", 0) + shared
    # a metric that the registry got after the condition was made comes from its predictions
    metrics = {} if METRICS.keys() <= record.keys() else stored_metrics(record["folder"])
    return metrics | record | {"fit_seconds": fit, "total_seconds": fit + seconds.get("evaluate", 0)}


def read_evaluations(folders: Iterable[Path]) -> tuple[list[Evaluation], list[str]]:
    """Return the evaluations of conditions, and a sentence for each condition that has none.

    Raises:
        UsageError: If a file is damaged.
    """
    evaluations, left_out = [], []
    for folder in folders:
        if not (folder / PREDICTIONS_FILE).is_file():
            left_out.append(
                f"{'/'.join(folder.parts[-3:])} has no {PREDICTIONS_FILE}: it is left out of the statistics."
            )
            continue
        try:
            evaluations.append(read_evaluation(folder))
        except DivergedError as error:
            left_out.append(f"{error} It is left out of the statistics.")
    return evaluations, left_out


def load_sweeps(experiment: Path) -> pd.DataFrame:
    """Return one row per mask of the sweeps, with `unmasked_<metric>` for the model without a mask.

    Raises:
        UsageError: If a file lacks what a sweep records.
    """
    rows: list[dict[str, Any]] = []
    for record in _records(experiment):
        if record["role"] == "sweep":
            unmasked, points = read_sweep(record["folder"] / SWEEP_FILE)
            names = {name: record[name] for name in ("dataset", "arm", "seed")}
            empty = dict.fromkeys(METRICS, float("nan"))
            flat = {f"unmasked_{name}": value for name, value in (empty | unmasked).items()}
            rows += [names | empty | point | flat for point in points]
    return pd.DataFrame(rows)


def load_curves(results: pd.DataFrame) -> pd.DataFrame:
    """Return the headline metric on dev and the training loss by step, one row per logged point."""
    rows = [
        {"dataset": run.dataset, "arm": run.arm, "seed": run.seed, "curve": curve, "step": step, "value": value}
        for run in results.itertuples()
        if any(run.folder.glob("events.out.tfevents.*"))
        for curve, points in _read_curves(run.folder).items()
        for step, value in points.items()
    ]
    return pd.DataFrame(rows, columns=["dataset", "arm", "seed", "curve", "step", "value"])


def _read_curves(folder: Path) -> dict[str, dict[int, float]]:
    """Return the value at each step by curve; if a fit was resumed, the later value of a step counts."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    tags = events.Tags()[SCALARS]
    curves = {curve: events.Scalars(tag) for tag, curve in CURVE_TITLES.items() if tag in tags}
    return {curve: {event.step: event.value for event in points} for curve, points in curves.items()}
