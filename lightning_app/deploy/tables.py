"""A user's tables: CSV, JSON lines and Parquet, by the ending of the file's name."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from datamodules.files import read_table
from lightning_app.errors import UsageError
from lightning_app.results.files import write_atomically


def read_user_table(path: Path) -> pa.Table:
    """Read all rows and columns of a file, as training does.

    Raises:
        UsageError: If the file has another ending.
        DataError: If it is missing, or is not what its ending says.
    """
    file_format, _ = _format(path)
    return read_table(path, file_format)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a file atomically.

    Raises:
        UsageError: If the file has another ending, or its format cannot hold a column.
    """
    _, write = _format(path)
    try:
        write_atomically(path, lambda temporary: write(table, temporary))
    except (pa.ArrowException, TypeError) as error:
        raise UsageError(f"{path} could not be written as {path.suffix}: {error}. Choose another format.") from error


def check_ending(path: Path) -> None:
    """Refuse the name of a file that could not be written.

    Raises:
        UsageError: If its ending is none of the three.
    """
    _format(path)


def _format(path: Path) -> tuple[str, Callable[[pa.Table, Path], None]]:
    if path.suffix not in TABLE_FORMATS:
        raise UsageError(f"{path} should be a table, but its name ends in none of {', '.join(TABLE_FORMATS)}.")
    return TABLE_FORMATS[path.suffix]


def _write_json_lines(table: pa.Table, path: Path) -> None:
    """Write one object per line; dates and decimals, which JSON does not have, become text."""
    with path.open("w", encoding="utf-8") as file:
        for row in table.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


TABLE_FORMATS: dict[str, tuple[str, Callable[[pa.Table, Path], None]]] = {
    ".csv": ("csv", pyarrow.csv.write_csv),
    ".jsonl": ("json", _write_json_lines),
    ".parquet": ("parquet", pyarrow.parquet.write_table),
}
