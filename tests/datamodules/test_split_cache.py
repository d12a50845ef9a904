import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.cache import cached_table, table_digest

TABLE = pa.table(
    {"text": ["one", "", "drei ß"], "ids": pa.array([[1], [2, 3], [4]], pa.list_(pa.int32())), "n": [1, 2, 3]}
)
KEY = {"protocol": "1", "fingerprint": "abc"}


def refuse() -> pa.Table:
    raise AssertionError("the cache was not used")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "table.parquet"


def test_a_written_table_is_read_and_not_built_again(path):
    cached_table(path, KEY, lambda: TABLE)
    assert cached_table(path, KEY, refuse).to_pylist() == TABLE.to_pylist()
    assert [file.name for file in path.parent.iterdir()] == ["table.parquet"]


def test_the_key_can_be_read_from_the_file(path):
    cached_table(path, KEY, lambda: TABLE)
    metadata = pq.read_schema(path).metadata
    assert metadata[b"fingerprint"] == b"abc"
    assert metadata[b"protocol"] == b"1"


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_built_again_with_a_warning(path, kept):
    cached_table(path, KEY, lambda: TABLE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.warns(UserWarning, match="is damaged .* built again"):
        assert cached_table(path, KEY, lambda: TABLE).to_pylist() == TABLE.to_pylist()
    assert cached_table(path, KEY, refuse).to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("part", range(12))
def test_a_changed_byte_never_changes_what_is_read(path, part):
    cached_table(path, KEY, lambda: TABLE)
    damaged = bytearray(path.read_bytes())
    for place in range(part, len(damaged), 12 * 7):
        damaged[place] ^= 0x11
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="is damaged"):
        assert cached_table(path, KEY, lambda: TABLE).to_pylist() == TABLE.to_pylist()


def test_a_file_of_another_key_is_built_again(path):
    cached_table(path, {**KEY, "fingerprint": "other"}, lambda: TABLE.slice(1))
    with pytest.warns(UserWarning, match="is damaged"):
        assert cached_table(path, KEY, lambda: TABLE).num_rows == 3


def test_a_build_that_fails_leaves_no_file(path):
    with pytest.raises(AssertionError):
        cached_table(path, KEY, refuse)
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:.*is damaged")  # said of a file that is taken away between look and read
def test_writers_at_the_same_time_leave_a_whole_file(path):
    def write_and_read() -> None:
        for _ in range(20):
            found.append(cached_table(path, KEY, lambda: TABLE).to_pylist())
            path.unlink(missing_ok=True)

    found: list = []
    threads = [threading.Thread(target=write_and_read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [TABLE.to_pylist()] * 80


@given(st.lists(st.text()), st.lists(st.integers(1, 4), max_size=4))
def test_the_digest_does_not_see_how_a_column_is_cut_or_how_wide_its_offsets_are(texts, cuts):
    whole = pa.array(texts, pa.string())
    chunks, start = [], 0
    for cut in cuts:
        chunks.append(whole.slice(start, cut))
        start += cut
    cut_up = pa.chunked_array([*chunks, whole.slice(start)], pa.string())
    digest = table_digest(pa.table({"text": whole}))
    assert table_digest(pa.table({"text": cut_up})) == digest
    assert table_digest(pa.table({"text": cut_up.cast(pa.large_string())})) == digest


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_different_texts_have_different_digests(first, second):
    same = table_digest(pa.table({"text": first})) == table_digest(pa.table({"text": second}))
    assert same == (first == second)
