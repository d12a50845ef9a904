"""A user's tables: what is read is what is written again."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules import DataError
from lightning_app.deploy.tables import read_user_table, write_table
from lightning_app.errors import UsageError

TEXTS = ["007", "NA", "null", "", "1.50", "2024-01-01", 'a "b", c\nd', "ä", " x "]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_texts_that_look_like_something_else_stay_as_they_are(ending, tmp_path):
    table = pa.table({"text": TEXTS, "other": TEXTS[::-1]})
    write_table(tmp_path / f"x{ending}", table)
    assert read_user_table(tmp_path / f"x{ending}").to_pydict() == table.to_pydict()


def test_a_csv_file_may_begin_with_a_byte_order_mark_and_have_long_rows(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbftext\r\n" + b"w " * 2_000_000 + b"\r\n")
    assert [len(text) for text in read_user_table(tmp_path / "x.csv")["text"].to_pylist()] == [4_000_000]


def test_json_lines_keep_the_kinds_of_their_values_and_lack_what_a_row_lacks(tmp_path):
    rows = [{"a": 1, "b": [1, 2], "c": {"d": None}}, {"a": 2, "e": True}]
    (tmp_path / "x.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    write_table(tmp_path / "y.jsonl", read_user_table(tmp_path / "x.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    nothing = {"b": None, "c": None, "e": None}
    assert lines == [{**nothing, **rows[0]}, {**nothing, **rows[1]}]


def test_dates_and_decimals_of_parquet_become_text_in_json_lines(tmp_path):
    row = {"day": datetime.date(2024, 1, 2), "price": decimal.Decimal("1.50")}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    write_table(tmp_path / "x.jsonl", read_user_table(tmp_path / "x.parquet"))
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"day": "2024-01-02", "price": "1.50"}


def test_a_file_is_read_as_it_is_whatever_its_folder_is_called(tmp_path):
    (tmp_path / "year=2024").mkdir()
    write_table(tmp_path / "year=2024" / "x.parquet", pa.table({"text": ["a"]}))
    assert read_user_table(tmp_path / "year=2024" / "x.parquet").column_names == ["text"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": '),
        ("x.jsonl", "[1, 2]"),
        ("x.jsonl", '{"a": 1}\n{"a": "one"}'),
        ("x.csv", ""),
        ("x.csv", "a,b\n1\n"),
        ("x.parquet", "text"),
    ],
)
def test_what_is_not_what_its_ending_says_is_told(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"Cannot read .*{name} as"):
        read_user_table(tmp_path / name)


def test_a_column_that_a_format_cannot_hold_is_told_and_nothing_is_left(tmp_path):
    with pytest.raises(UsageError, match="Choose another format"):
        write_table(tmp_path / "x.csv", pa.table({"tokens": [[1, 2]]}))
    assert not list(tmp_path.iterdir())
