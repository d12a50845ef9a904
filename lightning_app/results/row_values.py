"""One value per row and metric: their mean is the metric, and their spread gives its standard error.

A row value is the metric plus the row's influence function, the first-order effect of the row on the metric. A resample
is then a weighted mean, and all metrics share one set of weights. The standard error is that of the infinitesimal
jackknife (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 6).

All functions take labels [rows] and log-probabilities [rows, classes], and return float [rows].
"""

from collections.abc import Callable

import numpy as np

ECE_BINS = 15
JACKKNIFE_GROUPS = 100
"""Groups of rows in a jackknife; with 100 the standard error is accurate to about 7 %."""


def row_accuracy(labels: np.ndarray, log_probabilities: np.ndarray) -> np.ndarray:
    """Return 1 where the most probable class is the label, 0 elsewhere."""
    return (log_probabilities.argmax(1) == labels).astype(float)


def row_nll(labels: np.ndarray, log_probabilities: np.ndarray) -> np.ndarray:
    """Return minus the log-probability of the label, in nats."""
    return -log_probabilities[np.arange(len(labels)), labels]


def row_macro_f1(labels: np.ndarray, log_probabilities: np.ndarray) -> np.ndarray:
    """Return macro-F1 plus the influence function of the row.

    Classes that are neither a label nor predicted do not count, as in torchmetrics and scikit-learn.
    """
    num_classes, predicted = log_probabilities.shape[1], log_probabilities.argmax(1)
    hit = predicted == labels
    hits = np.bincount(labels[hit], minlength=num_classes)
    size = np.bincount(labels, minlength=num_classes) + np.bincount(predicted, minlength=num_classes)
    f1 = 2 * hits / np.maximum(size, 1)
    slope = len(labels) / (np.count_nonzero(size) * np.maximum(size, 1))
    return f1[size > 0].mean() + 2 * slope[labels] * hit - (f1 * slope)[labels] - (f1 * slope)[predicted]


def row_ece(labels: np.ndarray, log_probabilities: np.ndarray) -> np.ndarray:
    """Return correctness minus confidence, with the sign of its bin's mean.

    Their mean is the expected calibration error:

    15 bins of equal width, l1 norm (Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3). To first
    order the signs do not change; for nearly calibrated bins this makes intervals slightly too wide.
    """
    gap = row_accuracy(labels, log_probabilities) - (confidence := np.exp(log_probabilities.max(1)))
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    return gap * np.sign(np.bincount(bins, gap, ECE_BINS))[bins]


def jackknife(rows: np.ndarray, measure: Callable[[np.ndarray], float]) -> np.ndarray:
    """Return row values of a metric whose influence function is unknown, by leaving out one group of rows at a time.

    A row's group depends on its id alone, so that two conditions with the same rows have the same groups and the
    difference of their values is that of a jackknife of the difference.

    Args:
        rows: Row ids [rows].
        measure: From a choice of the rows (booleans [rows]) to the metric on them.
    """
    mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)  # Fibonacci hashing
    groups = np.unique(mixed % np.uint64(JACKKNIFE_GROUPS), return_inverse=True)[1]
    sizes, whole = np.bincount(groups), measure(np.ones(len(rows), bool))
    if len(sizes) == 1:
        return np.full(len(rows), whole)
    without = np.array([measure(groups != group) for group in range(len(sizes))])
    # the mean of a group's own values, less the metric; all rows of a group share it, so its square must be that of one
    # row, which is larger by the size of the group
    own = (len(rows) / sizes - 1) * (whole - without)
    return (whole + np.sqrt(sizes) * own)[groups]
