"""Arm D: every weight trains."""

from modules.classifier import Classifier


class FullFineTuning(Classifier):
    """Train every weight, from the head of the baseline; the Trainer stops early."""
