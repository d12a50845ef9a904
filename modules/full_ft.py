"""Arm D: every weight trains."""

from modules.classifier import Classifier


class FullFineTuning(Classifier):
    """Full fine-tuning from the baseline start; early stopping is the Trainer's."""
