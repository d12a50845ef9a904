"""The API documentation is built from the docstrings, as `make docs` does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from integration_helpers import environment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_api_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("pdoc", reason="the extra `docs` is not installed")
    command = re.search(r"\$\(BIN\)/(pdoc .*)", (ROOT / "Makefile").read_text())
    assert command
    words = [str(tmp_path) if word == "build/docs" else word for word in shlex.split(command[1])]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower()
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert {"modules.html", "datamodules.html", "lightning_app/deploy/predict.html", "influence_masking.html"} <= pages
    page = (tmp_path / "influence_masking.html").read_text()
    assert re.search(r"<li><strong>fraction:</strong>", page)  # an argument of a Google docstring


def test_every_test_that_the_table_of_faults_names_is_there():
    """A name that ends in dots is the beginning of one, as `..._within_a_download` is its end."""
    code = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    made = [name for text in code for name in re.findall(r"def (test_\w+)", text)]
    rows = (ROOT / "docs" / "faults.md").read_text().splitlines()
    cells = [row.split("|")[-2] for row in rows if row.startswith("|")]
    named = [name for cell in cells for name in re.findall(r"`([\w.]+)`", cell) if "test_" in name or "..." in name]
    assert len(named) > 20
    for name in named:
        pattern = re.compile(name.replace("...", r"\w+"))
        assert any(map(pattern.fullmatch, made)), name
