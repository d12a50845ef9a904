"""Labels are matched by name, or refused; over generated columns and names."""

import decimal
import math
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import DataError
from datamodules.labels import check_label_names, label_numbers

FUZZED = settings(max_examples=1000, deadline=None, derandomize=True)

WORDS = [
    "a",
    "b",
    "True",
    "False",
    "true",
    "NA",
    "null",
    "None",
    "nan",
    "0",
    "1",
    "2",
    "-1",
    "01",
    "1.0",
    "0.5",
    "1e0",
    "é",
]
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True)
TEXTS = st.sampled_from([*WORDS, "", " a", "A", "-0", "1.", "+1", "٣", "1_0", "1" * 30]) | st.text(max_size=3)
NUMBERS = st.integers(-3, 5) | st.integers(-(2**63), 2**63 - 1)
FLOATS = st.sampled_from([0.0, 1.0, 0.5, -1.0, -0.0, 2.0]) | st.floats()
VALUES = st.one_of(*(st.lists(st.none() | kind, max_size=6) for kind in (TEXTS, NUMBERS, FLOATS, st.booleans())))


def numbers_of(values, names, own_names=None, kind=None):
    table = pa.table({"label": pa.array(values, kind)})
    return label_numbers(table, "label", names, own_names).to_pylist()


def decimal_of(value):
    try:
        number = Decimal(str(value))
    except decimal.InvalidOperation:
        return None
    return number if number.is_finite() else None


def is_missing(value):
    return value in (None, "") or (isinstance(value, float) and math.isnan(value)) or decimal_of(value) == -1


def is_right(value, number, names):
    """Whether a class may be given to a value: it has the value's name, or its place where no name is a number."""
    if number == -1:
        return value not in names and is_missing(value)
    if isinstance(value, bool):
        return names[number].lower() == str(value).lower()
    if isinstance(value, str) and value in names:
        return names[number] == value
    if any(decimal_of(name) is not None for name in names):
        return decimal_of(names[number]) == decimal_of(value)
    return decimal_of(value) == number


@FUZZED
@given(VALUES, NAMES)
def test_no_label_is_accepted_as_a_class_of_another_name(values, names):
    try:
        numbers = numbers_of(values, names)
    except DataError:
        return
    assert all(is_right(value, number, names) for value, number in zip(values, numbers, strict=True))


@FUZZED
@given(st.lists(st.text(max_size=4), min_size=1, max_size=6, unique=True), st.data())
def test_every_name_is_accepted_and_is_its_class(names, data):
    values = data.draw(st.lists(st.none() | st.sampled_from(names), min_size=1))
    expected = [-1 if value is None else names.index(value) for value in values]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()):
        encoded = values if pa.types.is_string(kind) else pa.array(values, pa.string()).cast(kind)
        assert numbers_of(encoded, names, kind=kind) == expected
    assert numbers_of(pa.array(values, pa.string()).dictionary_encode(), names) == expected


@FUZZED
@given(st.lists(st.text(max_size=3), min_size=1, max_size=5, unique=True), st.randoms(use_true_random=False), st.data())
def test_names_of_the_data_count_whatever_their_order(own_names, rng, data):
    names = rng.sample(own_names, len(own_names))
    values = data.draw(st.lists(st.integers(-1, len(own_names) - 1)))
    found = numbers_of(values, names, own_names, pa.int64())
    if own_names == [str(number) for number in range(len(own_names))]:  # no names but the numbers themselves
        assert found == numbers_of(values, names, None, pa.int64())
    else:
        assert [names[number] for number in found if number >= 0] == [
            own_names[value] for value in values if value >= 0
        ]


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (["True", "False"], ["True", "False"], [0, 1]),
        ([True, False, None], ["True", "False"], [0, 1, -1]),
        ([True, False], ["no", "TRUE", "false"], [1, 2]),
        ([1, 2, -1], ["1", "2"], [0, 1, -1]),
        (["1", "2", "2.0"], ["1", "2"], [0, 1, 1]),
        ([-1, 0, 1], ["-1", "0", "1"], [0, 1, 2]),
        ([0.5, 1.0], ["0.5", "1"], [0, 1]),
        ([1], ["b", "1e0"], [1]),
        ([0.0, 1.0, math.nan], ["a", "b"], [0, 1, -1]),
        (["0", "1.0", "", "-1"], ["a", "b"], [0, 1, -1, -1]),
        (["None", "NA", "null"], ["NA", "None", "null"], [1, 0, 2]),
        ([Decimal("1.00"), Decimal("0.00")], ["a", "b"], [1, 0]),
        ([None, None], ["a", "b"], [-1, -1]),
        ([], ["a", "b"], []),
    ],
)
def test_labels_are_matched(values, names, numbers):
    assert numbers_of(values, names) == numbers


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([True], ["no", "yes"], r"column 'label' has labels \[True\], which label_names \['no', 'yes'\] lacks"),
        ([True], ["True", "true"], r"\[True\]"),
        (["True"], ["a", "b"], r"\['True'\]"),
        ([0, 1], ["1", "2"], r"\[0\]"),
        ([2], ["a", "b"], r"\[2\]"),
        ([0.5], ["a", "b"], r"\[0.5\]"),
        ([math.inf], ["a", "b"], r"\[inf\]"),
        (["NA", "01", "1e0"], ["a", "b"], r"\['01', '1e0', 'NA'\]"),
        ([1], ["1", "1.0"], r"\[1\]"),
        ([2], ["1e0", "b"], r"\[2\]"),
        ([["a"]], ["a", "b"], "labels of type list<item: string>"),
        ([{"a": 1}], ["a", "b"], "labels of type struct"),
        ([b"\xff"], ["a", "b"], "labels of type binary that are not text"),
        (pa.array([1], pa.date32()), ["a", "b"], r"labels of type date32\[day\]"),
    ],
)
def test_labels_are_refused(values, names, message):
    with pytest.raises(DataError, match=message):
        numbers_of(values, names)


@pytest.mark.parametrize(
    ("values", "own_names", "message"),
    [
        ([0, 1], ["pos", "neg"], r"labels \['pos'\], which label_names \['neg', 'positive'\] lacks"),
        ([2], ["neg", "positive"], r"labels \[2\]"),
        ([0], ["1", "2"], r"labels \['1'\]"),
    ],
)
def test_names_of_the_data_that_label_names_lack_are_refused(values, own_names, message):
    with pytest.raises(DataError, match=message):
        numbers_of(values, ["neg", "positive"], own_names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "label_names has 'a' more than once"),
        ([True, False], "label_names has True, which is not text. Put it in quotes"),
        (["a", 1], "label_names has 1, which is not text"),
    ],
)
def test_names_that_do_not_tell_classes_apart_are_refused(names, message, toy_class, monkeypatch):
    with pytest.raises(DataError, match=message):
        check_label_names(names)
    monkeypatch.setattr(toy_class, "label_names", names)
    with pytest.raises(DataError, match=message):
        toy_class("no tokenizer is needed")
