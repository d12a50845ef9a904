"""Files of results: named safely, written whole or not at all, and read strictly."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from lightning_app.errors import UsageError

if TYPE_CHECKING:
    import pyarrow

FIT_FILE, METRICS_FILE = "fit.json", "metrics.json"
PREDICTIONS_FILE, MASK_FILE, SWEEP_FILE = "predictions.parquet", "mask.safetensors", "sweep.json"


def check_name(what: str, name: str | None) -> str:
    """The name of a folder of results, unless it would lead to another place.

    Raises:
        UsageError: If it is not the name of one file or folder.
    """
    if name is not None and _is_plain(name):
        return name
    raise UsageError(
        f"{what} is {name!r}, but must be the name of a folder: not empty, not . or .., without / \\ : and control "
        "characters, and without spaces at its ends."
    )


def _is_plain(name: str) -> bool:
    """Whether a name is that of one file or folder, on every system."""
    is_text = name.isprintable() and name == name.strip() and name not in ("", "..")
    return is_text and all(kind(name).name == name for kind in (PurePosixPath, PureWindowsPath))


def own_folder(path: Path) -> Path:
    """Makes a folder that a report fills; one that is a link would have the files written elsewhere.

    Raises:
        UsageError: If there is a link.
    """
    if path.is_symlink():
        raise UsageError(f"{path} is a symbolic link, through which nothing is written. Delete it.")
    make_folder(path)
    return path


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, unless they are there.

    Raises:
        OSError: If it cannot be made; it names the folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # what /proc answers, also where the folder above is there
        raise PermissionError(errno.EACCES, "No folder can be made there", str(path)) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object atomically."""
    text = json.dumps(content, indent=2, allow_nan=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_parquet(path: Path, table: "pyarrow.Table") -> None:
    """Writes a Parquet file atomically, with a checksum a page."""
    from pyarrow.parquet import write_table

    write_atomically(path, lambda temporary: write_table(table, temporary, write_page_checksum=True))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Has a file written under a name of its own, and renamed once it is whole and on the disk.

    Args:
        path: The file; its folder is made if missing.
        write: Writes it to the path that it is given.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # none that a link could lie in wait under
    try:
        make_folder(path.parent)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:  # of a library, which says all in its message
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Makes a file beside a file that will be written later, and removes it.

    Raises:
        OSError: If nothing can be written there; it names the later file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        make_folder(path.parent)
        temporary.touch()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    temporary.unlink()


@contextmanager
def new_folder(path: Path, overwrite: bool, known_by: str) -> Iterator[Path]:
    """A folder to write into, which takes its name when all is in it; nothing is left of it after an error.

    Args:
        path: Its name; a folder that is there must be empty.
        overwrite: Replace a folder that is not empty, if it has the file `known_by`: others are never deleted.
        known_by: A file that tells what is written here from the user's own folders.

    Raises:
        UsageError: If there is something that may not be replaced.
    """
    path = path.resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not overwrite:
            raise UsageError(f"--out {path} is there and not empty. Name another folder, or --overwrite what is there.")
        if not (path / known_by).is_file():
            raise UsageError(f"--out {path} is no earlier export (it has no {known_by}), so it is not replaced.")
    temporary, before = (path.with_name(f".{path.name}.{uuid.uuid4().hex}.{end}") for end in ("tmp", "old"))
    try:
        make_folder(temporary)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        yield temporary
        if path.exists():
            path.rename(before)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        FileNotFoundError: If there is no file.
        UsageError: If the file holds something else.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file. Delete it and run the condition again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a JSON file ({error}). Delete it and run the condition again.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no JSON object. Delete it and run the condition again.")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return found
