"""Broken start files, mask files, checkpoints and caches: refused, or rebuilt, or read as if they were whole."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import broken_bytes, broken_values, examples, read_broken

from datamodules.cache import _type_name, cached_table
from modules.checkpoints import read_checkpoint
from modules.start import Start

many = examples(500)


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON header of a safetensors file, and its data."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(header: Any, data: bytes) -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


@pytest.fixture
def start(study: Path) -> Path:
    """Return the file of a head checkpoint."""
    return study / "docstrings" / "baseline" / "seed0" / "start.safetensors"


def check_start(path: Path, content: bytes) -> None:
    """Assert that a broken start is refused by name or is the whole one."""
    whole = Start.load(path)
    found, refusal = read_broken(path, content, Start.load)
    if refusal:
        assert path.name in refusal
        return
    assert found.reference == whole.reference
    assert found.head.keys() == whole.head.keys()
    assert all(torch.equal(found.head[name], whole.head[name]) for name in whole.head)


@many
@given(data=st.data())
def test_a_start_with_broken_bytes_is_refused_or_read_as_it_was(start, data):
    check_start(start, data.draw(broken_bytes(start.read_bytes())))


@many
@given(data=st.data())
def test_a_start_with_a_broken_header_is_refused_or_read_as_it_was(start, data):
    header, weights = header_of(start.read_bytes())
    check_start(start, with_header(data.draw(broken_values(header)), weights))


@many
@given(data=st.data())
def test_a_start_whose_reference_is_broken_is_refused(start, data):
    header, weights = header_of(start.read_bytes())
    reference = json.loads(header["__metadata__"]["start"])
    header["__metadata__"]["start"] = json.dumps(data.draw(broken_values(reference)))
    check_start(start, with_header(header, weights))


CHECKPOINTS = examples(300)


@CHECKPOINTS
@given(data=st.data())
def test_a_checkpoint_with_broken_bytes_is_refused_or_read_as_it_was(study, data):
    path = study / "docstrings" / "influence" / "seed0" / "checkpoints" / "best.ckpt"
    found, refusal = read_broken(path, data.draw(broken_bytes(path.read_bytes())), read_checkpoint)
    assert path.name in refusal if refusal else repr(found) == repr(read_checkpoint(path))


TABLE = pa.table(
    {
        "row": [0, 1, 2, 3],
        "text": ["one", "", "drei ß", "="],
        "ids": pa.array([[1], [2, 3], [4], []], pa.list_(pa.int32())),
    }
)
KEY = {"protocol": "1", "fingerprint": "abc"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a cache file that was written for `KEY`."""
    cached_table(tmp_path / "a=b" / "table.parquet", KEY, lambda: TABLE)
    return tmp_path / "a=b" / "table.parquet"


def check_cache(path: Path, builds: list[int]) -> None:
    """Assert that what is read is the table, from the file or built again with a warning, and is there afterwards."""

    def build() -> pa.Table:
        builds.append(1)
        return TABLE

    found = cached_table(path, KEY, build)
    assert found.to_pylist() == TABLE.to_pylist()
    assert [_type_name(kind) for kind in found.schema.types] == [_type_name(kind) for kind in TABLE.schema.types]
    whole = path.read_bytes()
    assert cached_table(path, KEY, build).to_pylist() == TABLE.to_pylist()
    assert path.read_bytes() == whole


@pytest.mark.filterwarnings("ignore:.*is damaged")
@many
@given(data=st.data())
def test_a_cache_with_broken_bytes_is_never_believed(cache, data):
    whole = cache.read_bytes()
    cache.write_bytes(data.draw(broken_bytes(whole)))
    try:
        check_cache(cache, [])
    finally:
        cache.write_bytes(whole)


def retyped(name: str, kind: pa.DataType) -> Any:
    return lambda t: t.set_column(t.column_names.index(name), name, t.column(name).cast(kind))


BROKEN_CACHES = {
    "rows in another order": lambda t: t.take([1, 0, 2, 3]),
    "a row less": lambda t: t.slice(1),
    "columns swapped": lambda t: t.select(["text", "row", "ids"]),
    "columns renamed": lambda t: t.rename_columns(["text", "row", "ids"]),
    "a column more": lambda t: t.append_column("more", t.column("row")),
    "a column less": lambda t: t.drop_columns("row"),
    "a null": lambda t: t.set_column(0, "row", pa.array([None, 1, 2, 3])),
    "unsigned": retyped("row", pa.uint64()),
    "narrow": retyped("row", pa.int32()),
    "float": retyped("row", pa.float64()),
    "bytes for texts": retyped("text", pa.binary()),
    "a wider list": retyped("ids", pa.list_(pa.int64())),
    "large lists": retyped("ids", pa.large_list(pa.int32())),
}


@pytest.mark.parametrize("change", BROKEN_CACHES.values(), ids=BROKEN_CACHES)
def test_a_cache_of_another_shape_is_built_again_with_a_warning(change, cache):
    table = pq.read_table(cache, partitioning=None)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), cache)
    builds: list[int] = []
    with pytest.warns(UserWarning, match="is damaged .* built again"):
        check_cache(cache, builds)
    assert builds == [1]


@pytest.mark.parametrize("change", [{"digest": "0" * 64}, {"protocol": "2"}, {"fingerprint": "x"}, {"more": "x"}])
def test_a_cache_of_another_key_is_built_again_with_a_warning(change, cache):
    table = pq.read_table(cache, partitioning=None)
    found = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(found | change), cache)
    builds: list[int] = []
    with pytest.warns(UserWarning, match="is damaged .* built again"):
        check_cache(cache, builds)
    assert builds == [1]


def test_a_cache_in_a_folder_named_like_a_column_is_read(cache):
    builds: list[int] = []
    check_cache(cache, builds)
    assert builds == []
