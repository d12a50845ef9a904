"""Pad tokens at the end of a text are padding; all others are part of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.tokenizers import load_tokenizer, tokenize

PAD = "<|endoftext|>"
MAX_LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer(tiny_qwen):
    return load_tokenizer(tiny_qwen, MAX_LENGTH)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([PAD, "a", "array ", " ", "\n", "<unk>"]), max_size=20).map("".join))
def test_pad_tokens_at_the_end_are_cut_and_nothing_else(tokenizer, text):
    found = tokenize(tokenizer, [text], MAX_LENGTH).column("input_ids").to_pylist()[0]
    whole = tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    pad = tokenizer.pad_token_id
    assert found[-1] != pad or found == [pad]
    assert whole[: len(found)] == found or whole == []
    assert set(whole[len(found) :]) <= {pad}
