"""Pad tokens at the end of a text are padding; all others are part of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from datamodules import DataError
from datamodules.tokenizers import load_tokenizer, tokenize, tokenize_dataset

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


def test_a_tokenizer_that_knows_no_word_of_a_dataset_is_refused(tmp_path):
    """AutoTokenizer makes a Qwen2Tokenizer of any tokenizer beside a Qwen2's configuration, here one without merges."""
    vocabulary = {"<unk>": 0, "<eos>": 1, "good": 2, "bad": 3}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>").save_pretrained(tmp_path)
    texts = ["good bad", "bad good", ""]
    tokens = tokenize_dataset(load_tokenizer(str(tmp_path), MAX_LENGTH), texts, MAX_LENGTH)
    assert tokens.column("input_ids").to_pylist() == [[2, 3], [3, 2], [1]]
    Qwen2Config(vocab_size=4).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"\(Qwen2Tokenizer\) makes no tokens of 3 of 3 texts, for example 'good bad'"):
        tokenize_dataset(load_tokenizer(str(tmp_path), MAX_LENGTH), texts, MAX_LENGTH)
