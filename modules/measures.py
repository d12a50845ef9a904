"""What an evaluation measures: accuracy, macro-F1, calibration error and negative log-likelihood."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score


class Measures:
    """Accuracy, macro-F1, expected calibration error (15 bins) and mean NLL (nats) over the batches of an epoch.

    Metrics look at values, for which a GPU must have finished a batch before the next can be sent to it. So batches are
    kept and looked at in the end.

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
        self._batches: list[tuple[Tensor, Tensor]] = []

    def begin(self, device: torch.device) -> None:
        """Forgets what was measured, and goes to where the model is."""
        self._batches = []
        for metric in (self._scores, self._nll):
            metric.to("cpu" if device.type == "xla" else device)
            metric.reset()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Takes a batch: logits `[batch, num_labels]` and labels `[batch]`; a label below 0 is no row."""
        self._batches.append((logits.to(self._nll.device), labels.to(self._nll.device)))

    def compute(self) -> dict[str, Tensor]:
        """Every measure by name, over all batches of all processes."""
        batches = [(logits[labels >= 0], labels[labels >= 0]) for logits, labels in self._batches]
        self._batches = []
        for logits, labels in batches:
            self._nll.update(cross_entropy(logits, labels, reduction="none"))
        if batches:  # a process may have none
            logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
            self._scores.update(logits.softmax(-1), labels)
        return {**self._scores.compute(), "nll": self._nll.compute()}
