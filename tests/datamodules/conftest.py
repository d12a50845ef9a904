"""A small tokenizer, made on the spot, and the toy dataset with it."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from datamodules import TextDataModule

WORDS = [f"w{index}" for index in range(200)]


class Toy(TextDataModule):
    """Six hundred rows to train on and a hundred to evaluate, of one to sixty words, in three unequal classes."""

    name = "toy"
    label_names = ("a", "b", "c")
    eval_split_name = "test"

    def load_source(self) -> tuple[pa.Table, pa.Table]:
        return make_table(600, 0), make_table(100, 1)


def make_table(size: int, seed: int) -> pa.Table:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(size)]
    labels = [rng.choice([0, 0, 0, 1, 1, 2]) for _ in range(size)]
    return pa.table({"row": np.arange(size), "text": texts, "label": labels})


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with a tokenizer of whole words that, as Qwen's, adds no special tokens."""
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "<eos>", *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def toy_class() -> type[Toy]:
    """Return the toy dataset, not set up."""
    return Toy


@pytest.fixture
def toy_table() -> Callable[[int, int], pa.Table]:
    """Make so many toy rows with a seed."""
    return make_table


@pytest.fixture
def make_toy(tokenizer_folder: str, tmp_path: Path):
    """Make a toy datamodule, set up, with sizes that fit it."""

    def make(**kwargs) -> Toy:
        sizes = {"head_init_size": 50, "train_size": 200, "dev_size": 60}
        module = Toy(tokenizer_folder, **{**sizes, "cache_dir": tmp_path / "cache", **kwargs})
        module.setup()
        return module

    return make
