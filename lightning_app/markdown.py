"""Markdown in which nothing that comes from data or configurations is taken for markup."""

import pandas as pd


def escape(text: str) -> str:
    """Text in which nothing is taken for HTML or for the end of a cell."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def table(rows: pd.DataFrame) -> str:
    """A table; its texts are escaped."""
    return rows.map(lambda cell: escape(cell) if isinstance(cell, str) else cell).to_markdown(
        index=False, disable_numparse=True
    )
