"""The registry of metrics: their values are those of torchmetrics, and each shows itself in its unit."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from lightning_app.results.metrics import (
    HEADLINE,
    METRICS,
    Metric,
    chance_levels,
    compute_metrics,
    no_better_than_chance,
)

GENERATOR = torch.Generator().manual_seed(0)


def draw(rows: int, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(classes, (rows,), generator=GENERATOR)
    return labels, 3 * torch.randn(rows, classes, generator=GENERATOR)


def test_metrics_are_those_of_torchmetrics():
    labels, logits = draw(200)
    assert compute_metrics(labels, logits) == {
        "accuracy": float(multiclass_accuracy(logits, labels, 5, average="micro")),
        "macro_f1": float(multiclass_f1_score(logits, labels, 5, average="macro")),
        "nll": float(cross_entropy(logits, labels)),
        "ece": float(multiclass_calibration_error(logits.softmax(-1), labels, 5, n_bins=15)),
    }


def test_logits_of_lower_precision_are_measured_in_float32():
    labels, logits = draw(50)
    half = logits.bfloat16()
    assert compute_metrics(labels, half) == compute_metrics(labels, half.float())


def test_a_model_that_is_certain_is_in_the_last_bin_of_the_calibration_error():
    """One row 95 % sure and right, one wrongly certain: |0.05 - 1| / 2, not (0.05 + 1) / 2."""
    labels, logits = torch.tensor([0, 1]), torch.tensor([[np.log(19), 0.0], [1000.0, 0.0]])
    assert compute_metrics(labels, logits)["ece"] == pytest.approx(0.475)


def test_the_headline_is_in_the_registry_and_every_entry_stands_under_its_name():
    assert HEADLINE in METRICS
    assert [metric.name for metric in METRICS.values()] == list(METRICS)


@pytest.mark.parametrize(
    ("name", "value", "is_possible"),
    [
        ("accuracy", 1.0, True),
        ("accuracy", 1.5, False),
        ("accuracy", -0.1, False),
        ("accuracy", float("nan"), False),
        ("nll", 3.0, True),
        ("nll", float("inf"), True),
        ("nll", float("nan"), True),
        ("nll", -1e-9, False),
    ],
)
def test_values_that_a_metric_cannot_have_are_known(name, value, is_possible):
    assert METRICS[name].admits(value) is is_possible


def test_a_metric_says_its_value_in_its_unit():
    accuracy, nll = METRICS["accuracy"], METRICS["nll"]
    assert (accuracy.show(0.7346), nll.show(0.7346)) == ("73.5", "0.735")
    assert (accuracy.describe(0.73), nll.describe(0.73)) == ("accuracy 73.0%", "NLL 0.730 nats")
    assert (accuracy.heading, nll.heading) == ("accuracy %", "NLL")
    assert (accuracy.axis, nll.axis) == ("accuracy, %", "NLL, nats")
    assert (accuracy.difference_unit, nll.difference_unit) == ("points", "nats")
    assert accuracy.show(float("nan")) == ""


def test_a_metric_needs_no_bounds_and_no_influence_function():
    metric = Metric("x", "x", "bits", 1, 2, True, lambda labels, logits: labels.sum())
    assert all(map(metric.admits, (-1e9, 1e9, float("nan"))))


def test_chance_is_what_the_shares_of_the_classes_allow():
    labels = torch.tensor([0, 0, 0, 2])
    constant, uniform = torch.eye(3)[[0] * 4], torch.zeros(4, 3)
    levels = chance_levels(labels.numpy(), 3)
    assert levels["accuracy"] == compute_metrics(labels, constant)["accuracy"] == 0.75
    assert levels["nll"] == pytest.approx(compute_metrics(labels, uniform)["nll"])
    assert levels.keys() == {name for name, metric in METRICS.items() if metric.chance}


@pytest.mark.parametrize(
    ("accuracy", "nll", "said"),
    [
        (0.9, 0.3, ""),
        (0.51, 0.69, ""),
        (0.49, 0.3, "accuracy 49.0% (by chance: 51.0)"),
        (0.9, 4.1, "NLL 4.100 nats (by chance: 0.690)"),
        (0.49, float("nan"), "accuracy 49.0% (by chance: 51.0) and NLL NaN (by chance: 0.690)"),
    ],
)
def test_a_condition_that_is_no_better_than_chance_is_named_with_both_values(accuracy, nll, said):
    record = {"accuracy": accuracy, "nll": nll, "chance": {"accuracy": 0.51, "nll": 0.69, "gone": 1.0}}
    assert no_better_than_chance(record) == said
    assert no_better_than_chance({"accuracy": accuracy}) == ""  # of an earlier version
