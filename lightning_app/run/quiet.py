"""Leaves out what Lightning and transformers print in every run."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # rows are tokenized beforehand: a worker would have nothing to do
    ".*smaller than the logging interval.*",
    ".*module\\(s\\) in eval mode at the start of training.*",  # a frozen backbone
    ".*this fit will run with no optimizer.*",  # `tune: none`
    ".*Checkpoint directory .* exists and is not empty.*",  # a fit that is resumed
    ".*treespec, LeafSpec.*",
    ".*is_gradient_checkpointing.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's messages about each run; our own warnings and those of torch stay."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "transformers")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
