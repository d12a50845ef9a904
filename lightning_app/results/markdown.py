"""Markdown in which nothing that comes from data or configurations is taken for markup."""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

ESCAPES = {"&": "&amp;", "<": "&lt;", "|": "\\|", "](": "]\\(", "][": "]\\["}


def escape(text: str) -> str:
    """Return text on one line, in which nothing is taken for HTML, a link, a picture or the end of a cell."""
    one_line = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"[&<|]|\][(\[]", lambda match: ESCAPES[match[0]], one_line)


def table(rows: pd.DataFrame) -> str:
    """Return a table whose texts and titles are escaped."""
    escaped = rows.rename(columns=lambda title: escape(str(title)))
    return escaped.map(lambda cell: escape(cell) if isinstance(cell, str) else cell).to_markdown(
        index=False, disable_numparse=True
    )


def condition_card(record: Mapping[str, Any]) -> str:
    """Return a Markdown table of the record of a condition."""
    return table(pd.DataFrame([{"": key.replace("_", " "), "value": str(value)} for key, value in record.items()]))
