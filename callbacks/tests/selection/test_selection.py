"""Exactly k, against an independent stable sort."""

import math

import pytest
import torch
from torch import Tensor

from influence_masking import SCORES, MaskingError
from influence_masking.masks import bits
from influence_masking.selection import lowest as selection
from influence_masking.selection.lowest import Weights, first_order_change, kth_lowest, select, split_in_proportion

SIZES = (400_000, 300_001, 77)


def pieces(case: str, sizes: tuple[int, ...] = SIZES) -> list[Weights]:
    """Return weights whose scores are hard to select from in the way that `case` says."""
    generator = torch.Generator().manual_seed(5)
    parts, position = [], 0
    for i, size in enumerate(sizes):
        theta, grad = (torch.randn(size, generator=generator) for _ in range(2))
        if case == "bfloat16":
            theta, grad = theta.bfloat16(), grad.bfloat16().float()
        elif case == "all equal":
            theta, grad = torch.ones(size), torch.full((size,), -2.0)
        elif case == "two values":
            theta, grad = torch.ones(size), (grad > 1.6).float()
        elif case == "sorted":
            theta, grad = torch.ones(size), torch.arange(size).float()
        elif case == "heavy tails":
            grad = grad / torch.rand(size, generator=generator) ** 4
        elif case == "mostly zero":
            grad = grad * (torch.rand(size, generator=generator) < 0.01)
        elif case == "subnormal":
            grad = grad * 1e-41
        parts.append(Weights(f"layers.{i}.weight", theta, grad, position))
        position += size
    return parts


def by_sorting(parts: list[Weights], k: int, score: str, tail: str) -> Tensor:
    """Return flags of the k lowest (highest) scores, the first of equal ones, by a stable sort of all of them."""
    scores = torch.cat([SCORES[score](part.theta.float(), part.grad) for part in parts])
    order = torch.sort(scores if tail == "lowest" else -scores, stable=True).indices
    flags = torch.zeros(len(scores), dtype=torch.bool)
    flags[order[:k]] = True
    return flags


def flags_of(parts: list[Weights], selected: list[Tensor]) -> Tensor:
    return torch.cat([bits.unpack(packed, len(part)) for part, packed in zip(parts, selected, strict=True)])


CASES = ("normal", "bfloat16", "all equal", "two values", "sorted", "heavy tails", "mostly zero", "subnormal")


@pytest.mark.parametrize("case", CASES)
def test_exactly_k_are_selected_and_the_first_of_equal_ones(case: str) -> None:
    parts = pieces(case)
    for tail, k in (("lowest", 35_003), ("highest", 35_003), ("lowest", 1), ("highest", 700_077)):
        assert torch.equal(
            flags_of(parts, select(parts, k, SCORES["sign_gradient"], tail)),
            by_sorting(parts, k, "sign_gradient", tail),
        )


def test_a_bracket_that_misses_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "BRACKET_MARGIN", 0.0)
    parts = pieces("normal")
    for k in (7, 35_003, 350_000):
        assert torch.equal(
            flags_of(parts, select(parts, k, SCORES["taylor"])), by_sorting(parts, k, "taylor", "lowest")
        )


def test_a_threshold_at_the_edge_of_many_equal_scores_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SAMPLE_SIZE", 1000)
    parts = pieces("mostly zero", (40_000, 10_001))
    scores = torch.cat([SCORES["taylor"](part.theta, part.grad) for part in parts])
    below, zeros = int((scores < 0).sum()), int((scores == 0).sum())
    assert zeros > 49_000
    for k in (below - 20, below - 1, below, below + 1, below + zeros, below + zeros + 1):
        assert torch.equal(
            flags_of(parts, select(parts, k, SCORES["taylor"])), by_sorting(parts, k, "taylor", "lowest")
        )


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = pieces("bfloat16", (5_003, 64, 1))
    expected = select(parts, 900, SCORES["snip"])
    monkeypatch.setitem(selection.PIECE_SIZE, "cpu", 8)
    assert torch.equal(flags_of(parts, select(parts, 900, SCORES["snip"])), flags_of(parts, expected))


@pytest.mark.parametrize("scope", ["layer", "tensor"])
def test_a_scope_gives_each_group_its_share_and_ranks_within_it(scope: str) -> None:
    parts = pieces("normal", (1000, 3000, 10))
    selected = select(parts, 401, SCORES["magnitude"], "lowest", scope)
    assert [bits.count_ones(packed) for packed in selected] == [100, 300, 1]
    for part, packed, count in zip(parts, selected, (100, 300, 1), strict=True):
        assert torch.equal(bits.unpack(packed, len(part)), by_sorting([part], count, "magnitude", "lowest"))


def test_shares_are_in_proportion_and_add_up() -> None:
    assert split_in_proportion(10, [5, 5]) == [5, 5]
    assert split_in_proportion(10, [1, 1, 1]) == [4, 3, 3]
    assert split_in_proportion(0, [3, 0]) == [0, 0]
    assert split_in_proportion(7, [0, 7]) == [0, 7]


def test_random_selection_does_not_depend_on_how_the_weights_are_cut() -> None:
    whole = pieces("normal", (10_000,))[0]
    halves = [
        Weights("a", whole.theta[:4000], whole.grad[:4000], 0),
        Weights("a", whole.theta[4000:], whole.grad[4000:], 4000),
    ]
    score = lambda theta, grad, position: SCORES["random"](theta, grad, position=position, seed=1)  # noqa: E731
    assert torch.equal(flags_of([whole], select([whole], 500, score)), flags_of(halves, select(halves, 500, score)))


def test_the_kth_lowest_is_that_of_a_sort() -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-45, -math.inf, math.inf, 3.5, 3.5, -2.0])
    assert [kth_lowest(values, [k])[0] for k in range(1, 10)] == values.sort().values.tolist()


def test_the_first_order_change_is_minus_the_sum_of_theta_times_gradient() -> None:
    part = Weights("w", torch.tensor([2.0, -3.0, 5.0]), torch.tensor([-0.5, -1.0, 4.0]))
    assert first_order_change([part], [bits.pack(torch.tensor([True, True, False]))]) == 1.0 - 3.0


def test_a_score_that_is_not_a_number_is_an_error_that_names_the_parameter() -> None:
    parts = pieces("normal", (100, 50))
    parts[1].theta[3] = math.nan
    with pytest.raises(MaskingError, match=r"layers\.1\.weight"):
        select(parts, 10, SCORES["taylor"])


def test_a_score_of_another_shape_is_an_error() -> None:
    with pytest.raises(MaskingError, match="one number per weight"):
        select(pieces("normal", (100,)), 10, lambda theta, grad: grad.sum())


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(MaskingError, match="101 weights of 100 candidates"):
        select(pieces("normal", (100,)), 101, SCORES["taylor"])
