"""Rows to batches: which rows go together, and how they are padded."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, DistributedSampler

WINDOW = 16
"""Training batches' worth of rows that are sorted by length together."""

SHORTEST = 0.9
"""Length of a sorted batch's shortest row, at least, as a part of its longest: bounds the padding."""

NO_ROW = -1
"""In a batch: nothing, where a row would be. It has one padding token, the label that losses ignore, and no source."""

IGNORED_LABEL = -100
"""What ``torch.nn.functional.cross_entropy`` leaves out."""


def sorted_batches(
    lengths: Sequence[int], batch_size: int, shortest: float = SHORTEST, tokens: int | None = None
) -> list[list[int]]:
    """Cuts the rows, longest first, into batches of at most ``batch_size`` rows of about the same length.

    Longest first, so that a batch too large for the memory fails at once. ``shortest`` is the length of a batch's
    shortest row, at least, as a part of its longest; with 0 all batches but the last have ``batch_size`` rows. With
    ``tokens`` a batch has as many rows as make so many tokens, padding included, and at least one, instead of
    ``batch_size``.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        longest = lengths[batches[-1][0]] if batches else 0
        most = max(1, tokens // max(longest, 1)) if tokens else batch_size
        if not batches or len(batches[-1]) == most or lengths[row] < shortest * longest:
            batches.append([])
        batches[-1].append(row)
    return batches


def grouped_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffles the rows, sorts windows of them by length, cuts batches and shuffles those.

    A pure function of its arguments. Every row is in one batch; all batches but one have ``batch_size`` rows.
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
    """Cuts a list into parts of ``size``, the last of which may be shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class BatchSampler(DistributedSampler[list[int]]):
    """Yields the rows of one batch at a time; for a loader with ``batch_size=None``.

    It deals whole batches to the ranks of a distributed run. As it is a ``DistributedSampler``, Lightning calls its
    ``set_epoch`` and does not put one of its own in its place.

    Args:
        lengths: tokens of each row, the padding to fixed lengths included.
        batch_size: rows of a batch.
        shuffle: group by length in a new order each epoch, else sort by length. When shuffled, ranks get equally many
            batches (the first few are dealt twice if need be), else every batch is dealt once.
        seed: of the shuffle.
        num_replicas: ranks that share the rows.
        rank: which of them this is.
        shortest: as for :func:`sorted_batches`.
        tokens: as for :func:`sorted_batches`.
        fill: bring batches that are too short to ``batch_size`` by ``NO_ROW``.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        shortest: float = SHORTEST,
        tokens: int | None = None,
        fill: bool = False,
    ) -> None:
        super().__init__(cast(Any, lengths), num_replicas, rank, shuffle, seed)
        self.shortest = shortest
        self.tokens = tokens
        self.fill = fill
        self.lengths = lengths
        self.batch_size = batch_size
        self.resume_at = (-1, 0)
        self.batches = self._deal()

    def __iter__(self) -> Iterator[list[int]]:
        """Yields this rank's batches of the epoch, without those that were used before a resume."""
        batches = self.batches[self.used :]
        return (batch + [NO_ROW] * (self.batch_size - len(batch)) * self.fill for batch in batches)

    def __len__(self) -> int:
        """Returns the batches of an epoch on this rank."""
        return len(self.batches)

    @property
    def used(self) -> int:
        """Batches of this epoch that were used before a resume."""
        epoch, used = self.resume_at
        return used if epoch == self.epoch else 0

    def set_epoch(self, epoch: int) -> None:
        """Makes the batches of another epoch."""
        super().set_epoch(epoch)
        if self.shuffle:
            self.batches = self._deal()

    def _deal(self) -> list[list[int]]:
        """Returns every ``num_replicas``-th batch, from ``rank`` on."""
        if not self.shuffle:
            batches = sorted_batches(self.lengths, self.batch_size, self.shortest, self.tokens)
            return batches[self.rank :: self.num_replicas]
        batches = grouped_batches(self.lengths, self.batch_size, self.seed, self.epoch)
        total = len(batches) + -len(batches) % self.num_replicas
        return [batches[index % len(batches)] for index in range(self.rank, total, self.num_replicas)]


class ResumableDataLoader(DataLoader[dict[str, Tensor]]):
    """A loader over a :class:`BatchSampler` that goes on, from a Lightning checkpoint, after the last batch used."""

    used = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        """Yields the batches; a generator, so that nothing is drawn before Lightning has set the epoch."""
        self.used = self._batch_sampler.used
        for batch in super().__iter__():
            self.used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and how many of its batches were used."""
        return {"epoch": self._batch_sampler.epoch, "used": self.used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leaves out, in that epoch, the batches that were used when ``state`` was taken."""
        self._batch_sampler.resume_at = (state["epoch"], state["used"])

    @property
    def _batch_sampler(self) -> BatchSampler:
        return cast(BatchSampler, self.sampler)


class TokenizedRows(Dataset[dict[str, Tensor]]):
    """Tokenised rows; indexed by the rows of a batch, it gives that batch.

    ``widths`` holds what each row is padded to where it is alone: group rows by it.

    Args:
        tokens: [all tokens] the token ids of all rows, end to end.
        lengths: [N] how many of them each row has, at least one.
        labels: [N] class of each row.
        rows: [N] source row of each row.
        pad_token_id: fills shorter rows on the right.
        pad_lengths: lengths to pad to, the smallest that fits; None pads to the longest row of the batch.
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
        """Returns the number of rows."""
        return len(self.lengths)

    def __getitem__(self, batch: list[int]) -> dict[str, Tensor]:
        """Returns input_ids and attention_mask [B, T], labels and row [B], all int64, padded on the right.

        Where the batch has ``NO_ROW``, which is at its end, labels are ``IGNORED_LABEL`` and row is ``NO_ROW``.
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
    """Returns the first of the ascending ``pad_lengths`` that fits, or ``length`` where there are none."""
    return next((width for width in pad_lengths if width >= length), length)
