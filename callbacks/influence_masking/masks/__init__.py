"""Masks: bits, files, and holding them during training."""
