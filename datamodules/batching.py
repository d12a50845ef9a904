"""Batches: which rows go together, and how they are padded."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, DistributedSampler

WINDOW = 16
"""Number of training batches whose rows are sorted by length together."""

SHORTEST = 0.9
"""Lower bound of the shortest row's length in a sorted batch, relative to the longest: bounds the padding."""

LEAST_FILLED = 0.125
"""Share of its tokens below which a batch takes shorter rows nevertheless: small products are slow on every device."""

NO_ROW = -1
"""Fills a batch that has too few rows: one padding token, a label that losses ignore, no source row."""

IGNORED_LABEL = -100
"""The label that `torch.nn.functional.cross_entropy` ignores."""


@dataclass(frozen=True)
class Budget:
    """What a batch of rows in the order of their lengths may hold; always at least one row.

    Attributes:
        tokens: Tokens at most, padding included.
        rows: Rows at most; None is no limit.
        fill: Whether batches that have fewer rows than fit are filled with `NO_ROW`, so that all batches of one width
            have one shape. Rows of all lengths then share a batch.
    """

    tokens: int
    rows: int | None = None
    fill: bool = False

    def rows_of(self, width: int) -> int:
        """Return how many rows of this width fit."""
        fit = max(1, self.tokens // max(width, 1))
        return fit if self.rows is None else min(fit, self.rows)

    def is_over(self, rows: int, longest: int, length: int) -> bool:
        """Whether a batch of this many rows, padded to `longest`, is not to take a row of `length`."""
        too_short = length < SHORTEST * longest and rows * longest >= LEAST_FILLED * self.tokens
        return rows == self.rows_of(longest) or (too_short and not self.fill)


def sorted_batches(lengths: Sequence[int], budget: Budget) -> list[list[int]]:
    """Cut the rows, longest first, into batches of similar length.

    Longest first, so that a batch too large for the memory fails at once.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if not batches or budget.is_over(len(batches[-1]), lengths[batches[-1][0]], lengths[row]):
            batches.append([])
        batches[-1].append(row)
    return batches


def grouped_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle the rows, sort windows of them by length, cut batches and shuffle those.

    A pure function of its arguments. Every row is in one batch; all batches but one have `batch_size` rows.
    """
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    windows = _cut(order, WINDOW * batch_size)
    by_length = [row for window in windows for row in sorted(window, key=lambda row: lengths[row])]
    batches = _cut(by_length, batch_size)
    rng.shuffle(batches)
    return batches


def _cut(rows: list[int], size: int) -> list[list[int]]:
    """Cut a list into parts of `size`; the last may be shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class BatchSampler(DistributedSampler[list[int]]):
    """Yield the row numbers of one batch at a time, for a loader with `batch_size=None`.

    It distributes whole batches over the ranks. It is a `DistributedSampler`, so that Lightning calls its `set_epoch`
    and does not replace it.

    Args:
        lengths: Tokens per row, including the padding to fixed lengths.
        budget: What a batch may hold. Shuffled batches have `budget.rows` rows, whatever their tokens.
        shuffle: Group by length in a new order each epoch; otherwise sort by length. When shuffled, all ranks get the
            same number of batches (the first few are used twice if needed); otherwise every batch is used once.
        seed: Seed of the shuffle.
        num_replicas: Number of ranks that share the rows.
        rank: This rank.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        budget: Budget,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(cast(Any, lengths), num_replicas, rank, shuffle, seed)
        self.lengths = lengths
        self.budget = budget
        self.resume_at = (-1, 0)
        self.batches = self._deal()

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's batches of the epoch, without those used before a resume."""
        return map(self._filled, self.batches[self.used :])

    def __len__(self) -> int:
        """Return the number of batches per epoch on this rank."""
        return len(self.batches)

    @property
    def used(self) -> int:
        """The number of batches of this epoch that were used before a resume."""
        epoch, used = self.resume_at
        return used if epoch == self.epoch else 0

    def set_epoch(self, epoch: int) -> None:
        """Make the batches of another epoch."""
        super().set_epoch(epoch)
        if self.shuffle:
            self.batches = self._deal()

    def _deal(self) -> list[list[int]]:
        """Return every `num_replicas`-th batch, starting at `rank`."""
        if not self.shuffle:
            return sorted_batches(self.lengths, self.budget)[self.rank :: self.num_replicas]
        batches = grouped_batches(self.lengths, cast(int, self.budget.rows), self.seed, self.epoch)
        total = len(batches) + -len(batches) % self.num_replicas
        return [batches[index % len(batches)] for index in range(self.rank, total, self.num_replicas)]

    def _filled(self, batch: list[int]) -> list[int]:
        """Return a batch, filled up to the rows that batches of its width have."""
        if not self.budget.fill:
            return batch
        rows = self.budget.rows if self.shuffle else self.budget.rows_of(max(self.lengths[row] for row in batch))
        return batch + [NO_ROW] * (cast(int, rows) - len(batch))


class ResumableDataLoader(DataLoader[dict[str, Tensor]]):
    """A loader over a `BatchSampler` that resumes, from a Lightning checkpoint, after the last batch used."""

    used = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        """Yield the batches; a generator, so that no batch is made before Lightning has set the epoch."""
        self.used = self._batch_sampler.used
        for batch in super().__iter__():
            self.used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were used."""
        return {"epoch": self._batch_sampler.epoch, "used": self.used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip, in that epoch, the batches that were used when `state` was taken."""
        self._batch_sampler.resume_at = (state["epoch"], state["used"])

    @property
    def _batch_sampler(self) -> BatchSampler:
        return cast(BatchSampler, self.sampler)


class TokenizedRows(Dataset[dict[str, Tensor]]):
    """Tokenized rows; indexed with the row numbers of a batch, they return that batch.

    `widths` holds the padded length of each row on its own; rows are grouped by it.

    Args:
        tokens: [total tokens] the token ids of all rows, concatenated.
        lengths: [N] number of tokens per row, at least one.
        labels: [N] class of each row.
        rows: [N] position of each row in the source.
        pad_token_id: Fills shorter rows on the right.
        pad_lengths: Lengths to pad to, of which the smallest that fits is used; None pads to the longest row.
    """

    def __init__(
        self,
        tokens: Tensor,
        lengths: Tensor,
        labels: Tensor,
        rows: Tensor,
        pad_token_id: int,
        pad_lengths: Sequence[int] | None = None,
    ) -> None:
        self.lengths: list[int] = lengths.tolist()
        self.widths = [_width(length, sorted(pad_lengths or [])) for length in self.lengths]
        self.tokens = tokens.split(self.lengths)
        self.labels = labels
        self.rows = rows
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    def __getitem__(self, batch: list[int]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask [B, T], labels and row [B], all int64, padded on the right.

        A `NO_ROW`, which comes last in a batch, has the label `IGNORED_LABEL` and the row `NO_ROW`.
        """
        empty = batch.count(NO_ROW)
        batch = batch[: len(batch) - empty]
        lengths = torch.tensor([self.lengths[row] for row in batch])
        width = max(self.widths[row] for row in batch)
        padded = pad_sequence([self.tokens[row] for row in batch], batch_first=True, padding_value=self.pad_token_id)
        lengths = pad(lengths, (0, empty), value=1)
        return {
            "input_ids": pad(padded.long(), (0, width - padded.shape[1], 0, empty), value=self.pad_token_id),
            "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
            "labels": pad(self.labels[batch], (0, empty), value=IGNORED_LABEL),
            "row": pad(self.rows[batch], (0, empty), value=NO_ROW),
        }


def _width(length: int, pad_lengths: Sequence[int]) -> int:
    """Return the first of the ascending `pad_lengths` that fits, or `length` if there are none."""
    return next((width for width in pad_lengths if width >= length), length)
