"""What all datasets share: splits, tokens, the cache of both, and batches."""

import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from datamodules.batching import IGNORED_LABEL, BatchSampler, Budget, ResumableDataLoader, TokenizedRows
from datamodules.cache import cached_table, table_digest, text_digest
from datamodules.errors import DataError
from datamodules.files import text_of
from datamodules.labels import check_label_names
from datamodules.splits import PROTOCOL, SPLITS, Splits, SplitSizes, draw_splits
from datamodules.tokenizers import load_tokenizer, tokenize, tokenize_dataset, tokenizer_digest

TrainOn = Literal["train", "head_init"]
EarlyStopOn = Literal["dev", "eval"]
Batches = DataLoader[dict[str, Tensor]]

CALIBRATION_TOKENS = 2048
"""Most tokens in a calibration batch. Fixed, so that a mask's gradient does not depend on the training batch size."""


class TextDataModule(LightningDataModule, ABC):
    """Text classification on splits of fixed sizes: `head_init`, `train` and `dev` from a pool, and `eval`.

    A dataset is a subclass that sets the class attributes and defines `load_source`. `datamodules.splits` draws the
    splits; they and their tokens are kept in `cache_dir`. A batch is a dict of int64 tensors: `input_ids` and
    `attention_mask` [B, T], padded on the right, `labels` [B], and `row` [B], the position of the example in the
    source.

    Args:
        tokenizer: Hub id or folder of the tokenizer.
        batch_size: Rows per training batch and device.
        eval_batch_size: Most rows per batch of dev or eval; None is no limit but `eval_tokens`.
        eval_tokens: Most tokens per batch of dev or eval, padding included. Metrics are equal except for rounding.
        max_length: Texts are cut to this many tokens.
        head_init_size: Rows that train the head of the baseline.
        train_size: Rows that train the arms and from which masks are made.
        dev_size: Rows for early stopping and every choice.
        eval_size: Most rows of the evaluation split, stratified; None for all of them. Changes no other split.
        calibration_size: Rows of train that masks are made from, stratified; all of them if None. They are the rows
            that a train split of that size would have.
        shuffle_calibration_labels: Permute the labels of those rows: a control whose gradient sees the texts without
            their labels.
        train_on: The split that `train_dataloader` draws from.
        early_stop_on: The split that is validated during a fit.
        pad_lengths: Lengths to pad batches to; None pads to the longest row. With them all batches of one length have
            the same number of rows (missing ones have `row` -1 and `labels` -100), because a TPU compiles one program
            per shape.
        seed: Seed of the splits and of the training order.
        cache_dir: Folder for splits and tokens; None for `outputs/cache`.
        num_workers: Worker processes that make batches.

    Attributes:
        text_columns: The column with the text, or several that are joined by `": "`.
        fingerprint: SHA-256 of the source's content, the sizes, the seed and the protocol; set by `setup`.
        split_sizes: Rows in each split; set by `setup`.

    Raises:
        DataError: If an argument is out of range.
    """

    name: str
    label_names: Sequence[str]
    eval_split_name: str
    text_columns: Sequence[str] = ("text",)

    def __init__(
        self,
        tokenizer: str,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        eval_tokens: int = 4096,
        max_length: int = 128,
        head_init_size: int = 500,
        train_size: int = 1000,
        dev_size: int = 500,
        eval_size: int | None = None,
        calibration_size: int | None = None,
        shuffle_calibration_labels: bool = False,
        train_on: TrainOn = "train",
        early_stop_on: EarlyStopOn = "dev",
        pad_lengths: list[int] | None = None,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer_path = tokenizer
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.eval_tokens = eval_tokens
        self.max_length = max_length
        self.sizes = SplitSizes(head_init_size, train_size, dev_size, eval_size)
        self.calibration_size = calibration_size
        self.shuffle_calibration_labels = shuffle_calibration_labels
        self.train_on = train_on
        self.early_stop_on = early_stop_on
        self.pad_lengths = pad_lengths
        self.seed = seed
        self.cache_dir = Path(cache_dir or "outputs/cache")
        self.num_workers = num_workers
        self.fingerprint = ""
        self.split_sizes: dict[str, int] = {}
        self._rows: dict[str, TokenizedRows] = {}
        self.tokenizer_digest = ""
        self._tokens_digest = ""
        self._check_arguments()

    @abstractmethod
    def load_source(self) -> tuple[pa.Table, pa.Table]:
        """Return the training pool and the evaluation rows: tables of `row` and `label` (int64) and `text`.

        An unlabeled row has label -1. No column has nulls.

        Raises:
            DataError: If the data cannot be loaded or is malformed.
        """

    @property
    def num_labels(self) -> int:
        """The number of classes; known without a download."""
        return len(self.label_names)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a pad token and right padding."""
        return load_tokenizer(self.tokenizer_path, self.max_length)

    @property
    def pad_token_id(self) -> int:
        """The token that batches are padded with."""
        return self.tokenizer.pad_token_id

    def prepare_data(self) -> None:
        """Download, split and tokenize in one process, so that the others find everything in the cache."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Make the splits and their tokens, or read them from the cache; a second call does nothing.

        Raises:
            DataError: If the data or the tokenizer cannot be loaded, a class has too few rows, or the trainer has
                `overfit_batches`, for which Lightning would replace the batch sampler.
        """
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise DataError("overfit_batches does not work with batches made by length: lower train_size instead.")
        if self._rows:
            return
        splits = self._load_splits()
        tokens = self._load_tokens(splits)
        self._rows = {split: self._select(splits, tokens, _positions(splits, split)) for split in SPLITS}
        calibration = _positions(splits, "train")[: self.calibration_size]  # the rows of a smaller train come first
        self._calibration = self._select(splits, tokens, calibration)
        if self.shuffle_calibration_labels:
            self._calibration.labels = self._permuted(self._calibration.labels)
        self._largest_token = pc.max(pc.list_flatten(tokens.column("input_ids"))).as_py()
        self.split_sizes = {split: len(rows) for split, rows in self._rows.items()}
        rank_zero_info(f"{self.name}: {self.split_sizes}, fingerprint {self.fingerprint[:12]}")

    def train_dataloader(self) -> Batches:
        """Return shuffled batches of `train_on`, grouped by length; this rank's share in a distributed run."""
        rows = self._rows[self.train_on]
        budget = Budget(self.eval_tokens, self.batch_size, fill=bool(self.pad_lengths))
        sampler = BatchSampler(rows.widths, budget, shuffle=True, seed=self.seed, **self._ranks())
        return ResumableDataLoader(rows, batch_size=None, sampler=sampler, **self._loading())

    def val_dataloader(self) -> Batches:
        """Return `early_stop_on` during a fit, eval when validating, and dev without a trainer."""
        if self.trainer is None:
            return self.ordered_dataloader("dev")
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        return self.ordered_dataloader(self.early_stop_on if fitting else "eval")

    def test_dataloader(self) -> Batches:
        """Return eval, longest rows first."""
        return self.ordered_dataloader("eval")

    def texts_dataloader(self, texts: Sequence[str]) -> Batches:
        """Return any texts, longest first, tokenized and batched like eval.

        `row` is the position in `texts`, `labels` are -100.
        """
        tokens = tokenize(self.tokenizer, texts, self.max_length).column("input_ids")
        places = torch.arange(len(texts))
        rows = self._tokenized(tokens, torch.full_like(places, IGNORED_LABEL), places)
        return self._ordered(rows, self._eval_budget)

    def calibration_dataloader(self) -> Batches:
        """Return `calibration_size` rows of `train` once, in batches of at most 2,048 tokens of similar length.

        Every rank gets all of them. The batches depend on these rows alone, not on the batch size, the workers or
        `train_on`.
        """
        return self._ordered(self._calibration, Budget(CALIBRATION_TOKENS))

    def example_batches(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return two batches that try what any batch may hold, to find early what a model cannot read.

        The first has one row of `max_length` tokens, whatever the texts have, with the largest token of all splits. The
        second has two short rows, one with padding.
        """
        tokens = self._rows["train"].tokens[0]
        full = tokens.repeat(self.max_length // len(tokens) + 1)[: self.max_length].clone()
        full[-1] = self._largest_token
        parts = [full, full[:3], full[:2]]
        lengths, zeros = torch.tensor([len(part) for part in parts]), torch.zeros(3, dtype=torch.long)
        rows = TokenizedRows(torch.cat(parts), lengths, zeros, zeros, self.pad_token_id)
        return rows[[0]], rows[[1, 2]]

    def num_tokens(self, split: str) -> int:
        """Return the number of tokens in `split`, without padding."""
        return sum(self._rows[split].lengths)

    def split_key(self, split: str) -> str:
        """Return a digest of the rows of `split`, their tokens, and how `ordered_dataloader` batches them."""
        lengths = json.dumps([self.eval_batch_size, self.eval_tokens, self.pad_lengths])
        return text_digest(self._tokens_digest, split, lengths)

    def ordered_dataloader(self, split: str, shared: bool = True) -> Batches:
        """Return every row of `split` once, longest first.

        Args:
            split: The split.
            shared: In a distributed run, return only this rank's share of the rows.
        """
        return self._ordered(self._rows[split], self._eval_budget, **(self._ranks() if shared else {}))

    @property
    def _eval_budget(self) -> Budget:
        """What a batch may hold where nothing is trained."""
        return Budget(self.eval_tokens, self.eval_batch_size, fill=bool(self.pad_lengths))

    def _ordered(self, rows: TokenizedRows, budget: Budget, **ranks: int) -> Batches:
        """Batch rows of similar length."""
        sampler = BatchSampler(rows.widths, budget, shuffle=False, **ranks)
        return DataLoader(rows, batch_size=None, sampler=sampler, **self._loading())

    def _loading(self) -> dict[str, Any]:
        """Return the DataLoader options; a GPU copies from pinned memory while it computes."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "pin_memory": on_gpu}

    def _ranks(self) -> dict[str, int]:
        """Return the number of ranks that share the data and this rank; empty for a single process."""
        kwargs = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return kwargs or {}

    def _load_splits(self) -> pa.Table:
        """Return the table of `row`, `text`, `label` and `split`, and set the fingerprint."""
        pool, held_out = self.load_source()
        sizes = json.dumps(asdict(self.sizes), sort_keys=True)
        self.fingerprint = text_digest(PROTOCOL, sizes, str(self.seed), table_digest(pool), table_digest(held_out))
        path = self.cache_dir / "splits" / f"{self.name}-{self.fingerprint[:16]}.parquet"
        key = {"protocol": PROTOCOL, "fingerprint": self.fingerprint}
        return cached_table(path, key, lambda: self._draw(pool, held_out))

    def _draw(self, pool: pa.Table, held_out: pa.Table) -> pa.Table:
        """Draw the splits and concatenate their rows."""
        pool_texts, pool_labels = pool.column("text").to_pylist(), pool.column("label").to_pylist()
        eval_texts, eval_labels = held_out.column("text").to_pylist(), held_out.column("label").to_pylist()
        drawn = draw_splits(pool_texts, pool_labels, eval_texts, eval_labels, self.sizes, self.seed, self.label_names)
        self._report(drawn, len(pool))
        parts = [
            (held_out if split == "eval" else pool)
            .take(drawn.rows[split])
            .select(["row", "text", "label"])
            .append_column("split", pa.repeat(split, len(drawn.rows[split])))
            for split in SPLITS
        ]
        return pa.concat_tables(parts)

    def _report(self, drawn: Splits, pool_size: int) -> None:
        """Say which rows cannot be drawn, and warn of equal texts with different labels."""
        if drawn.left_out:
            reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in drawn.left_out.items())
            rank_zero_info(f"{self.name}: of {pool_size:,} training rows, some are left out: {reasons}")
        if drawn.contradictions:
            rank_zero_warn(
                f"{self.name}: texts with different labels: {len(drawn.contradictions):,}, for example "
                f"{drawn.contradictions[0][:80]!r}. At most one of the rows of such a text is drawn for training. "
                "Check the labels."
            )

    def _load_tokens(self, splits: pa.Table) -> pa.Table:
        """Return the table of `input_ids`, one list per row of `splits`."""
        self.tokenizer_digest = tokenizer_digest(self.tokenizer)
        key = {"fingerprint": self.fingerprint, "tokenizer": self.tokenizer_digest, "max_length": str(self.max_length)}
        key["pad"] = str(self.pad_token_id)
        self._tokens_digest = text_digest(*key.values())
        path = self.cache_dir / "tokens" / f"{self.name}-{self._tokens_digest[:16]}.parquet"
        texts = splits.column("text")
        return cached_table(path, key, lambda: tokenize_dataset(self.tokenizer, texts.to_pylist(), self.max_length))

    def _permuted(self, labels: Tensor) -> Tensor:
        """Return the labels, permuted by the seed alone."""
        return labels[random.Random(f"labels/{self.seed}").sample(range(len(labels)), len(labels))]

    def _select(self, splits: pa.Table, tokens: pa.Table, positions: np.ndarray) -> TokenizedRows:
        """Return the rows at these positions of `splits`."""
        chosen, input_ids = splits.take(positions), tokens.column("input_ids").take(positions)
        return self._tokenized(input_ids, _tensor(chosen.column("label")), _tensor(chosen.column("row")))

    def _tokenized(self, input_ids: pa.ChunkedArray, labels: Tensor, rows: Tensor) -> TokenizedRows:
        """Return rows, ready for batching, from one list of token ids per row."""
        tokens, lengths = _tensor(pc.list_flatten(input_ids)), _tensor(pc.list_value_length(input_ids))
        return TokenizedRows(tokens, lengths, labels, rows, self.pad_token_id, self.pad_lengths)

    def _check_arguments(self) -> None:
        """Refuse arguments that are out of range, by name."""
        check_label_names(self.label_names)
        _require(bool(self.text_columns), "text_columns", self.text_columns, "at least one column")
        plain = re.fullmatch(r"\w[\w .-]{0,99}", self.name) is not None  # part of the names of cache files
        _require(plain, "name", self.name, "up to 100 letters, digits, spaces, dots, hyphens and underscores")
        for name in ("batch_size", "eval_tokens", "max_length"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        rows = self.eval_batch_size
        _require(rows is None or rows >= 1, "eval_batch_size", rows, "at least 1, or None")
        for split, size in asdict(self.sizes).items():
            enough = size is None or size >= self.num_labels
            _require(enough, f"{split}_size", size, f"at least {self.num_labels}, one row per class")
        few, many = self.num_labels, self.sizes.train
        calibration = self.calibration_size
        fits = calibration is None or few <= calibration <= many
        _require(fits, "calibration_size", calibration, f"from {few}, one row per class, to train_size, {many}")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")
        _require(self.train_on in get_args(TrainOn), "train_on", self.train_on, "'train' or 'head_init'")
        _require(self.early_stop_on in get_args(EarlyStopOn), "early_stop_on", self.early_stop_on, "'dev' or 'eval'")
        lengths = self.pad_lengths
        reaches = lengths is None or (bool(lengths) and min(lengths) >= 1 and max(lengths) >= self.max_length)
        _require(reaches, "pad_lengths", lengths, f"lengths from 1 that reach max_length, {self.max_length}")


def join_texts(table: pa.Table, columns: Sequence[str]) -> pa.ChunkedArray:
    """Return the one text column as it is, or several, trimmed and joined by `": "`; a missing text is empty.

    Raises:
        DataError: If a column does not hold text.
    """
    texts = [text_of(table, name) for name in columns]
    if len(texts) == 1:
        return texts[0]
    return pc.binary_join_element_wise(*map(pc.utf8_trim_whitespace, texts), pa.scalar(": ", pa.large_string()))


def _positions(splits: pa.Table, split: str) -> np.ndarray:
    """Return the positions of the rows of one split."""
    return np.flatnonzero(splits.column("split").to_numpy() == split)


def _tensor(column: pa.ChunkedArray) -> Tensor:
    """Copy a numeric column into a tensor."""
    return torch.tensor(column.to_numpy())


def _require(holds: bool, name: str, found: object, wanted: str) -> None:
    """Raise unless an argument is in range."""
    if not holds:
        raise DataError(f"{name} is {found!r}, but must be {wanted}.")
