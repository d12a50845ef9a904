"""The registry of metrics. Records, statistics, tables, figures, dashboards and model cards iterate over it.

Metrics are computed only here, from predictions. torch is imported inside the functions: the process that starts the
others reads records, and must not load it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf, isinf
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_app.results.row_values import ECE_BINS, row_accuracy, row_ece, row_macro_f1, row_nll

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """A measure of predictions, and how it is shown.

    Attributes:
        name: Its key in records, logs and tables of numbers.
        title: Its name in prose, tables and figures.
        unit: In which it is shown: `%`, a name such as `nats`, or nothing.
        scale: What a value is multiplied by to be shown in this unit.
        decimals: Digits after the point in tables.
        higher_is_better: Which way is better.
        function: From labels [rows] and logits [rows, classes] to a scalar.
        row_values: From labels [rows] and log-probabilities [rows, classes] to one value per row: the metric plus the
            row's first-order effect on it. Their mean is the metric, and their spread gives the standard errors of
            differences. Without a function they come from a jackknife of `function`.
        is_proportion: Whether the row values are 1 for each correct row and 0 for the others; McNemar's test then
            applies.
        low: The smallest possible value.
        high: The largest. NaN is accepted where it is infinite: models diverge.
        chance: From labels [rows] and the number of classes to the value of a model that knows the classes' shares at
            most. None: it has no such value.
        in_tables: Whether the table of arms and the dashboard show it.
        in_figures: Whether the figure of the arms' scores shows it.
        in_sweeps: Whether the table and the figure of a sweep show it.
    """

    name: str
    title: str
    unit: str
    scale: float
    decimals: int
    higher_is_better: bool
    function: Callable[["Tensor", "Tensor"], "Tensor"]
    row_values: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    is_proportion: bool = False
    low: float = -inf
    high: float = inf
    chance: Callable[[np.ndarray, int], float] | None = None
    in_tables: bool = True
    in_figures: bool = True
    in_sweeps: bool = True

    @property
    def heading(self) -> str:
        """The title with the unit, for the columns of tables."""
        return f"{self.title} %" if self.unit == "%" else self.title

    @property
    def axis(self) -> str:
        """The title with the unit, for the axes of figures."""
        return ", ".join(filter(None, (self.title, self.unit)))

    @property
    def difference_unit(self) -> str:
        """The unit of a difference: differences of percentages are in points."""
        return "points" if self.unit == "%" else self.unit

    @property
    def mode(self) -> str:
        """Which way is better, as early stopping and checkpoints take it."""
        return "max" if self.higher_is_better else "min"

    def admits(self, value: float) -> bool:
        """Return whether a value is possible."""
        return self.low <= value <= self.high or (value != value and isinf(self.high))

    def is_at_least_as_good(self, value: float, other: float) -> bool:
        """Return whether a value is no worse than another one; NaN is worse than all."""
        return value >= other if self.higher_is_better else value <= other

    def show(self, value: float) -> str:
        """Return the value as text without its unit; empty if it was not recorded."""
        return "" if np.isnan(value) else f"{self.scale * value:.{self.decimals}f}"

    def describe(self, value: float) -> str:
        """Return the value as a phrase: `accuracy 74.0%`, `NLL 0.512 nats`."""
        return f"{self.title} {self.show(value)} {self.unit}".rstrip().replace(" %", "%")


def accuracy(labels: "Tensor", logits: "Tensor") -> "Tensor":
    """Return the share of the rows whose largest logit is that of the label."""
    from torchmetrics.functional.classification import multiclass_accuracy

    return multiclass_accuracy(logits, labels, logits.shape[1], average="micro")


def macro_f1(labels: "Tensor", logits: "Tensor") -> "Tensor":
    """Return the mean of the classes' F1; classes that are neither a label nor predicted do not count."""
    from torchmetrics.functional.classification import multiclass_f1_score

    return multiclass_f1_score(logits, labels, logits.shape[1], average="macro")


def nll(labels: "Tensor", logits: "Tensor") -> "Tensor":
    """Return the mean negative log-likelihood of the labels, in nats."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, labels)


def ece(labels: "Tensor", logits: "Tensor") -> "Tensor":
    """Return the expected calibration error: 15 bins of equal width, l1 norm (Guo et al., 2017, equation 3)."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics would give confidences of exactly 1 a bin of their own, beyond the last
    probabilities = logits.softmax(-1).clamp(max=1 - 2**-24)
    return multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=ECE_BINS)


def largest_class(labels: np.ndarray, classes: int) -> float:
    """Return the accuracy of always predicting the most frequent class."""
    return float(np.bincount(labels, minlength=classes).max() / len(labels))


def uniform_nll(labels: np.ndarray, classes: int) -> float:
    """Return the NLL of equal probabilities."""
    return float(np.log(classes))


_percentage = partial(Metric, unit="%", scale=100, decimals=1, low=0)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _percentage(
            name="accuracy",
            title="accuracy",
            higher_is_better=True,
            function=accuracy,
            row_values=row_accuracy,
            is_proportion=True,
            high=1,
            chance=largest_class,
        ),
        _percentage(
            name="macro_f1",
            title="macro-F1",
            higher_is_better=True,
            function=macro_f1,
            row_values=row_macro_f1,
            high=1,
            in_sweeps=False,
        ),
        Metric(
            name="nll",
            title="NLL",
            unit="nats",
            scale=1,
            decimals=3,
            higher_is_better=False,
            function=nll,
            row_values=row_nll,
            low=0,
            chance=uniform_nll,
            in_figures=False,
        ),
        _percentage(
            name="ece",
            title="ECE",
            higher_is_better=False,
            function=ece,
            row_values=row_ece,
            in_tables=False,
            in_figures=False,
            in_sweeps=False,
        ),
    )
}
HEADLINE = "accuracy"
"""The metric of verdicts, early stopping and most figures."""


def compute_metrics(labels: "Tensor", logits: "Tensor") -> dict[str, float]:
    """Return every metric of the registry.

    Args:
        labels: Classes [rows], from 0.
        logits: [rows, classes], two classes or more; taken as float32, in which they are computed.
    """
    logits = logits.float()
    return {name: float(metric.function(labels, logits)) for name, metric in METRICS.items()}


def chance_levels(labels: np.ndarray, classes: int) -> dict[str, float]:
    """Return the value by chance of every metric that has one, from labels [rows] and the number of classes."""
    return {name: metric.chance(labels, classes) for name, metric in METRICS.items() if metric.chance}


def no_better_than_chance(record: Mapping[str, Any]) -> str:
    """Return which metrics of a condition are worse than by chance, as a phrase; empty if none is.

    Args:
        record: The content of its `metrics.json`.
    """
    worse = []
    for name, level in record.get("chance", {}).items():
        metric, value = METRICS.get(name), record.get(name)
        if metric and value is not None and not metric.is_at_least_as_good(value, level):
            shown = metric.describe(value) if value == value else f"{metric.title} NaN"
            worse.append(f"{shown} (by chance: {metric.show(level)})")
    return " and ".join(worse)
