"""What an evaluation measures: accuracy, macro-F1, calibration error and negative log-likelihood."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score


class Measures:
    """Accuracy, macro-F1, expected calibration error (15 bins) and mean NLL (nats) over the batches of an epoch.

    Not a module: where the model moves to XLA, which lacks operators that metrics need, they stay on the CPU.

    Args:
        num_labels: Number of classes.
    """

    def __init__(self, num_labels: int) -> None:
        self._scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_labels, average="micro"),
                "macro_f1": MulticlassF1Score(num_labels, average="macro"),
                "ece": MulticlassCalibrationError(num_labels, n_bins=15),
            }
        )
        self._nll = MeanMetric()

    def begin(self, device: torch.device) -> None:
        """Forgets what was measured, and goes to where the model is."""
        for metric in (self._scores, self._nll):
            metric.to("cpu" if device.type == "xla" else device)
            metric.reset()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Takes a batch: logits `[batch, num_labels]` and labels `[batch]`; a label below 0 is no row."""
        logits, labels = logits.to(self._nll.device), labels.to(self._nll.device)
        logits, labels = logits[labels >= 0], labels[labels >= 0]
        self._scores.update(logits.softmax(-1), labels)
        self._nll.update(cross_entropy(logits, labels, reduction="none"))

    def compute(self) -> dict[str, Tensor]:
        """Every measure by name, over all batches of all processes."""
        return {**self._scores.compute(), "nll": self._nll.compute()}
