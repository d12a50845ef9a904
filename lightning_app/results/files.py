"""Files of results: named safely, written atomically and read strictly."""

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

RERUN = "Run the condition again with --overwrite."
"""Advice for a damaged or missing file that a run wrote."""


def check_name(what: str, name: str | None) -> str:
    """Return a name if it is fit for a folder of results: it must not lead to another place.

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
    """Return whether a name is that of one file or folder, on every system."""
    is_printable = name.isprintable() and name == name.strip() and name not in ("", "..")
    return is_printable and all(kind(name).name == name for kind in (PurePosixPath, PureWindowsPath))


def make_report_folder(path: Path) -> Path:
    """Make a folder for the files of a report.

    Raises:
        UsageError: If the folder is a symbolic link: the files would be written to another place.
    """
    if path.is_symlink():
        raise UsageError(f"{path} is a symbolic link, so a report cannot be written there. Rename it.")
    make_folder(path)
    return path


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they exist.

    Raises:
        OSError: If it cannot be made; it names the folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # raised by /proc even if the folder above exists
        raise PermissionError(errno.EACCES, "No folder can be made here", str(path)) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=True) + "\n")


def write_parquet(path: Path, table: "pyarrow.Table") -> None:
    """Write a Parquet file atomically, with one checksum per page."""
    from pyarrow.parquet import write_table

    write_atomically(path, lambda temporary: write_table(table, temporary, write_page_checksum=True))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name, and rename it once it is whole and on the disk.

    Args:
        path: The file; its folder is made if missing.
        write: Called with the temporary path, to which it writes.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # a random name: no link can be waiting under it
    try:
        make_folder(path.parent)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None:  # raised by a library, with everything in its message
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check that a file can be written, by making and removing another one in the same folder.

    Raises:
        OSError: If nothing can be written; it names the file.
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
    """Yield a temporary folder, which is renamed to `path` at the end, or deleted after an error.

    Args:
        path: The folder; if it exists it must be empty.
        overwrite: Replace a folder that is not empty, if it has the file `known_by`: others are never deleted.
        known_by: A file that only folders written here have.

    Raises:
        UsageError: If `path` exists and may not be replaced.
    """
    path = path.resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not overwrite:
            raise UsageError(f"--out {path} exists and is not empty. Give another folder, or add --overwrite.")
        if not (path / known_by).is_file():
            raise UsageError(
                f"--out {path} is not an earlier export (it has no {known_by}), so it is not replaced. Give another "
                "folder."
            )
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
    """Read a JSON object.

    Raises:
        FileNotFoundError: If there is no file.
        UsageError: If it is not a file that holds a JSON object.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file. {RERUN}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a JSON file ({error}). {RERUN}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} does not hold a JSON object. {RERUN}")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(content := dict(pairs)) < len(pairs):
        raise ValueError("it has a key twice")
    return content
