"""What the pages for contributors say about files and names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs" / "architecture.md",
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
]
ROW = re.compile(r"^\| `([\w/]+\.py)` \| (`[^|]+`) \|", re.MULTILINE)
PATH = re.compile(r"`((?:callbacks|configs|datamodules|docs|lightning_app|modules|tests|benchmarks)/[\w./+-]*)`")
LINK = re.compile(r"\]\((?!http)([^)#]+)")


def defined_names(path: Path) -> set[str]:
    """Return what a file defines: functions, classes, constants, and `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {node.name, *(f"{node.name}.{one.name}" for one in node.body if hasattr(one, "name"))}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names


def walks() -> list[tuple[str, str]]:
    """File and name of each step of the walks through the code."""
    rows = ROW.findall((ROOT / "docs" / "architecture.md").read_text())
    return [(path, name) for path, names in rows for name in re.findall(r"`([\w.]+)`", names)]


def test_the_walks_are_found():
    assert len(walks()) > 30


@pytest.mark.parametrize(("path", "name"), walks())
def test_a_step_of_a_walk_is_in_its_file(path, name):
    assert name in defined_names(ROOT / path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_a_page_names_is_there(page):
    text = page.read_text()
    named = [ROOT / path for path in PATH.findall(text)] + [page.parent / link for link in LINK.findall(text)]
    assert [str(path.relative_to(ROOT)) for path in named if not path.exists()] == []
