"""The embedded dataset: which installed library was this docstring written for?"""

import ast
import gc
import hashlib
import re
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa

from datamodules.base import TextDataModule
from datamodules.cache import cached_table, text_digest
from datamodules.errors import DataError
from datamodules.splits import allocate, candidates, draw_keys

LIBRARIES = ("matplotlib", "networkx", "numpy", "pandas", "sympy", "torch", "transformers")
"""All are installed wherever this package is: it needs them, or what it needs does."""

PER_LIBRARY = 800
HELD_OUT = 1000
MIN_WORDS = 5
"""Plain words that a paragraph has at least: without them it is a bare signature or a title."""

COLLECTION = "1"
"""Part of the cache's key: raise it whenever the same sources would give other paragraphs."""

BLANK = "___"
_LIBRARY_NAMES = re.compile(
    r"\w*(?:torch|numpy|pandas|matplotlib|pyplot|networkx|sympy|transformers|hugging ?face)\w*"
    r"|\b(?:np|pd|plt|mpl|nx|sp|hf)\b",
    re.IGNORECASE,
)
_TEST_FOLDERS = {"tests", "test", "testing"}

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstrings(TextDataModule):
    """First paragraphs of docstrings, read from the source of installed packages; no download and no import.

    The names of the libraries and their usual aliases are blanked out. There are 800 different paragraphs of each
    library, of which 1,000 in all are held out for evaluation, whatever the seed.
    """

    name = "docstrings"
    label_names = LIBRARIES
    eval_split_name = "held out"

    def load_source(self) -> tuple[pa.Table, pa.Table]:
        """Reads the paragraphs and holds some out; ``row`` is the place among all of them."""
        versions = {library: _installed(library)[0] for library in LIBRARIES}
        key = {"collection": COLLECTION, **versions}
        path = self.cache_dir / "docstrings" / f"{text_digest(*key.values())[:16]}.parquet"
        corpus = cached_table(path, key, collect)
        held_out = np.isin(np.arange(len(corpus)), hold_out(corpus, HELD_OUT))
        return corpus.filter(~held_out), corpus.filter(held_out)


def collect() -> pa.Table:
    """Returns ``row``, ``text`` and ``label`` of ``PER_LIBRARY`` paragraphs of each library."""
    gc.freeze()  # or each collection looks through all imported modules, which takes half the time
    try:
        texts = [text for library in LIBRARIES for text in library_paragraphs(library, PER_LIBRARY)]
    finally:
        gc.unfreeze()
    labels = np.repeat(np.arange(len(LIBRARIES)), PER_LIBRARY)
    return pa.table({"row": np.arange(len(texts)), "text": texts, "label": labels})


def hold_out(corpus: pa.Table, size: int) -> list[int]:
    """Draws ``size`` stratified rows by the hash of their text."""
    texts, labels = corpus.column("text").to_pylist(), corpus.column("label").to_pylist()
    by_class = candidates(texts, labels, draw_keys(texts, "held out"), set(), len(LIBRARIES))
    shares = allocate(size, [len(rows) for rows in by_class])
    return [row for rows, share in zip(by_class, shares, strict=True) for row in rows[:share]]


def library_paragraphs(library: str, size: int) -> list[str]:
    """Returns the first ``size`` different paragraphs, the files visited in the order of their paths' hashes.

    Raises:
        DataError: the library is not installed, or its source has too few docstrings.
    """
    found: dict[bytes, str] = {}
    for file in _source_files(library):
        for text in map(blank_names, first_paragraphs(file.read_bytes())):
            if sum(word.strip(".,;:()'\"").isalpha() for word in text.split()) >= MIN_WORDS:
                found.setdefault(draw_keys([text], "")[0], text)
        if len(found) >= size:
            return list(found.values())[:size]
    raise DataError(f"{size} docstrings of {library} are needed, but its source has {len(found)}. Install it again.")


def first_paragraphs(source: bytes) -> Iterator[str]:
    """Yields the first paragraph, on one line, of each docstring of a module, a class or a function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # about escapes in other people's strings
        tree = ast.parse(source)
    for node in _definitions(tree):
        paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
        yield " ".join(paragraph.split())


def _definitions(node: Definition) -> Iterator[Definition]:
    """Yields ``node`` and the classes and functions in its body; faster than ``ast.walk``, which visits all."""
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(child)


def blank_names(text: str) -> str:
    """Replaces the names of all the libraries, their aliases, and words made with them."""
    return _LIBRARY_NAMES.sub(BLANK, text)


def _source_files(library: str) -> list[Path]:
    """Lists the library's Python files, tests aside, in the order of their paths' hashes."""
    _, root = _installed(library)
    paths = [file.relative_to(root) for file in root.rglob("*.py")]
    kept = [path.as_posix() for path in paths if not _TEST_FOLDERS.intersection(path.parts)]
    return [root / path for path in sorted(kept, key=lambda path: hashlib.blake2b(path.encode()).digest())]


def _installed(library: str) -> tuple[str, Path]:
    """Returns the version and the folder of a library, without importing it."""
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"The docstrings dataset reads the source of {library}, which is not installed. Install it.")
    return version(library), Path(spec.submodule_search_locations[0])
