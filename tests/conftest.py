"""What several tests need: a tiny Qwen2 with a tokenizer of its own, and a run of the command line in a folder."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on other numbers of threads, sums differ in their last bits

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
TEXTS = ["return the given array as a tensor of the same shape", "compute a new graph from nodes and edges"]


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a two-layer Qwen2 of random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen2"
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=special)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<unk>")
    fast.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    Qwen2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of splits and tokens for all runs of a test session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def influence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `influence ...` in this process, in an empty folder; return its exit status."""
    from lightning_app.__main__ import main

    monkeypatch.chdir(tmp_path)
    return lambda *words: main([str(word) for word in words])
