import re
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import DataError, Docstrings
from datamodules.docstrings import LIBRARIES, blank_names, first_paragraphs, hold_out, library_paragraphs
from datamodules.keys import loose_key

SOURCE = b'''
"""Module text
on two lines.

Second paragraph."""

class Thing:
    """A thing."""

    async def act(self):
        r"""Acts on \\d."""

    def silent(self):
        return "not a docstring"
'''


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def module(tokenizer_folder, cache_dir):
    module = Docstrings(tokenizer_folder, cache_dir=cache_dir)
    module.setup()
    return module


def test_first_paragraphs_are_those_of_modules_classes_and_functions():
    assert [text for text in first_paragraphs(SOURCE) if text] == [
        "Module text on two lines.",
        "A thing.",
        "Acts on \\d.",
    ]


@pytest.mark.parametrize(
    ("text", "blanked"),
    [
        ("Convert a NumPy array (np.ndarray) to a torch.Tensor.", "Convert a ___ array (___.ndarray) to a ___.Tensor."),
        ("See PyTorch, pd.Series, plt and matplotlib.pyplot", "See ___, ___.Series, ___ and ___.___"),
        ("A transformer, a symbol and an input", "A transformer, a symbol and an input"),
        ("HuggingFace Transformers or sympy_latex", "___ ___ or ___"),
    ],
)
def test_names_and_aliases_are_blanked_and_other_words_are_not(text, blanked):
    assert blank_names(text) == blanked


@given(st.text(), st.sampled_from(LIBRARIES), st.text())
def test_no_library_name_survives(before, library, after):
    blanked = blank_names(f"{before} {library.upper()} {after}").lower()
    assert not any(name in blanked for name in LIBRARIES)


def test_the_corpus_is_balanced_sensible_and_without_repeats(module):
    pool, held_out = module.load_source()
    assert held_out.num_rows == 1000
    corpus = pa.concat_tables([pool, held_out])
    counts = {row["values"]: row["counts"] for row in corpus.column("label").value_counts().to_pylist()}
    assert counts == dict.fromkeys(range(7), 800)
    texts = corpus.column("text").to_pylist()
    assert min(len(text.split()) for text in texts) >= 5
    assert not any(re.fullmatch(r"[\w.]+\(.*\)", text) for text in texts)
    assert not any(name in text.lower() for text in texts for name in LIBRARIES)
    held_out_texts = {loose_key(text) for text in held_out.column("text").to_pylist()}
    assert len(held_out_texts) == 1000


def test_eval_does_not_change_with_the_seed(module, tokenizer_folder, cache_dir):
    other = Docstrings(tokenizer_folder, cache_dir=cache_dir, seed=1, eval_size=500)
    assert other.load_source()[1].equals(module.load_source()[1])
    other.setup()
    assert other.split_sizes == {"head_init": 500, "train": 1000, "dev": 500, "eval": 500}
    assert module.split_sizes["eval"] == 1000
    assert other.fingerprint != module.fingerprint


def test_the_paragraphs_are_read_once(module, tokenizer_folder, cache_dir, monkeypatch):
    monkeypatch.setattr("datamodules.docstrings.collect", None)
    again = Docstrings(tokenizer_folder, cache_dir=cache_dir)
    again.setup()
    assert again.fingerprint == module.fingerprint


def test_another_version_of_a_library_is_read_again(module, tokenizer_folder, cache_dir, monkeypatch):
    monkeypatch.setattr("datamodules.docstrings.version", lambda library: "0.0")
    monkeypatch.setattr("datamodules.docstrings.collect", lambda: pytest.fail("read again"))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        Docstrings(tokenizer_folder, cache_dir=cache_dir).setup()


def test_held_out_rows_are_spread_over_the_classes():
    texts = [f"paragraph {row}" for row in range(700)]
    corpus = pa.table({"text": texts, "label": [row % 7 for row in range(700)]})
    rows = hold_out(corpus, 70)
    assert sorted(row % 7 for row in rows) == sorted(list(range(7)) * 10)


def test_a_library_is_read_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "loud"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text('"""One two three four five."""\nraise RuntimeError("imported")\n')
    (package / "tests" / "test_it.py").write_text('"""Tests are not read, however long they are."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("datamodules.docstrings.version", lambda library: "1.0")
    assert library_paragraphs("loud", 1) == ["One two three four five."]
    assert "loud" not in sys.modules
    with pytest.raises(DataError, match="2 docstrings of loud are needed, but its source has 1"):
        library_paragraphs("loud", 2)


def test_a_library_that_is_not_installed_is_an_error_that_names_it():
    with pytest.raises(DataError, match="no_such_library, which is not installed"):
        library_paragraphs("no_such_library", 1)
