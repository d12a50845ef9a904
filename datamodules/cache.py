"""Tables on disk that are rebuilt, never believed, when they are not what was written."""

import hashlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def table_digest(table: pa.Table) -> str:
    """Returns the sha256 of the names and values of all columns, whatever the chunks they are stored in."""
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode() + b"\0")
        for chunk in _values(table.column(name)):
            digest.update(chunk)
    return digest.hexdigest()


def text_digest(*texts: str) -> str:
    """Returns the sha256 of several texts, told apart by their lengths."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()


def cached_table(path: Path, key: Mapping[str, str], build: Callable[[], pa.Table]) -> pa.Table:
    """Returns the table at ``path`` if it was written for ``key`` and is whole, else builds and writes it.

    Args:
        path: a parquet file; its folder is made if need be.
        key: what the table was made from, kept in the file's schema metadata beside a digest of its content.
        build: makes the table when there is none to read.
    """
    if path.exists():
        try:
            return _read(path, key)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as err:
            rank_zero_warn(f"The cache file {path} is damaged ({err}): it is built again.")
    table = build()
    _write(table.replace_schema_metadata({**key, "digest": _content_digest(table)}), path)
    return table


def _content_digest(table: pa.Table) -> str:
    """Returns a digest of names, values and, other than :func:`table_digest`, types: 1 is not 1.0."""
    return text_digest(table_digest(table), *map(_type_name, table.schema.types))


def _type_name(kind: pa.DataType) -> str:
    """Returns the name of a type; a list's is that of its values, whose name in a schema Parquet changes."""
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


def _values(column: pa.ChunkedArray) -> list[memoryview | bytes]:
    """Returns the values of a column without nulls as buffers: lengths and then content, for text and lists."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        lengths = pc.binary_length(column).cast(pa.int64()).to_numpy()
        return [lengths.tobytes(), *(_text_bytes(chunk) for chunk in column.chunks)]
    if pa.types.is_list(column.type):
        lengths = pc.list_value_length(column).to_numpy()
        return [lengths.tobytes(), *_values(pc.list_flatten(column))]
    return [column.to_numpy().tobytes()]


def _text_bytes(chunk: pa.Array) -> memoryview:
    """Returns the UTF-8 bytes of one chunk, end to end, without copying them."""
    chunk = chunk.cast(pa.large_string())
    _, offsets, data = chunk.buffers()
    bounds = memoryview(offsets).cast("q")[chunk.offset : chunk.offset + len(chunk) + 1]
    return memoryview(data or b"")[bounds[0] : bounds[-1]]


def _read(path: Path, key: Mapping[str, str]) -> pa.Table:
    """Reads a table and checks that it is the one that was written for ``key``."""
    table = pq.read_table(path, partitioning=None)  # else a folder named a=b would become a column
    metadata = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    if metadata != {**key, "digest": _content_digest(table)}:
        raise ValueError("its content does not match its digest")
    return table


def _write(table: pa.Table, path: Path) -> None:
    """Writes a table under a name of its own and renames it, so that a reader meets all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        pq.write_table(table, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
