"""A public name stands for one thing: no two modules of the four packages define the same one.

`from modules import Comparison` and `from lightning_app.report import Comparison` would be two classes that a reader
cannot tell apart.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("lightning_app", "modules", "datamodules", "callbacks/influence_masking")

MAY_REPEAT = {
    "main": "each command has one, and so has `python -m influence_masking`",
    "build_parser": "each command has one, by which completion and tests find its options",
}
"""Names that several modules define on purpose, and why."""


def public_names(path: Path) -> Iterator[str]:
    """Yield the names that a module defines at its top level, without those that begin with an underscore."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def repeated_names() -> dict[str, list[str]]:
    """Return the files of each name that more than one module defines."""
    files = defaultdict(set)
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for name in public_names(path):
            files[name].add(path.relative_to(ROOT).as_posix())
    return {name: sorted(places) for name, places in sorted(files.items()) if len(places) > 1}


def test_no_two_public_things_have_one_name():
    assert {name: places for name, places in repeated_names().items() if name not in MAY_REPEAT} == {}


def test_the_exceptions_are_needed():
    assert MAY_REPEAT.keys() <= repeated_names().keys()
