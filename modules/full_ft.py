"""Arm D: every weight trains."""

from modules.classifier import Classifier


class FullFineTuning(Classifier):
    """Train every weight, from the baseline start; the Trainer stops early."""
