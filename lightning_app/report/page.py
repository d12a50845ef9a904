"""A report as sections of sentences, tables and pictures; written as HTML, Markdown, CSV, LaTeX, SVG, PDF and PNG."""

import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lightning_app.results import markdown
from lightning_app.results.files import make_report_folder, write_bytes, write_text

LONG_TABLE_ROWS = 30
"""A table with more rows is folded away in HTML, and may break over pages in LaTeX."""


@dataclass(frozen=True)
class Table:
    """A table: `shown` is text for the page and LaTeX, `numbers` is for the CSV file (`shown` if it is None)."""

    name: str
    caption: str
    shown: pd.DataFrame
    numbers: pd.DataFrame | None = None

    @property
    def is_long(self) -> bool:
        """Whether it is folded away."""
        return len(self.shown) > LONG_TABLE_ROWS

    def is_number(self, column: str) -> bool:
        """Return whether a column is aligned right: all its cells begin like numbers."""
        cells = [str(cell) for cell in self.shown[column] if str(cell)]
        return all(re.match(r"[<+\-]? ?\d", cell) for cell in cells)


@dataclass(frozen=True)
class Picture:
    """A figure."""

    name: str
    caption: str
    figure: Figure

    def encode(self, kind: str) -> bytes:
        """Return the picture as `svg`, `pdf` or `png`; the same picture gives the same bytes."""
        buffer = io.BytesIO()
        undated = {"svg": dict.fromkeys(("Date", "Creator", "Format", "Type")), "pdf": {"CreationDate": None}}
        self.figure.savefig(buffer, format=kind, metadata=undated.get(kind))
        return buffer.getvalue()


@dataclass(frozen=True)
class Section:
    """A heading, and below it notes, tables and pictures. Text between backticks is code."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A whole report: warnings and the answer on top, then the sections."""

    title: str
    lead: str
    warnings: list[str]
    answer: str
    sections: list[Section]


def write_page(folder: Path, page: Page) -> None:
    """Write `report.html`, `report.md`, `tables/` and `figures/`, the pages last."""
    tables, figures, vectors = make_report_folder(folder / "tables"), make_report_folder(folder / "figures"), {}
    for section in page.sections:
        for table in section.tables:
            _write_table(tables, table)
        for picture in section.pictures:
            vectors[picture.name] = _write_picture(figures, picture)
    write_text(folder / "report.md", _environment().get_template("report.md").render(page=page))
    write_text(folder / "report.html", _environment().get_template("report.html").render(page=page, vectors=vectors))


def _write_table(folder: Path, table: Table) -> None:
    numbers = table.shown if table.numbers is None else table.numbers
    safe = numbers.map(escape_formula).rename(columns=escape_formula)
    write_text(folder / f"{table.name}.csv", safe.to_csv(index=False))
    latex = table.shown.to_latex(index=False, escape=True, na_rep="", longtable=table.is_long)
    write_text(folder / f"{table.name}.tex", latex)


def escape_formula(cell: Any) -> Any:
    """Return a cell that a spreadsheet does not run: text that begins like a formula gets an apostrophe in front.

    Formatted numbers (`+0.5 (-0.1 to +1.1)`) stay as they are: they cannot call anything. See
    https://owasp.org/www-community/attacks/CSV_Injection
    """
    begins = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{cell}" if begins and not re.fullmatch(r"(?:[-+\d.,()%e ]|to|nan|inf)*", cell) else cell


def _write_picture(folder: Path, picture: Picture) -> Markup:
    """Write the files and return the picture as an element of a page."""
    picture.figure.draw_without_rendering()
    picture.figure.set_layout_engine("none")  # the layout is done, and is the same for the three files
    files = {kind: picture.encode(kind) for kind in ("svg", "pdf", "png")}
    for kind, content in files.items():
        write_bytes(folder / f"{picture.name}.{kind}", content)
    vector = files["svg"].decode()
    return Markup(vector[vector.index("<svg") :])  # matplotlib has escaped what is text in it


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "md": markdown.escape, "md_table": markdown.table}
    return environment


def _code(text: str) -> Markup:
    """Return text as HTML, with what is between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
