"""The shipped configurations: where they are, and what they are called."""

import difflib
from pathlib import Path

import yaml

from lightning_app.errors import UsageError


def configs_folder() -> Path:
    """Beside the packages in a checkout, inside this package in an installed wheel."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def config_file(kind: str, name: str) -> Path:
    """The file `configs/<kind>/<name>.yaml`.

    Raises:
        UsageError: If there is none; lists what there is, near misses first.
    """
    folder = configs_folder() / kind
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name in names:
        return folder / f"{name}.yaml"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    what = {"data": "dataset", "arms": "arm"}.get(kind, kind)
    raise UsageError(f"Unknown {what} {name!r}. {hint}There are: {', '.join(names)}.")


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
