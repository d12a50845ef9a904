"""Files of results: written whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_app.errors import UsageError

if TYPE_CHECKING:
    import pyarrow

FIT_FILE, METRICS_FILE = "fit.json", "metrics.json"
PREDICTIONS_FILE, MASK_FILE, SWEEP_FILE = "predictions.parquet", "mask.safetensors", "sweep.json"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object atomically."""
    text = json.dumps(content, indent=2, allow_nan=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_parquet(path: Path, table: "pyarrow.Table") -> None:
    """Writes a Parquet file atomically."""
    from pyarrow.parquet import write_table

    write_atomically(path, lambda temporary: write_table(table, temporary))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Has a file written under a name of its own, and renamed once it is whole and on the disk.

    Args:
        path: The file; its folder is made if missing.
        write: Writes it to the path that it is given.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UsageError: If the file holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a JSON file ({error}). Delete it and run the condition again.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no JSON object. Delete it and run the condition again.")
    return content
