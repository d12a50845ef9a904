"""Tables in CSV, JSON lines and Parquet files, read without guessing types: what is text in the file stays that text.

Training and `influence predict` both read by this module, so that they give the tokenizer the same texts.
"""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datamodules.errors import DataError

ROWS_AT_A_TIME = 2**14
LONGEST_FIELD = 2**31 - 1
"""Characters; the `csv` module allows 131,072 unless told otherwise."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")

Columns = Sequence[str] | None


def read_table(path: Path, file_format: str, columns: Columns = None) -> pa.Table:
    """Read a file: the given columns, or all of them.

    All columns of a CSV file are text, and an empty field is an empty text. JSON and Parquet values keep their types.

    Raises:
        DataError: If the file is missing, is not what `file_format` says, lacks a column or has a column twice.
    """
    title, read = FORMATS[file_format]
    try:
        return read(path, columns)
    except FileNotFoundError as err:
        raise DataError(f"There is no file {path}.") from err
    except UnicodeDecodeError as err:
        raise DataError(f"Cannot read {path} as {title}: {_encoding_fault(path)}") from err
    except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError) as err:
        raise DataError(f"Cannot read {path} as {title}: {err}") from err


def find_files(patterns: str | Sequence[str]) -> list[Path]:
    """Return the files that paths, patterns with `*`, `?` or `**`, and addresses of files name.

    A `[` is part of a name, unless there is no file of that name. What is compressed or elsewhere is fetched into the
    cache of `datasets`.

    Raises:
        DataError: If there is no such file.
    """
    names = [patterns] if isinstance(patterns, str) else patterns
    return [path for name in names for path in _find(name)]


def _find(name: str) -> list[Path]:
    if "://" in name:
        return [_fetch(name)]
    for pattern in (name.replace("[", "[[]"), name):
        paths = map(Path, sorted(glob(pattern, recursive=True)))  # noqa: PTH207, Path.glob takes no absolute pattern
        if found := [path for path in paths if not path.is_dir()]:
            return [_fetch(str(path)) if path.suffix in COMPRESSED else path for path in found]
    raise DataError(f"There is no file {name}. Check data_files; paths start at the folder that you run in.")


def _fetch(name: str) -> Path:
    from datasets import DownloadManager  # takes a second, which files at hand need not spend

    try:
        return Path(cast(str, DownloadManager().download_and_extract(name)))
    except Exception as err:  # each protocol and each compression has exceptions of its own
        raise DataError(f"Cannot fetch {name} ({type(err).__name__}: {err}). Check data_files.") from err


def text_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column as large_string, with an empty text where it has none; numbers are written out.

    Raises:
        DataError: If the column holds lists, objects or bytes that are not UTF-8.
    """
    column = table.column(name)
    try:
        return pc.fill_null(column.cast(pa.large_string()), "")
    except pa.ArrowException as err:
        raise DataError(f"The column {name!r} is not text but {column.type} ({err}). Name a column with text.") from err


def class_names(table: pa.Table, column: str) -> list[str] | None:
    """Return the names that `datasets` wrote into a Parquet file for the numbers of a column, if it did.

    Raises:
        DataError: If what is written there is damaged.
    """
    written = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(written).get("info", {}).get("features", {}).get(column, {})
        return list(map(str, feature["names"])) if feature.get("_type") == "ClassLabel" else None
    except (ValueError, AttributeError, KeyError, TypeError) as err:
        raise DataError(
            f"The 'huggingface' metadata of the Parquet file is damaged ({err!r}). Write it again."
        ) from err


def _chosen(names: Sequence[str], columns: Columns) -> list[str]:
    """Return the names of the columns to read.

    Raises:
        ValueError: If one is missing, or a name is there twice.
    """
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"it has several columns called {repeated}. Give each a name of its own.")
    missing = [name for name in columns or [] if name not in names]
    if missing:
        raise ValueError(f"it has no column {missing}, only {list(names)}. Set text_columns and label_column.")
    return list(dict.fromkeys(names if columns is None else columns))


def _encoding_fault(path: Path) -> str:
    """Return where a file is not UTF-8."""
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as err:
        line, byte = content.count(b"\n", 0, err.start) + 1, content[err.start]
        found = f"line {line} has the byte 0x{byte:02X}, which is not UTF-8 but perhaps Latin-1 or Windows-1252."
        return f"{found} Save it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8 {path}"
    return "it changed while it was read. Try again."


