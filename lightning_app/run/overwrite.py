"""What is complete stays as it is unless the user gives `--overwrite`."""

from pathlib import Path

from lightning_app.errors import UsageError
from lightning_app.results.files import FIT_FILE, METRICS_FILE

LAST_WRITTEN = {"fit": (METRICS_FILE, FIT_FILE), "validate": (METRICS_FILE,), "test": (METRICS_FILE,)}
"""By command: the files whose presence says that what it would replace is complete. They are written last."""


def is_complete(command: str, run: Path) -> bool:
    """Return whether a run's folder holds complete results that a command would replace."""
    return any((run / name).exists() for name in LAST_WRITTEN[command])


def check_overwrite(command: str, run: Path, overwrite: bool) -> None:
    """Refuse to replace complete results.

    Raises:
        UsageError: If there are such results, and `overwrite` is not set.
    """
    if is_complete(command, run) and not overwrite:
        raise UsageError(
            f"{run} holds complete results, which `influence {command}` would replace. Give this run an --experiment "
            "of its own, or --overwrite what is there."
        )
