"""The shipped configurations: where they are, and what they are called."""

import difflib
from collections.abc import Iterable
from pathlib import Path

import yaml

from lightning_app.errors import UsageError

KINDS = {"data": "datasets"}
"""Options of `influence experiment` that are called otherwise than the folder of their files."""


def configs_folder() -> Path:
    """Beside the packages in a checkout, inside this package in an installed wheel."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_files(kind: str, names: Iterable[str]) -> dict[str, Path]:
    """The files of several names, by what results call them: the name itself, or the stem of a path to a file.

    Raises:
        UsageError: If there is no such file, or two have the same stem.
    """
    files: dict[str, Path] = {}
    for name in names:
        path = config_file(kind, name)
        if files.setdefault(path.stem, path) != path:
            raise UsageError(f"{files[path.stem]} and {path} would both be called {path.stem!r}. Rename one.")
    return files


def config_file(kind: str, name: str) -> Path:
    """The file `configs/<kind>/<name>.yaml`, or the one that `name` is the path of.

    Raises:
        UsageError: If there is none; lists what there is, near misses first.
    """
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise UsageError(f"There is no file {name}, which --{KINDS.get(kind, kind)} names.")
    folder = configs_folder() / kind
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name in names:
        return folder / f"{name}.yaml"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    what = KINDS.get(kind, kind).removesuffix("s")
    raise UsageError(f"Unknown {what} {name!r}. {hint}There are: {', '.join(names)}, or the path of a .yaml file.")


def find_configs(words: list[str]) -> list[str]:
    """The words of a command line; a `configs/...` that is not in the working directory becomes the shipped file.

    Raises:
        UsageError: If a file is not YAML.
    """
    found = [
        _find(word) if before in ("-c", "--config") else word for before, word in zip(["", *words], words, strict=False)
    ]
    for before, word in zip(["", *found], found, strict=False):
        if before in ("-c", "--config") or word.startswith("--config="):
            _check_yaml(Path(word.removeprefix("--config=")))
    return found


def _check_yaml(path: Path) -> None:
    """Tells what the argument parser would end on; that there is no file it tells itself."""
    if not path.is_file():
        return
    try:
        yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a YAML file: {error}") from error


def _find(word: str) -> str:
    path = Path(word)
    shipped = configs_folder().joinpath(*path.parts[1:])
    return str(shipped) if path.parts[:1] == ("configs",) and not path.exists() and shipped.exists() else word
