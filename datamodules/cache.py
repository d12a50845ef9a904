"""Tables on disk with a digest; a damaged one is built again."""

import hashlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def table_digest(table: pa.Table) -> str:
    """Return the sha256 of the names and values of all columns, independent of their chunks."""
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode() + b"\0")
        for chunk in _values(table.column(name)):
            digest.update(chunk)
    return digest.hexdigest()


def text_digest(*texts: str) -> str:
    """Return the sha256 of several texts; their lengths separate them."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()


def cached_table(path: Path, key: Mapping[str, str], build: Callable[[], pa.Table]) -> pa.Table:
    """Return the table at `path` if it was written for `key` and is intact; otherwise build and write it.

    Args:
        path: A Parquet file; its folder is made if needed.
        key: What the table is made from; kept in the file's schema metadata with a digest of the content.
        build: Makes the table.
    """
    if path.exists():
        try:
            return _read(path, key)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as err:
            rank_zero_warn(f"The cache file {path} is damaged ({err}) and is built again.")
    table = build()
    _write(table.replace_schema_metadata({**key, "digest": _content_digest(table)}), path)
    return table


def _content_digest(table: pa.Table) -> str:
    """Return a digest of names, values and, unlike `table_digest`, types: 1 is not 1.0."""
    return text_digest(table_digest(table), *map(_type_name, table.schema.types))


def _type_name(kind: pa.DataType) -> str:
    """Return the name of a type; for a list that of its values, because Parquet renames the list's item field."""
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


def _values(column: pa.ChunkedArray) -> list[memoryview | bytes]:
    """Return the values of a column without nulls as buffers; for text and lists the lengths, then the content."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        lengths = pc.binary_length(column).cast(pa.int64()).to_numpy()
        return [lengths.tobytes(), *(_text_bytes(chunk) for chunk in column.chunks)]
    if pa.types.is_list(column.type):
        lengths = pc.list_value_length(column).to_numpy()
        return [lengths.tobytes(), *_values(pc.list_flatten(column))]
    return [column.to_numpy().tobytes()]


def _text_bytes(chunk: pa.Array) -> memoryview:
    """Return the UTF-8 bytes of one chunk, concatenated, without a copy."""
    chunk = chunk.cast(pa.large_string())
    _, offsets, data = chunk.buffers()
    bounds = memoryview(offsets).cast("q")[chunk.offset : chunk.offset + len(chunk) + 1]
    return memoryview(data or b"")[bounds[0] : bounds[-1]]


def _read(path: Path, key: Mapping[str, str]) -> pa.Table:
    """Read a table and check that it was written for `key`."""
    table = pq.read_table(path, partitioning=None)  # otherwise a folder named a=b becomes a column
    metadata = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    if metadata != {**key, "digest": _content_digest(table)}:
        raise ValueError("its content does not match its digest")
    return table


def _write(table: pa.Table, path: Path) -> None:
    """Write a table to a temporary file and rename it, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        pq.write_table(table, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
