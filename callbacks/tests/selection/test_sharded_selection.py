"""Selection over parameters that several processes share, with threads in their place."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_selection import CASES, flags_of, pieces
from torch import Tensor

from influence_masking import SCORES
from influence_masking.runtime.processes import Ranks
from influence_masking.selection import lowest as selection
from influence_masking.selection.lowest import Weights, first_order_change, select
from influence_masking.selection.matching import select_matched

RANKS = 3
SIZES = (20_000, 5_001, 40, 2)


class Thread(Ranks):
    """A rank that meets the others at a barrier, and notes how much it sends them."""

    def __init__(self, rank: int, count: int, barrier: threading.Barrier, table: list[Tensor]) -> None:
        super().__init__()
        self.rank, self.count = rank, count
        self._barrier, self._table = barrier, table
        self.sent: list[int] = []

    def sum(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor.numel())
        self._table[self.rank] = tensor
        self._barrier.wait(60)
        total = torch.stack([self._table[rank] for rank in range(self.count)]).sum(0)
        self._barrier.wait(60)
        return total.to(tensor.dtype)


def cut(parts: list[Weights], rank: int) -> list[Weights]:
    """Return a rank's blocks, as torch.chunk cuts them: the last may be smaller or empty."""
    blocks = []
    for part in parts:
        size = -(-len(part) // RANKS)
        where = slice(min(rank * size, len(part)), min((rank + 1) * size, len(part)))
        blocks.append(Weights(part.name, part.theta[where], part.grad[where], part.position + where.start))
    return blocks


def on_every_rank(parts: list[Weights], work: Callable) -> tuple[list, list[Thread]]:
    barrier, table = threading.Barrier(RANKS), [torch.empty(0)] * RANKS
    ranks = [Thread(rank, RANKS, barrier, table) for rank in range(RANKS)]
    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(lambda rank: work(cut(parts, rank.rank), rank), ranks)), ranks


def joined(parts: list[Weights], found: list[list[Tensor]]) -> Tensor:
    """Return the flags of whole tensors, put together from those of the ranks' blocks."""
    flags = [list(flags_of(cut(parts, r), one).split([len(b) for b in cut(parts, r)])) for r, one in enumerate(found)]
    return torch.cat([torch.cat(blocks) for blocks in zip(*flags, strict=True)])


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("case", CASES)
def test_ranks_select_together_what_one_process_selects_and_communicate_little(
    case: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "SAMPLE_SIZE", 1000)
    parts = pieces(case, SIZES)
    for tail, k in (("lowest", 1_253), ("highest", 12_000)):
        found, ranks = on_every_rank(
            parts, lambda part, rank, k=k, tail=tail: select(part, k, SCORES["sign_gradient"], tail, scope, rank)
        )
        expected = select(parts, k, SCORES["sign_gradient"], tail, scope)
        assert torch.equal(joined(parts, found), flags_of(parts, expected))
        # a sample and bounded counts: never the scores of 25,043 weights
        assert max(ranks[0].sent) <= 1000 + RANKS * len(SIZES)


def test_ranks_match_an_informed_mask_together() -> None:
    parts = pieces("bfloat16", SIZES)
    informed = select(parts, 2_000, SCORES["snip"])

    def work(part: list[Weights], rank: Thread) -> list[Tensor]:
        return select_matched(part, select(part, 2_000, SCORES["snip"], processes=rank), 5, rank)

    found, _ = on_every_rank(parts, work)
    assert torch.equal(joined(parts, found), flags_of(parts, select_matched(parts, informed, 5)))


def test_ranks_predict_together_what_one_process_predicts() -> None:
    parts = pieces("normal", SIZES)
    found, _ = on_every_rank(
        parts,
        lambda part, rank: first_order_change(part, select(part, 500, SCORES["taylor"], processes=rank), rank),
    )
    expected = first_order_change(parts, select(parts, 500, SCORES["taylor"]))
    assert found == [pytest.approx(expected, rel=1e-12)] * RANKS