def _open(path: Path) -> TextIO:
    """Open a text file in UTF-8; UTF-16 must be refused here, as it can be valid UTF-8 with many NULs."""
    with path.open("rb") as file:
        start = (file.read(1000).splitlines() or [b""])[0]
    if b"\0" in start or start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        wide = start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE))
        encoding = "UTF-32" if wide else "UTF-16"
        raise ValueError(f"it is {encoding}. Save it as UTF-8: iconv -f {encoding} -t UTF-8 {path}")
    return path.open(encoding="utf-8-sig", newline="")


def _read_csv(path: Path, columns: Columns) -> pa.Table:
    csv.field_size_limit(LONGEST_FIELD)
    with _open(path) as file:
        rows = _csv_rows(csv.reader(file, strict=True))
        names = next(rows, None)
        if names is None:
            raise ValueError("it is empty. Its first line must name the columns.")
        places = [names.index(name) for name in _chosen(names, columns)]
        schema = pa.schema([(names[place], pa.large_string()) for place in places])
        batches = []
        while part := list(islice(rows, ROWS_AT_A_TIME)):
            texts = [pa.array([row[place] for row in part], pa.large_string()) for place in places]
            batches.append(pa.record_batch(texts, schema))
    return pa.Table.from_batches(batches, schema)


def _csv_rows(reader: Any) -> Iterator[list[str]]:
    """Yield the rows that are not empty, the names of the columns first; all must have as many fields."""
    width, line = 0, 1
    try:
        for row in reader:
            if row and len(row) != (width := width or len(row)):
                raise ValueError(
                    f"line {line} has {len(row)} fields, but the first has {width}. "
                    "Put a field with a comma, a quote or a line break into double quotes."
                )
            if row:
                yield row
            line = reader.line_num + 1
    except csv.Error as err:
        raise ValueError(f"line {line}: {err}. Write a double quote within a quoted field twice.") from err


def _read_json(path: Path, columns: Columns) -> pa.Table:
    """Read one JSON object per line, or one array of objects."""
    with _open(path) as file:
        text = file.read()
    if text.lstrip().startswith("["):
        rows = [(f"object {number}", row) for number, row in enumerate(_json(text, "the array"), 1)]
    else:
        lines = ((f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        rows = [(place, _json(line, place)) for place, line in lines]
    for place, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{place} is not a JSON object. Write one object per line.")
    names = dict.fromkeys(name for _, row in rows for name in row)
    return pa.table({name: _json_column(name, rows) for name in _chosen(list(names), columns)})


def _json(text: str, place: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{place}: {err}") from err


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return content


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def _json_column(name: str, rows: list[tuple[str, dict[str, Any]]]) -> pa.Array:
    """Return a column, whose values must be of one kind; integers and other numbers are one kind."""
    values = [row.get(name) for _, row in rows]
    kinds = [_kind(value) for value in values]
    first = next((kind for kind in kinds if kind), None)
    for (place, _), kind in zip(rows, kinds, strict=True):
        if kind not in (first, None):
            raise ValueError(f"the column {name!r} has a {first} first, but a {kind} in {place}. Write all alike.")
    try:
        return pa.array(values, pa.large_string() if first == "text" else None)
    except (pa.ArrowException, ValueError, OverflowError) as err:
        raise ValueError(f"the column {name!r} cannot be held in a table: {err}") from err


def _kind(value: Any) -> str | None:
    kinds = {str: "text", bool: "truth value", int: "number", float: "number", list: "list", dict: "object"}
    return kinds.get(type(value))


def _read_parquet(path: Path, columns: Columns) -> pa.Table:
    """Read one file; unlike `pyarrow.parquet.read_table`, this takes no columns from the names of folders."""
    with pq.ParquetFile(path) as file:
        chosen = _chosen(file.schema_arrow.names, columns)
        return file.read().select(chosen)


FORMATS: dict[str, tuple[str, Callable[[Path, Columns], pa.Table]]] = {
    "csv": ("CSV", _read_csv),
    "json": ("JSON lines", _read_json),
    "parquet": ("Parquet", _read_parquet),
}
