"""Masks: their bits, their files, and how they are enforced during training."""
