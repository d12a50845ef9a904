"""Files of results: written whole or not at all, read back into one table."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_app.errors import UsageError

FIT_FILE, METRICS_FILE, PREDICTIONS_FILE = "fit.json", "metrics.json", "predictions.parquet"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object atomically."""
    text = json.dumps(content, indent=2, allow_nan=True) + "\n"
    _write_atomically(path, lambda temporary: temporary.write_text(text))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file atomically."""
    _write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    _write_atomically(path, lambda temporary: temporary.write_text(text))


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


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


def load_results(experiment: Path) -> pd.DataFrame:
    """One row a complete condition of `<outputs>/<experiment>`, in the order of dataset, arm and seed.

    Raises:
        UsageError: If the folder holds no complete condition.
    """
    files = sorted(experiment.glob(f"*/*/seed*/{METRICS_FILE}"))
    if not files:
        raise UsageError(
            f"No results in {experiment}: asked for <dataset>/<arm>/seed<k>/{METRICS_FILE}, found none. "
            "Make them: influence experiment"
        )
    rows = [read_json(file) for file in files]
    missing = [str(file) for file, row in zip(files, rows, strict=True) if not {"dataset", "arm", "seed"} <= row.keys()]
    if missing:
        raise UsageError(f"{missing[0]} names no dataset, arm and seed. Delete it and run the condition again.")
    return pd.DataFrame(rows).sort_values(["dataset", "arm", "seed"], ignore_index=True)
