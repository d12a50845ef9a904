"""A user's tables: CSV, JSON lines and Parquet, by the ending of the file's name."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from lightning_app.errors import UsageError
from lightning_app.results.files import write_atomically

LONGEST_ROW = 2**24
"""Bytes of a CSV file that are read at a time: a row must fit."""


def read_table(path: Path) -> pa.Table:
    """All rows and columns of a file. What is in a CSV file is text, so that it is written as it was read.

    Raises:
        UsageError: If the file is missing, has another ending or is not what its ending says, or has two columns of a
            name.
    """
    read, _ = _format(path)
    try:
        table = read(path)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except (pa.ArrowException, ValueError) as error:
        raise UsageError(f"{path} could not be read as {path.suffix}: {error}") from error
    repeated = [name for name, times in Counter(table.column_names).items() if times > 1]
    if repeated:
        raise UsageError(f"{path} has several columns called {repeated}: give each a name of its own.")
    return table


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a file atomically.

    Raises:
        UsageError: If the file has another ending, or its format cannot hold a column.
    """
    _, write = _format(path)
    try:
        write_atomically(path, lambda temporary: write(table, temporary))
    except (pa.ArrowException, TypeError) as error:
        raise UsageError(f"{path} could not be written as {path.suffix}: {error} Choose another format.") from error


def check_ending(path: Path) -> None:
    """Refuses the name of a file that could not be written.

    Raises:
        UsageError: If its ending is none of the three.
    """
    _format(path)


def _format(path: Path) -> tuple[Callable[[Path], pa.Table], Callable[[pa.Table, Path], None]]:
    if path.suffix not in FORMATS:
        raise UsageError(f"{path} should be a table, but its name ends in none of {', '.join(FORMATS)}.")
    return FORMATS[path.suffix]


def _read_csv(path: Path) -> pa.Table:
    options = {
        "read_options": pyarrow.csv.ReadOptions(block_size=LONGEST_ROW),
        "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
    }
    with pyarrow.csv.open_csv(path, **options) as file:
        as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(file.schema.names, pa.string()))
    return pyarrow.csv.read_csv(path, convert_options=as_text, **options)


def _read_json_lines(path: Path) -> pa.Table:
    """Keeps each value as it is; pyarrow's own reader would turn texts that look like dates into dates."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every line must be one JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _write_json_lines(table: pa.Table, path: Path) -> None:
    """Dates and decimals, which JSON has not, become text."""
    with path.open("w", encoding="utf-8") as file:
        for row in table.to_pylist():
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _read_parquet(path: Path) -> pa.Table:
    return pyarrow.parquet.read_table(path, partitioning=None)  # the names of folders are no columns


FORMATS: dict[str, tuple[Callable[[Path], pa.Table], Callable[[pa.Table, Path], None]]] = {
    ".csv": (_read_csv, pyarrow.csv.write_csv),
    ".jsonl": (_read_json_lines, _write_json_lines),
    ".parquet": (_read_parquet, pyarrow.parquet.write_table),
}
