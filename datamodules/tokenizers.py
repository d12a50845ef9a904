"""The tokenizer: load it, identify it, and apply it to all texts at once."""

import json
from collections.abc import Sequence

import pyarrow as pa
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.cache import text_digest
from datamodules.errors import DataError
from datamodules.hub_access import endpoint, is_reachable, loading_advice, root_cause


def load_tokenizer(path: str, max_length: int) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the hub or a folder; it pads on the right, with eos if it has no pad token.

    Raises:
        DataError: If there is none at `path`, or it takes fewer than `max_length` tokens.
    """
    try:
        offline = not is_reachable(path, "model")
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=offline, trust_remote_code=False)
    except Exception as err:
        raise DataError(
            f"The tokenizer {path!r} could not be loaded, neither from a folder nor from {endpoint()} nor from a local "
            f"copy ({root_cause(err)}). {loading_advice()}"
        ) from err
    if max_length > tokenizer.model_max_length:
        raise DataError(f"max_length is {max_length}, but the model of {path!r} takes {tokenizer.model_max_length}.")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise DataError(f"The tokenizer {path!r} has neither a pad token nor an eos token: set one in its files.")
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of everything that determines the tokens of a text."""
    if not tokenizer.is_fast:
        return text_digest(type(tokenizer).__name__, json.dumps(tokenizer.get_vocab(), sort_keys=True))
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return text_digest(json.dumps(content | {"truncation": None, "padding": None}, sort_keys=True))


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> pa.Table:
    """Return `input_ids` (lists of int32), special tokens included, without pad tokens at the end.

    A text may end in the string of the pad token, and a tokenizer may append that token. The sequence classifiers of
    transformers take every pad token at the end for padding (`GenericForSequenceClassification`), so these are cut
    here: an exported model then reads what its run has read. A text without tokens becomes one pad token.
    """
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=False)
    rows = [_without_padding(ids, tokenizer.pad_token_id) for ids in encoded["input_ids"]]
    return pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32()))})


def _without_padding(ids: list[int], pad_token_id: int) -> list[int]:
    end = len(ids)
    while end and ids[end - 1] == pad_token_id:
        end -= 1
    return ids[:end] or [pad_token_id]


def tokenize_dataset(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> pa.Table:
    """Return the tokens of a dataset, as `tokenize` does.

    Raises:
        DataError: If most texts have none: the tokenizer does not know their words.
    """
    table = tokenize(tokenizer, texts, max_length)
    empty = [n for n, ids in enumerate(table.column("input_ids").to_pylist()) if ids == [tokenizer.pad_token_id]]
    if 2 * len(empty) > len(texts):
        raise DataError(
            f"The tokenizer ({type(tokenizer).__name__}) makes no tokens of {len(empty):,} of {len(texts):,} texts, "
            f"for example {texts[empty[0]][:80]!r}. Check that it loads as it was saved, or give another: --tokenizer"
        )
    return table
