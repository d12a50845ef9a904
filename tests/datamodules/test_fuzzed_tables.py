"""Generated files of every format, type, encoding and quoting: read as they were written, or refused by a DataError."""

import csv
import io
import json
import math

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import DataError, HubTextDataModule
from datamodules.files import FORMATS, read_table

FUZZED = settings(max_examples=600, deadline=None, derandomize=True)

NAMES = ["a", "True", "NA", "é"]
LOOKS = ["0007", "1e5", "3.10", "True", "NA", "null", "None", 'a "b"', "x,y", "x\r\ny", "\ufeff", "é", "\0", "'", "#"]
TEXTS = st.sampled_from(LOOKS) | st.text(max_size=8)
ROWS = st.lists(st.tuples(TEXTS, st.sampled_from(["", *NAMES])), min_size=1, max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
SAME_KIND = st.one_of(*(st.none() | kind for kind in (st.booleans(), st.integers(-9, 9), st.floats(), TEXTS)), JSON)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed") / "rows"


def load(path, file_format):
    """Return what training reads of a file: the texts and the labels."""
    files = {"train": str(path), "test": str(path)}
    pool, held_out = HubTextDataModule("none", file_format, "fuzzed", NAMES, data_files=files).load_source()
    assert pool.equals(held_out)
    assert pool["row"].to_pylist() == list(range(len(pool)))
    return list(zip(pool["text"].to_pylist(), pool["label"].to_pylist(), strict=True))


def numbered(rows):
    """Return the rows with their labels as numbers."""
    return [(text, NAMES.index(label) if label else -1) for text, label in rows]


def is_utf_8(content):
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def as_csv(rows, ending="\r\n", **options):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=ending, **options).writerows([("text", "label"), *rows])
    return file.getvalue()


@FUZZED
@given(ROWS, st.sampled_from(["utf-8", "utf-8-sig"]), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_a_csv_file_is_read_as_it_was_written(path, rows, encoding, ending, quoted):
    text = as_csv(rows, ending, quoting=csv.QUOTE_ALL) if quoted else as_csv(rows)
    path.write_bytes(text.encode(encoding))
    assert load(path, "csv") == numbered(rows)


@FUZZED
@given(ROWS, st.sampled_from(["utf-8", "utf-8-sig"]), st.booleans(), st.sampled_from([None, 1]))
def test_a_json_file_is_read_as_it_was_written(path, rows, encoding, is_ascii, array):
    objects = [{"label": label or None, "text": text} for text, label in rows]
    lines = "\n".join(json.dumps(row, ensure_ascii=is_ascii) for row in objects)
    text = json.dumps(objects, ensure_ascii=is_ascii, indent=1) if array else lines
    path.write_bytes(text.encode(encoding))
    assert load(path, "json") == numbered(rows)


@FUZZED
@given(ROWS, st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.binary(), None]))
def test_a_parquet_file_is_read_as_it_was_written(path, rows, kind):
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    columns = [column.cast(kind) if kind else column.dictionary_encode() for column in columns]
    pq.write_table(pa.table(columns, ["text", "label"]), path)
    assert load(path, "parquet") == numbered(rows)


