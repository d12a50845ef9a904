"""The embedded dataset: for which installed library was this docstring written?"""

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
from datamodules.keys import loose_key
from datamodules.splits import allocate, candidates, draw_keys

LIBRARIES = ("matplotlib", "networkx", "numpy", "pandas", "sympy", "torch", "transformers")
"""All are direct or indirect dependencies of this package."""

PER_LIBRARY = 800
HELD_OUT = 1000
MIN_WORDS = 5
"""Fewest plain words in a paragraph; with fewer it is a signature or a title."""

COLLECTION = "1"
"""Part of the cache key: increase it whenever the same sources give other paragraphs."""

BLANK = "___"
_LIBRARY_NAMES = re.compile(
    r"\w*(?:torch|numpy|pandas|matplotlib|pyplot|networkx|sympy|transformers|hugging ?face)\w*"
    r"|\b(?:np|pd|plt|mpl|nx|sp|hf)\b",
    re.IGNORECASE,
)
_TEST_FOLDERS = {"tests", "test", "testing"}

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstrings(TextDataModule):
    """First paragraphs of docstrings, read from the source of installed packages without a download or an import.

    The names of the libraries and their usual aliases are blanked out. Each library has 800 different paragraphs.
    1,000 of all paragraphs are held out for evaluation; they do not depend on the seed.
    """

    name = "docstrings"
    label_names = LIBRARIES
    eval_split_name = "held out"

    def load_source(self) -> tuple[pa.Table, pa.Table]:
        """Read the paragraphs and hold some out; `row` is the position among all of them."""
        versions = {library: _installed(library)[0] for library in LIBRARIES}
        key = {"collection": COLLECTION, **versions}
        path = self.cache_dir / "docstrings" / f"{text_digest(*key.values())[:16]}.parquet"
        corpus = cached_table(path, key, collect)
        held_out = np.isin(np.arange(len(corpus)), hold_out(corpus, HELD_OUT))
        return corpus.filter(~held_out), corpus.filter(held_out)


def collect() -> pa.Table:
    """Return `row`, `text` and `label` of `PER_LIBRARY` paragraphs of each library."""
    gc.freeze()  # otherwise each garbage collection visits all imported modules, which takes half the time
    try:
        texts = [text for library in LIBRARIES for text in library_paragraphs(library, PER_LIBRARY)]
    finally:
        gc.unfreeze()
    labels = np.repeat(np.arange(len(LIBRARIES)), PER_LIBRARY)
    return pa.table({"row": np.arange(len(texts)), "text": texts, "label": labels})


def hold_out(corpus: pa.Table, size: int) -> list[int]:
    """Draw `size` stratified rows by the hashes of their texts."""
    texts, labels = corpus.column("text").to_pylist(), corpus.column("label").to_pylist()
    by_class = candidates(texts, labels, draw_keys(map(loose_key, texts), "held out"), len(LIBRARIES))
    shares = allocate(size, [len(rows) for rows in by_class])
    return [row for rows, share in zip(by_class, shares, strict=True) for row in rows[:share]]


def library_paragraphs(library: str, size: int) -> list[str]:
    """Return the first `size` different paragraphs, in the order of the hashes of the files' paths.

    Raises:
        DataError: If the library is not installed, or its source has too few docstrings.
    """
    found: dict[bytes, str] = {}
    for file in _source_files(library):
        for text in map(blank_names, first_paragraphs(file.read_bytes())):
            if sum(word.strip(".,;:()'\"").isalpha() for word in text.split()) >= MIN_WORDS:
                found.setdefault(loose_key(text), text)
        if len(found) >= size:
            return list(found.values())[:size]
    raise DataError(f"{size} docstrings of {library} are needed, but its source has {len(found)}. Reinstall it.")


def first_paragraphs(source: bytes) -> Iterator[str]:
    """Yield the first paragraph of each docstring of a module, class or function, on one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # about escape sequences in the libraries' strings
        tree = ast.parse(source)
    for node in _definitions(tree):
        paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
        yield " ".join(paragraph.split())


def _definitions(node: Definition) -> Iterator[Definition]:
    """Yield `node` and the classes and functions in its body; faster than `ast.walk`, which visits every node."""
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(child)


def blank_names(text: str) -> str:
    """Replace the names of the libraries, their aliases, and words that contain them."""
    return _LIBRARY_NAMES.sub(BLANK, text)


def _source_files(library: str) -> list[Path]:
    """List the library's Python files without its tests, in the order of the hashes of their paths."""
    _, root = _installed(library)
    paths = [file.relative_to(root) for file in root.rglob("*.py")]
    kept = [path.as_posix() for path in paths if not _TEST_FOLDERS.intersection(path.parts)]
    return [root / path for path in sorted(kept, key=lambda path: hashlib.blake2b(path.encode()).digest())]


def _installed(library: str) -> tuple[str, Path]:
    """Return the version and the folder of a library without importing it."""
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"The docstrings dataset reads the source of {library}, which is not installed. Install it.")
    return version(library), Path(spec.submodule_search_locations[0])
