"""Labels to class numbers: a label is matched by its name, or refused."""

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from datamodules.errors import DataError

UNLABELED = -1

_WHOLE_NUMBER = re.compile(r"(-1|0|[1-9]\d*)(\.0*)?", re.ASCII)  # pandas writes 1.0 if any label is missing


def check_label_names(names: Sequence[Any]) -> None:
    """Refuse names that do not tell the classes apart.

    Raises:
        DataError: If there are fewer than two, a name is not text, or two are equal.
    """
    if len(names) < 2:
        raise DataError(f"label_names is {list(names)}, but must be at least two names.")
    other = [name for name in names if not isinstance(name, str)]
    if other:
        raise DataError(f"label_names has {other[0]!r}, which is not text. Put it in quotes.")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise DataError(f"label_names has {repeated[0]!r} more than once. Give each class its own name.")


def label_numbers(
    table: pa.Table, name: str, label_names: Sequence[str], own_names: Sequence[str] | None = None
) -> pa.ChunkedArray:
    """Return the class of each row as int64; -1 for null, NaN, an empty text and -1, unless they are class names.

    A text is the class of that name, and a boolean the class named true or false, in any case. A number is the class
    of that name if any class has a number for a name, otherwise the position of the class, from 0. A text that is no
    class name but a whole number is treated as that number.

    Args:
        table: Holds the labels.
        name: Name of their column.
        label_names: The classes, in the order of their numbers.
        own_names: What the data call the numbers 0, 1, ...: the numbers are matched by these names alone.

    Raises:
        DataError: If a label is none of these, or the column holds neither texts, booleans nor numbers.
    """
    encoded = _plain(table.column(name), name).combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    if own_names and list(own_names) != [str(number) for number in range(len(own_names))]:
        values = [own_names[value] if 0 <= value < len(own_names) else value for value in values]
        numbers = [_number_of_name(value, label_names) for value in values]
    else:
        numbers = [_number_of(value, label_names) for value in values]
    unknown = [value for value, number in zip(values, numbers, strict=True) if number is None]
    if unknown:
        raise DataError(
            f"The column {name!r} has labels {sorted(unknown, key=repr)[:5]}, which label_names {list(label_names)} "
            "lacks. Name every class as the data do; the label of a row without a class is empty."
        )
    return pa.chunked_array([pc.fill_null(pa.array(numbers, pa.int64()).take(encoded.indices), UNLABELED)])


def _plain(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return a column of texts, booleans or numbers, without dictionaries."""
    kind = column.type
    if types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type), name)
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return column
    try:
        if types.is_nested(kind) or types.is_temporal(kind):
            raise DataError(f"The column {name!r} has labels of type {kind}. Write names or numbers of classes.")
        return column.cast(pa.large_string())
    except pa.ArrowException as err:
        raise DataError(f"The column {name!r} has labels of type {kind} that are not text ({err}).") from err


def _number_of_name(value: Any, label_names: Sequence[str]) -> int | None:
    """Return the class of an own name, -1 for the number -1, or None."""
    if value == UNLABELED:
        return UNLABELED
    return label_names.index(value) if value in label_names else None


def _number_of(value: Any, label_names: Sequence[str]) -> int | None:
    """Return the class of a value, -1 if it stands for none, or None if it is unknown."""
    if isinstance(value, bool):
        return _only([number for number, name in enumerate(label_names) if name.lower() == str(value).lower()])
    if value in label_names:
        return label_names.index(value)
    if value == "" or value != value:
        return UNLABELED
    if isinstance(value, str) and not _WHOLE_NUMBER.fullmatch(value):
        return None
    return _number_of_number(Decimal(str(value)), label_names)


def _number_of_number(value: Decimal, label_names: Sequence[str]) -> int | None:
    named = {number: decimal for number, name in enumerate(label_names) if (decimal := _decimal(name)) is not None}
    if value in named.values():
        return _only([number for number, decimal in named.items() if decimal == value])
    if value == UNLABELED:
        return UNLABELED
    return int(value) if not named and value in range(len(label_names)) else None


def _decimal(name: str) -> Decimal | None:
    """Return the number that a name is, or None."""
    try:
        number = Decimal(name)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _only(numbers: list[int]) -> int | None:
    """Return the one number, or None if there are none or several."""
    return numbers[0] if len(numbers) == 1 else None
