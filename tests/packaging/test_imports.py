"""Imports point one way, in no circle, and to declared packages only; read from the source, nothing is imported.

Imports within functions count as any other: they run, and moving one into a function is how a circle is usually hidden.
So do imports under TYPE_CHECKING: they cannot break a program, but whoever reads the file needs the other one to
understand it.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"lightning_app": ROOT, "modules": ROOT, "datamodules": ROOT, "influence_masking": ROOT / "callbacks"}

MAY_IMPORT = {
    "lightning_app": {"modules", "datamodules", "influence_masking"},
    "modules": {"influence_masking"},
    "datamodules": set(),
    "influence_masking": set(),
    # wings of the application
    "lightning_app.grid": {"lightning_app.run", "lightning_app.results"},
    "lightning_app.run": {"lightning_app.results"},
    "lightning_app.report": {"lightning_app.results"},
    "lightning_app.deploy": {"lightning_app.run", "lightning_app.results"},
    "lightning_app.results": set(),
    # what every wing may use needs no wing
    "lightning_app.errors": set(),
    "lightning_app.signals": set(),
    "lightning_app.messages": set(),
    # rooms of the library
    "influence_masking.gradients": {"influence_masking.masks", "influence_masking.runtime"},
    "influence_masking.selection": {"influence_masking.masks", "influence_masking.runtime"},
    "influence_masking.masks": {"influence_masking.runtime"},
    "influence_masking.runtime": set(),
    "influence_masking.errors": set(),
}
"""What each part may import of ours, besides itself and `FOR_ALL`; what is not listed may import everything."""

FOR_ALL = {"lightning_app.errors", "lightning_app.messages", "lightning_app.signals", "influence_masking.errors"}

WITHOUT_DECLARATION = {
    "torch_xla": "imported only on an XLA device, so by those who have installed it",
    "PIL": "imported only to draw for TensorBoard, which requires it",
}

USER_EXTRAS = {"tpu", "cluster", "demo", "gguf", "completion"}
"""Extras of `pyproject.toml` whose packages the code may import; the others are for tests and for developers."""


def module_files() -> dict[str, Path]:
    """Every module of the four packages by its dotted name."""
    files = {}
    for package, folder in FOLDERS.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = module_files()


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports; `from package import name` gives `package.name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_imported_by(module: str) -> set[str]:
    """Return the modules of ours that one imports."""
    names = list(imported_names(FILES[module]))
    return {name if name in FILES else name.rpartition(".")[0] for name in names} & FILES.keys()


def lies_in(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part):
    members = [module for module in FILES if lies_in(module, part)]
    assert members, f"there is no {part}: the rules do not fit the layout"
    allowed = {part, *MAY_IMPORT[part], *FOR_ALL}
    package = part.partition(".")[0]
    wrong = [
        f"{module} imports {other}"
        for module in members
        for other in sorted(modules_imported_by(module))
        if part == package or lies_in(other, package)  # other packages are the package's own rule
        if not any(lies_in(other, one) for one in allowed)
    ]
    assert not wrong, wrong


def test_every_folder_has_a_rule():
    folders = {module.rpartition(".")[0] for module in FILES if module.count(".") == 2}
    assert folders <= MAY_IMPORT.keys()


def test_no_module_imports_itself_through_others():
    try:
        TopologicalSorter({module: modules_imported_by(module) for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    ("project", "packages"),
    [(ROOT, ["lightning_app", "modules", "datamodules"]), (ROOT / "callbacks", ["influence_masking"])],
)
def test_what_a_distribution_imports_is_declared(project, packages):
    declared = declared_distributions(project / "pyproject.toml")
    distributions = packages_distributions()
    wrong = set()
    for module in (module for module in FILES if module.partition(".")[0] in packages):
        for name in {name.partition(".")[0] for name in imported_names(FILES[module])}:
            candidates = {normalized(one) for one in distributions.get(name, [name])}
            if name not in {*FOLDERS, *sys.stdlib_module_names, *WITHOUT_DECLARATION} and not candidates & declared:
                wrong.add(f"{module} imports {name} of {', '.join(sorted(candidates))}")
    assert not wrong, sorted(wrong)


def declared_distributions(pyproject: Path) -> set[str]:
    """Return the distributions that a project needs, always or by an extra for its users."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = {name: needed for name, needed in project["optional-dependencies"].items() if name in USER_EXTRAS}
    lines = [*project["dependencies"], *(line for needed in extras.values() for line in needed)]
    return {normalized(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines}


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
