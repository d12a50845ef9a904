"""Every printed `pip install` of this project takes both distributions from the checkout, and keeps them editable.

The distribution influence-masking is on no index: a line that leaves ./callbacks out would install whatever package
somebody has published under that name.
"""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACKAGES = ("lightning_app", "modules", "datamodules", "callbacks/influence_masking", "benchmarks")
PROSE = ("*.md", "docs/**/*.md", "callbacks/*.md", "configs/**/*.yaml", "Makefile", ".ci/run", "pyproject.toml")
LINE = re.compile(r"pip install ((?:-\S+ |'[^'\n]*' ?|\"[^\"\n]*\" ?|[\w./=*~-]+(?:\[[\w,-]+\])? ?)+)")


def texts() -> Iterator[tuple[str, str]]:
    """Every page and every string of the code, with the file that it is in."""
    for pattern in PROSE:
        yield from ((str(path.relative_to(ROOT)), path.read_text()) for path in ROOT.glob(pattern))
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield str(path.relative_to(ROOT)), node.value


def install_lines() -> list[tuple[str, tuple[str, ...]]]:
    """File and words of each `pip install` that installs a folder."""
    found = [(place, tuple(shlex.split(match[1]))) for place, text in texts() for match in LINE.finditer(text)]
    return sorted({(place, words) for place, words in found if any(map(is_folder, words))})


def is_folder(word: str) -> bool:
    return word.startswith(("./", ".[")) or word == "."


def is_root(word: str) -> bool:
    return word == "." or word.startswith(".[")


def test_the_lines_are_found():
    places = {place for place, _ in install_lines()}
    assert {"README.md", "callbacks/README.md", "Makefile", "CONTRIBUTING.md"} <= places
    assert {"modules/backbone.py", "lightning_app/grid/cluster.py", "lightning_app/completion.py"} <= places


@pytest.mark.parametrize(("place", "words"), install_lines())
def test_a_line_installs_folders_editable_and_the_study_with_its_library(place, words):
    folders = [index for index, word in enumerate(words) if is_folder(word)]
    assert all(words[index - 1] == "-e" for index in folders), f"{place}: {shlex.join(words)}"
    if any(is_root(words[index]) for index in folders):
        assert "./callbacks" in words, f"{place}: {shlex.join(words)}"


def test_no_line_asks_an_index_for_a_distribution_of_ours():
    for place, text in texts():
        assert not re.search(r"pip install [^\n`]*\binfluence[-_]", text), place


@pytest.mark.slow
def test_the_lines_of_messages_find_both_distributions_without_an_index(pip, tmp_path):
    lines = {words for place, words in install_lines() if place.endswith(".py")}
    extras = {word[2:-1] for words in lines for word in words if word.startswith(".[")}
    report = tmp_path / "report.json"
    words = ["-e", "./callbacks", "-e", f".[{','.join(sorted(extras))}]"]  # all lines at once, because each takes 10 s
    pip("install", "--dry-run", "--no-index", "--no-build-isolation", "--report", str(report), *words)
    found = {one["metadata"]["name"]: one["download_info"] for one in json.loads(report.read_text())["install"]}
    assert {name: one["url"] for name, one in found.items()} == {
        "influence-masking": (ROOT / "callbacks").as_uri(),
        "influence-study": ROOT.as_uri(),
    }
    assert all(one["dir_info"]["editable"] for one in found.values())