@FUZZED
@given(
    ROWS,
    st.sampled_from(["latin-1", "cp1252", "shift_jis", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
    st.booleans(),
)
def test_another_encoding_is_refused_unless_its_bytes_are_utf_8(path, rows, encoding, as_json):
    objects = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows)
    content = (objects if as_json else as_csv(rows)).encode(encoding, "replace")
    path.write_bytes(content)
    try:
        found = load(path, "json" if as_json else "csv")
    except DataError as err:
        wide = encoding.startswith("utf")
        named = any(word in str(err) for word in ("UTF-16", "UTF-32") if wide) or "is not UTF-8" in str(err)
        assert named or (not wide and is_utf_8(content)), err  # Shift JIS writes a yen sign as a backslash
    else:
        assert not encoding.startswith("utf")
        written = [tuple(part.encode(encoding, "replace").decode() for part in row) for row in rows]
        assert found == numbered(written)


@FUZZED
@given(st.text(st.sampled_from('ab",;\n\r \0\t'), max_size=30))
def test_a_csv_file_is_never_read_otherwise_than_by_another_reader(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    try:
        found = read_table(path, "csv")
    except DataError:
        return
    as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(found.column_names, pa.large_string()))
    multiline = pyarrow.csv.ParseOptions(newlines_in_values=True)
    try:
        other = pyarrow.csv.read_csv(path, parse_options=multiline, convert_options=as_text)
    except pa.ArrowInvalid:
        return
    assert found.to_pydict() == other.to_pydict()


def is_text_of(text, value):
    """Whether a text is what a JSON value says; lists and objects say none."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return float(text) == value or math.isnan(value)
    return not isinstance(value, list | dict) and text == {None: "", True: "true", False: "false"}.get(value, value)


def is_label_of(number, value):
    """Whether a class is the one that a JSON value says; of the names none is a number, and one is `True`."""
    if value is None or value == "" or value != value or (value == -1 and not isinstance(value, bool)):
        return number == -1
    if isinstance(value, bool):
        return value and number == NAMES.index("True")
    is_number = isinstance(value, float | int) or value in ("0", "1", "2", "3")
    return number == int(value) == float(value) if is_number else number == NAMES.index(value)


@settings(FUZZED, max_examples=1500)
@given(st.lists(st.tuples(SAME_KIND, SAME_KIND), min_size=1, max_size=3))
def test_a_json_value_is_the_text_or_the_class_it_says_or_is_refused(path, rows):
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    try:
        found = load(path, "json")
    except DataError:
        return
    for (text, number), (value, label) in zip(found, rows, strict=True):
        assert is_text_of(text, value)
        assert is_label_of(number, label)


NUMBERS = [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.bool_(), pa.decimal128(30, 2)]
TIMES = [pa.date32(), pa.timestamp("us"), pa.duration("s"), pa.time64("us")]
BYTES = [pa.binary(2), pa.large_binary(), pa.binary_view()]
NESTED = [
    pa.list_(pa.string()),
    pa.list_(pa.int64(), 2),
    pa.struct([("x", pa.string())]),
    pa.map_(pa.string(), pa.int8()),
]
TYPES = [pa.null(), *NUMBERS, *TIMES, *BYTES, *NESTED]


@FUZZED
@given(st.sampled_from(TYPES), st.sampled_from(TYPES), st.data())
def test_a_parquet_column_of_any_type_is_read_or_refused(path, text_type, label_type, data):
    size = data.draw(st.integers(0, 3))
    columns = [_column(kind, size, data) for kind in (text_type, label_type)]
    pq.write_table(pa.table(columns, ["text", "label"]), path)
    try:
        found = load(path, "parquet")
    except DataError:
        return
    assert not pa.types.is_nested(text_type)
    assert not pa.types.is_nested(label_type)
    texts = columns[0].cast(pa.large_string()).fill_null("").to_pylist()
    assert [text for text, _ in found] == texts
    assert all(number in range(-1, len(NAMES)) for _, number in found)


def _column(kind, size, data):
    if kind in NESTED or pa.types.is_null(kind):
        return pa.nulls(size, kind)
    if kind in BYTES:
        contents = data.draw(st.lists(st.none() | st.binary(min_size=2, max_size=2), min_size=size, max_size=size))
        return pa.array(contents, kind)
    raw = data.draw(st.lists(st.none() | st.integers(0, 4), min_size=size, max_size=size))
    return pa.array(raw, pa.int64()).cast(pa.int32() if pa.types.is_date32(kind) else pa.int64()).cast(kind, safe=False)


@settings(FUZZED, max_examples=1500)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_any_bytes_are_a_table_or_a_data_error(path, file_format, data):
    """Random bytes, and files of which a few bytes are others."""
    good = {"csv": as_csv([("x", "a")] * 3).encode(), "json": b'{"text": "x", "label": "a"}\n' * 3, "parquet": PARQUET}
    content = bytearray(good[file_format])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(data.draw(st.sampled_from([bytes(content), bytes(content[: len(content) // 2])]) | st.binary()))
    try:
        found = load(path, file_format)
    except DataError:
        return
    assert all(isinstance(text, str) and -1 <= number < len(NAMES) for text, number in found)


def _parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["x", "y"], "label": ["a", "NA"]}), sink)
    return sink.getvalue().to_pybytes()


PARQUET = _parquet()
