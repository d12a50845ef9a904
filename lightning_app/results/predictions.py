"""The predictions of a condition: read, checked against its metrics, and reduced to one value per row and metric."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pyarrow import ArrowException
from scipy.special import log_softmax

from lightning_app.errors import UsageError
from lightning_app.results.files import METRICS_FILE, PREDICTIONS_FILE, RERUN
from lightning_app.results.metrics import METRICS, Metric, compute_metrics
from lightning_app.results.records import read_metrics
from lightning_app.results.row_values import jackknife


class DivergedError(UsageError):
    """A model's logits are not numbers."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A condition's predictions as statistics need them.

    Attributes:
        rows: Row ids [rows], ascending.
        labels: Classes [rows].
        metrics: Every metric of the registry over all rows.
        values: For each metric one value per row, float32 [rows]: the metric plus the row's first-order effect on it.
    """

    dataset: str
    arm: str
    seed: int
    rows: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]
    values: dict[str, np.ndarray]

    def __str__(self) -> str:
        return f"{self.dataset}/{self.arm}/seed{self.seed}"


def evaluate(
    dataset: str,
    arm: str,
    seed: int,
    rows: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    recorded: Mapping[str, float] | None = None,
) -> Evaluation:
    """Compute every metric, and its row values, from the predictions of a condition.

    Args:
        dataset: Its name.
        arm: Its label.
        seed: The condition's.
        rows: Row ids [rows], in any order.
        labels: Classes [rows], from 0.
        logits: [rows, classes], taken as float32.
        recorded: Metrics that the predictions must give.

    Raises:
        UsageError: If shapes disagree, there are no rows or repeated ones, a label has no logit, the predictions do not
            give the recorded metrics, or a logit is not finite.
    """
    where = f"{PREDICTIONS_FILE} of {dataset}/{arm}/seed{seed}"
    rows, labels, logits = _checked(where, *map(np.asarray, (rows, labels, logits)))
    metrics = _measure(labels, logits)
    _check_agreement(where, metrics, recorded or {})
    if not np.isfinite(logits).all():
        bad = np.flatnonzero(~np.isfinite(logits).all(1))
        raise DivergedError(
            f"{where}: {len(bad)} of {len(rows)} rows have a logit that is NaN or infinite, the first is row "
            f"{rows[bad[0]]}. The model diverged: lower its learning rate, or leave the condition out."
        )
    # one column per class in memory (Fortran order): three times as fast
    log_probabilities = log_softmax(np.asfortranarray(logits, np.float64), axis=1)
    values = {
        name: _row_values(metric, rows, labels, logits, log_probabilities).astype(np.float32)
        for name, metric in METRICS.items()
    }
    return Evaluation(dataset, arm, seed, rows, labels, metrics, values)


def read_evaluation(folder: Path) -> Evaluation:
    """Read and evaluate the predictions in the folder of a condition.

    Raises:
        UsageError: If a file is missing, damaged or lacks what is needed, the two disagree, or as `evaluate` does.
    """
    missing = [name for name in (METRICS_FILE, PREDICTIONS_FILE) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} has no {' and no '.join(missing)}. {RERUN}")
    record = read_metrics(folder / METRICS_FILE)
    rows, labels, logits = read_predictions(folder / PREDICTIONS_FILE)
    if len(rows) != (size := record["split_sizes"].get("eval", len(rows))):
        raise UsageError(f"{folder / PREDICTIONS_FILE} has {len(rows)} rows, but {METRICS_FILE} has {size}. {RERUN}")
    recorded = {name: record[name] for name in METRICS if name in record}
    return evaluate(record["dataset"], record["arm"], record["seed"], rows, labels, logits, recorded)


def stored_metrics(folder: Path) -> dict[str, float]:
    """Return every metric of the registry, computed from the predictions in the folder of a condition.

    Raises:
        UsageError: If they are missing or damaged.
    """
    path = folder / PREDICTIONS_FILE
    return _measure(*_checked(str(path), *read_predictions(path))[1:])


def read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read rows [n], labels [n] and logits [n, classes]; a file must have the types that a run writes.

    Raises:
        UsageError: If the file is damaged.
    """
    try:
        # without partitioning=None a folder named a=b would become a column
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
        columns = [table.column(name) for name in ("row", "label", "logits")]
    except (ArrowException, KeyError, OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged or incomplete ({error}). {RERUN}") from error
    kinds = [str(column.type).partition("<")[0] for column in columns]
    numbers = getattr(columns[2].type, "value_type", None)
    if kinds != ["int64", "int64", "list"] or numbers != pa.float64() or any(c.null_count for c in columns):
        raise UsageError(
            f"{path} has columns {table.schema.types}, but row and label must be int64 and logits lists of double, "
            f"without nulls. {RERUN}"
        )
    widths = pc.unique(pc.list_value_length(columns[2])).to_pylist()
    flat = pc.list_flatten(columns[2])
    if len(widths) != 1 or not widths[0] or flat.null_count:
        raise UsageError(f"{path} has rows of {sorted(widths)} logits. {RERUN}")
    return columns[0].to_numpy(), columns[1].to_numpy(), flat.to_numpy().reshape(-1, widths[0])


def _checked(
    where: str, rows: np.ndarray, labels: np.ndarray, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows in ascending order, with logits as float32."""
    is_whole = all(np.issubdtype(column.dtype, np.integer) for column in (rows, labels))
    if logits.ndim != 2 or not rows.shape == labels.shape == logits.shape[:1] or not rows.size or not is_whole:
        raise UsageError(
            f"{where} needs integer rows [n] and labels [n] and logits [n, classes], n > 0, found {rows.dtype} "
            f"{rows.shape}, {labels.dtype} {labels.shape} and {logits.shape}. {RERUN}"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1] or logits.shape[1] < 2:
        raise UsageError(
            f"{where} has {logits.shape[1]} logits per row and labels from {labels.min()} to {labels.max()}, but needs "
            f"two classes or more and one logit for each. {RERUN}"
        )
    order = np.argsort(rows, kind="stable")
    rows, labels = rows[order], labels[order]
    if (repeated := rows[1:][rows[1:] == rows[:-1]]).size:
        raise UsageError(f"{where} has row {repeated[0]} more than once. {RERUN}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused
        return rows, labels.astype(np.int64), logits[order].astype(np.float32)


def _measure(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    return compute_metrics(torch.from_numpy(labels), torch.from_numpy(logits))


def _check_agreement(where: str, metrics: Mapping[str, float], recorded: Mapping[str, float]) -> None:
    """Raise `UsageError` unless predictions give the recorded metrics, up to the order of sums."""
    for name, value in recorded.items():
        if not np.isclose(metrics[name], value, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise UsageError(f"{where} gives {name} {metrics[name]:.6g}, but {METRICS_FILE} has {value:.6g}. {RERUN}")


def _row_values(
    metric: Metric, rows: np.ndarray, labels: np.ndarray, logits: np.ndarray, log_probabilities: np.ndarray
) -> np.ndarray:
    if metric.row_values is not None:
        return metric.row_values(labels, log_probabilities)
    function, targets, scores = metric.function, torch.from_numpy(labels), torch.from_numpy(logits)
    return jackknife(rows, lambda chosen: float(function(targets[chosen], scores[chosen])))
