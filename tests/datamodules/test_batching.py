import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from datamodules.batching import LEAST_FILLED, BatchSampler, Budget, TokenizedRows, grouped_batches, sorted_batches

LENGTHS = st.lists(st.integers(1, 128), min_size=1, max_size=300)
BATCH_SIZES = st.integers(1, 40)


def make_rows(lengths, pad_lengths=None):
    tokens = torch.arange(100, 100 + sum(lengths), dtype=torch.int32)
    index = torch.arange(len(lengths))
    return TokenizedRows(tokens, torch.tensor(lengths), index % 2, 1000 + index, 7, pad_lengths)


@given(LENGTHS, BATCH_SIZES, st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_batches_of_one_size_but_the_last_cut(lengths, batch_size, seed, epoch):
    batches = grouped_batches(lengths, batch_size, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
    assert max(map(len, batches)) <= batch_size


BUDGETS = st.builds(Budget, st.integers(1, 3000), st.none() | BATCH_SIZES, st.booleans())


@given(LENGTHS, BUDGETS)
def test_sorted_batches_have_every_row_once_longest_first_within_the_budget(lengths, budget):
    batches = sorted_batches(lengths, budget)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    for batch in batches:
        tokens = len(batch) * lengths[batch[0]]
        assert tokens <= budget.tokens or len(batch) == 1
        assert budget.rows is None or len(batch) <= budget.rows
        before_the_last = tokens - lengths[batch[0]]
        assert (
            budget.fill
            or lengths[batch[-1]] >= 0.9 * lengths[batch[0]]
            or before_the_last < LEAST_FILLED * budget.tokens
        )


@given(LENGTHS, BUDGETS)
def test_a_batch_ends_only_where_a_row_does_not_fit_or_is_too_short(lengths, budget):
    batches = sorted_batches(lengths, budget)
    for batch, following in itertools.pairwise(batches):
        longest = lengths[batch[0]]
        is_full = (len(batch) + 1) * longest > budget.tokens or len(batch) == budget.rows
        assert is_full or (lengths[following[0]] < 0.9 * longest and not budget.fill)


def test_the_order_of_an_epoch_is_a_pure_function_of_seed_and_epoch():
    lengths = [1 + row * 37 % 60 for row in range(1000)]
    sampler = BatchSampler(lengths, Budget(1, 16), shuffle=True, seed=3)
    orders = []
    for epoch in (0, 1, 2, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[1] == orders[3] == grouped_batches(lengths, 16, 3, 1)
    assert orders[0] != orders[1] != orders[2]
    assert grouped_batches(lengths, 16, 4, 1) != orders[1]
    assert orders[0][0][:6] == [0, 600, 193, 613, 673, 326]


@pytest.mark.parametrize("batch_size", [16, 64])
def test_at_most_15_percent_of_a_training_epoch_is_padding(batch_size):
    lengths = [1 + row * row % 60 for row in range(1000)]
    batches = grouped_batches(lengths, batch_size, 0, 0)
    computed = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert 1 - sum(lengths) / computed < 0.15


@given(LENGTHS, BATCH_SIZES, st.integers(1, 5), st.integers(0, 2))
def test_ranks_share_the_training_batches_in_equal_numbers(lengths, batch_size, ranks, epoch):
    samplers = [BatchSampler(lengths, Budget(1, batch_size), True, 0, ranks, rank) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    dealt = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in dealt} == {len(samplers[0])} == {math.ceil(len(lengths) / (batch_size * ranks))}
    assert {row for batches in dealt for batch in batches for row in batch} == set(range(len(lengths)))


@given(LENGTHS, BUDGETS, st.integers(1, 5))
def test_ranks_see_every_evaluation_row_exactly_once(lengths, budget, ranks):
    dealt = [list(BatchSampler(lengths, budget, False, 0, ranks, rank)) for rank in range(ranks)]
    rows = [row for batches in dealt for batch in batches for row in batch if row >= 0]
    assert sorted(rows) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS, st.booleans())
def test_filled_batches_of_one_width_have_one_number_of_rows(lengths, budget, shuffle):
    budget = replace(budget, fill=True, rows=budget.rows or 16)
    widths = [-16 * (-length // 16) for length in lengths]
    shapes = {
        (max(widths[row] for row in batch if row >= 0), len(batch)) for batch in BatchSampler(widths, budget, shuffle)
    }
    assert len(shapes) == len({width for width, _ in shapes})


def test_a_sampler_resumes_in_its_epoch_only():
    sampler = BatchSampler([5] * 100, Budget(1, 10), shuffle=True)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.resume_at = (2, 4)
    assert list(sampler) == whole[4:]
    assert len(sampler) == 10
    sampler.set_epoch(3)
    assert len(list(sampler)) == 10


def test_a_batch_is_padded_on_the_right_to_its_longest_row():
    batch = make_rows([2, 4, 1])[[1, 2]]
    assert batch["input_ids"].tolist() == [[102, 103, 104, 105], [106, 7, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["row"].tolist() == [1001, 1002]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@given(LENGTHS, st.sampled_from([[128], [64, 16, 128], [128, 200]]))
def test_padded_widths_are_the_smallest_listed_that_fit(lengths, pad_lengths):
    rows = make_rows(lengths, pad_lengths)
    for batch in sorted_batches(lengths, Budget(1000, 8)):
        found = rows[batch]
        longest = max(lengths[row] for row in batch)
        assert found["input_ids"].shape[1] == min(length for length in pad_lengths if length >= longest)
        assert found["attention_mask"].sum(1).tolist() == [lengths[row] for row in batch]


def test_workers_give_the_same_batches_in_the_same_order():
    rows = make_rows([1 + row * 37 % 60 for row in range(100)])
    sampler = BatchSampler(rows.lengths, Budget(1, 16), shuffle=True)
    alone, workers = (DataLoader(rows, batch_size=None, sampler=sampler, num_workers=count) for count in (0, 2))
    for first, second in zip(alone, workers, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
