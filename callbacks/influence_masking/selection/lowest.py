"""Exactly the k lowest scores, found in one streamed pass over weights and gradients.

Nothing is concatenated and no scores are kept. A random sample gives a bracket [low, high] that holds the k-th lowest
score with near certainty. One pass computes the scores piece by piece, marks those below the bracket with one bit each,
and keeps the few inside; the threshold is exact among those. Equal scores are taken in the order of (tensor, index), so
the result is one and the same on every machine. Where the bracket does not work out (many equal scores at its ends, or
parameters sharded over processes) a slower pass counts the ends apart and a third marks the bits: the same result.
"""

import contextlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from influence_masking.errors import MaskingError
from influence_masking.masks import bits
from influence_masking.masks.names import layer_of
from influence_masking.runtime.processes import ALONE, Processes
from influence_masking.selection.scores import ScoreFunction, takes_position

PIECE = {"cpu": 3 << 17, "cuda": 1 << 24}
SAMPLE = 1 << 18
MARGIN = 3.0  # standard deviations of the sampled rank between the quantile and either end of the bracket
KEPT_SHARE = 1 / 64  # more scores than this inside the bracket are many equal ones

Each = Callable[..., Iterable[Any]]
Comparison = Callable[[Any, Any], Any]
Tail = Literal["lowest", "highest"]
Scope = Literal["global", "layer", "tensor"]


@dataclass(frozen=True)
class Weights:
    """The part of one candidate that this process holds, flat, and where it stands among all candidates.

    Attributes:
        name: The parameter's name.
        theta: Its local elements, in any floating-point type, shape (n,).
        grad: Their gradient, float32 or float64, shape (n,); scores are computed in float32.
        position: Number of the first local element in the order of all candidates.
    """

    name: str
    theta: Tensor
    grad: Tensor
    position: int = 0

    def __len__(self) -> int:
        return self.theta.numel()


class Scores:
    """The scores of a `Weights`, computed when asked for; those of the highest tail with their sign changed.

    Args:
        weights: The local part of a candidate.
        score: A resolved score.
        tail: ``lowest`` or ``highest``.
    """

    def __init__(self, weights: Weights, score: ScoreFunction, tail: Tail = "lowest") -> None:
        self.weights = weights
        self._score = score
        self._sign = {"lowest": 1, "highest": -1}[tail]
        self._with_position = takes_position(score)

    def __len__(self) -> int:
        return len(self.weights)

    def at(self, index: slice | Tensor) -> Tensor:
        """Returns the scores at some local elements, float32."""
        theta, grad = self.weights.theta[index].float(), self.weights.grad[index].float()
        scores = self._score(theta, grad, **self._position(index)).float()
        if scores.shape != theta.shape:
            raise MaskingError(
                f"Asked {self._score} for {len(theta)} scores, found a result of shape {tuple(scores.shape)}. A score "
                "returns one number a weight."
            )
        return scores if self._sign == 1 else -scores

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields the scores in pieces that fit in a cache, with where they stand; bounds are multiples of 8."""
        size = PIECE.get(self.weights.theta.device.type, PIECE["cpu"])
        for start in range(0, len(self), size):
            where = slice(start, min(start + size, len(self)))
            yield where, self.at(where)

    def checked_pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields as `pieces` and raises a `MaskingError` at the end if a score was not a number."""
        total = torch.zeros((), device=self.weights.theta.device)
        for where, scores in self.pieces():
            total += scores.sum()
            yield where, scores
        if not total.isfinite() and any(scores.isnan().any() for _, scores in self.pieces()):
            raise MaskingError(
                f"Asked to select by {self._score}, found scores of {self.weights.name} that are not numbers. Check "
                "the weights and the score."
            )

    def _position(self, index: slice | Tensor) -> dict[str, Tensor]:
        if not self._with_position:
            return {}
        if isinstance(index, slice):
            index = torch.arange(index.start, index.stop, device=self.weights.theta.device)
        return {"position": index + self.weights.position}


def select(
    weights: Sequence[Weights],
    k: int,
    score: ScoreFunction,
    tail: Tail = "lowest",
    scope: Scope = "global",
    processes: Processes = ALONE,
) -> list[Tensor]:
    """Selects exactly k weights at one tail of their scores.

    Args:
        weights: The local parts of the candidates, in the order of the model.
        k: How many to select over all processes.
        score: A resolved score (`scores.resolve_score`).
        tail: Which end of the scores.
        scope: Rank over all candidates, or within each layer or tensor, which then give shares of k in proportion to
            their sizes.
        processes: Those that the candidates are sharded over.

    Returns:
        For each element of ``weights`` its selection as packed bits.

    Raises:
        MaskingError: If a score is not a number, or ``k`` is more than there are.
    """
    key = {"global": lambda _: "", "layer": layer_of, "tensor": lambda name: name}[scope]
    groups: dict[str, list[int]] = {}
    for i, part in enumerate(weights):
        groups.setdefault(key(part.name), []).append(i)
    sizes = processes.sum(torch.tensor([sum(len(weights[i]) for i in members) for members in groups.values()]))
    selected: dict[int, Tensor] = {}
    for members, share in zip(groups.values(), share_out(k, sizes.tolist()), strict=True):
        scores = [Scores(weights[i], score, tail) for i in members]
        selected.update(zip(members, lowest(scores, share, processes), strict=True))
    return [selected[i] for i in range(len(weights))]


def first_order_change(weights: Sequence[Weights], selected: Sequence[Tensor], processes: Processes = ALONE) -> float:
    """Returns minus the sum of theta * grad over a selection: to first order, how the loss changes when it is zeroed.

    Args:
        weights: The local parts of the candidates.
        selected: The selection, as packed bits.
        processes: Those that the candidates are sharded over.
    """
    sums = [
        float(torch.dot(part.theta[where].double(), part.grad[where].double()))
        for part, packed in zip(weights, selected, strict=True)
        for where in [bits.unpack(packed.to(part.theta.device), len(part))]
    ]
    return -math.fsum(torch.cat(processes.gather(torch.tensor(sums, dtype=torch.float64))).tolist())


def share_out(k: int, sizes: Sequence[int]) -> list[int]:
    """Splits k in proportion to sizes, to whole numbers that add up to k (Hamilton's method of largest remainders)."""
    total = max(sum(sizes), 1)
    shares = [k * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(k * sizes[i] % total), i))
    for i in by_remainder[: k - sum(shares)]:
        shares[i] += 1
    return shares


def lowest(scores: Sequence[Scores], k: int, processes: Processes = ALONE) -> list[Tensor]:
    """Selects exactly the k lowest scores; among equal ones those that come first.

    Args:
        scores: The local parts of the candidates, in their order.
        k: How many to select over all processes.
        processes: Those that hold the parts: rank 0 the first rows of every candidate, rank 1 the next, and so on.

    Returns:
        For each element of ``scores`` its selection as packed bits (see `bits`).

    Raises:
        MaskingError: If a score is not a number, or ``k`` is more than there are.
    """
    with workers([part.weights for part in scores]) as each:
        return lowest_of(scores, k, processes, each)


def lowest_of(scores: Sequence[Scores], k: int, processes: Processes, each: Each) -> list[Tensor]:
    """Does what `lowest` does, with the caller's `map` over the parts."""
    total = int(processes.sum(torch.tensor(sum(map(len, scores)))))
    if not 0 <= k <= total:
        raise MaskingError(f"Asked for {k} weights, found {total} candidates. Lower the fraction or the count.")
    if k == 0:
        return [torch.zeros(-(-len(part) // 8), dtype=torch.uint8, device=part.weights.theta.device) for part in scores]
    for margin in (MARGIN, 8 * MARGIN, math.inf):
        low, high = _bracket(scores, k, total, margin, processes)
        marked = _mark_in_one_pass(scores, k, low, high, each) if processes.count == 1 else None
        if marked is None and (threshold := _threshold(scores, k, low, high, processes, each)) is not None:
            marked = _mark(scores, k, threshold, processes, each)
        if marked is not None:
            return marked
    raise AssertionError("an infinite bracket holds every score")


def kth_lowest(values: Tensor, k: int, processes: Processes = ALONE) -> float:
    """Returns the k-th lowest (from 1) of the float32 values of all processes, over several by radix selection.

    Floats are ordered as the integers of their bits once those of negative numbers are flipped; four histograms of
    256 bins, each one small sum over the processes, settle the four bytes of the answer from the highest on.
    """
    if processes.count == 1 and values.device.type == "cpu":
        return float(np.partition(values.numpy(), k - 1)[k - 1])
    pattern = (values + 0.0).view(torch.int32)  # adding zero makes -0.0 and 0.0 equal
    keys = (pattern ^ ((pattern >> 31) & 0x7FFFFFFF)).to(torch.int64) + (1 << 31)
    answer = 0
    for shift in (24, 16, 8, 0):
        digits = (keys >> shift) & 0xFF
        reached = processes.sum(torch.bincount(digits, minlength=256)).cumsum(0)
        digit = int(torch.searchsorted(reached, k))
        k -= int(reached[digit - 1]) if digit else 0
        keys = keys[digits == digit]
        answer = answer << 8 | digit
    pattern = torch.tensor([answer - (1 << 31)], dtype=torch.int64).to(torch.int32)
    return (pattern ^ ((pattern >> 31) & 0x7FFFFFFF)).view(torch.float32).item()


def sample_scores(scores: Sequence[Scores], processes: Processes = ALONE) -> Tensor:
    """Returns about `SAMPLE` scores of all processes, drawn at random with replacement, float32 on the CPU."""
    total = max(int(processes.sum(torch.tensor(sum(map(len, scores))))), 1)
    generator = torch.Generator().manual_seed(processes.rank)
    drawn = []
    for part in scores:
        count = math.ceil(SAMPLE * len(part) / total)
        where = torch.randint(max(len(part), 1), (count,), generator=generator)
        drawn.append(part.at(where.to(part.weights.theta.device)).cpu())
    return torch.cat(processes.gather(torch.cat(drawn)))


def _bracket(scores: Sequence[Scores], k: int, total: int, margin: float, processes: Processes) -> tuple[float, float]:
    """Returns two scores between which the k-th lowest of ``total`` lies, very likely, with few others."""
    if total <= SAMPLE or math.isinf(margin):
        return -math.inf, math.inf
    sample = sample_scores(scores, processes)
    expected, deviation = len(sample) * k / total, math.sqrt(len(sample) * k / total * (1 - k / total))
    first, last = math.floor(expected - margin * deviation) - 1, math.ceil(expected + margin * deviation) + 1
    low = sample.kthvalue(first + 1).values.item() if first >= 0 else -math.inf
    high = sample.kthvalue(last + 1).values.item() if last < len(sample) else math.inf
    return low, high


def _mark_in_one_pass(scores: Sequence[Scores], k: int, low: float, high: float, each: Each) -> list[Tensor] | None:
    """Marks the k lowest if the bracket holds the k-th and few others; returns None if it does not."""
    limit = max(2 * SAMPLE, math.ceil(KEPT_SHARE * sum(map(len, scores))))
    kept = 0

    def scan(part: Scores, below: Tensor) -> _Scan | None:
        nonlocal kept
        found = _scan(part, below, low, high, limit) if kept <= limit else None
        kept += limit + 1 if found is None else len(found.places)
        return found

    # made here, because what lasts would keep the threads' heaps from being used again
    room = [torch.empty(-(-len(part) // 8), dtype=torch.uint8, device=part.weights.theta.device) for part in scores]
    found = [result for result in each(scan, scores, room) if result is not None]
    if kept > limit:
        return None
    wanted = k - sum(part.num_below for part in found)
    if not 0 < wanted <= kept:
        return None
    values = torch.cat([part.values for part in found])
    threshold = kth_lowest(values, wanted)
    chosen = values < threshold
    ties = (values == threshold).nonzero().squeeze(1)
    chosen[ties[: wanted - int(chosen.sum())]] = True
    for part, picked in zip(found, chosen.split([len(part.places) for part in found]), strict=True):
        _set_bits(part.below, part.places[picked])
    return [part.below for part in found]


class _Scan(NamedTuple):
    """The scores of a part below a bracket, as packed bits and their number, and places and values of those inside."""

    below: Tensor
    num_below: int
    places: Tensor
    values: Tensor


def _scan(part: Scores, below: Tensor, low: float, high: float, limit: int) -> _Scan | None:
    """Fills ``below`` and finds the rest; None if more than ``limit`` are inside the bracket, its ends included."""
    found, count, num_below = [torch.empty(0, dtype=torch.int64, device=below.device)], 0, 0
    for where, scores in part.checked_pieces():
        is_below = compare(scores, operator.lt, low)
        below[where.start // 8 : -(-where.stop // 8)] = bits.pack(is_below)
        num_below += bits.count(is_below)
        found.append(bits.places(compare(scores, operator.le, high).logical_xor_(is_below)).add_(where.start))
        count += len(found[-1])
        if count > limit:
            return None
    places = torch.cat(found)
    return _Scan(below, num_below, places, part.at(places))


def compare(scores: Tensor, comparison: Comparison, bound: float) -> Tensor:
    """Returns the flags of a comparison; on the CPU by numpy, which takes a seventh of torch's time there."""
    if scores.device.type == "cpu":
        return torch.from_numpy(comparison(scores.numpy(), np.float32(bound)))
    return comparison(scores, bound)


def _threshold(
    scores: Sequence[Scores], k: int, low: float, high: float, processes: Processes, each: Each
) -> float | None:
    """Returns the k-th lowest score of all processes, or None if the bracket does not hold it.

    Scores equal to an end of the bracket are counted apart, so that those strictly inside are few even when very many
    scores are equal.
    """

    def count(part: Scores) -> tuple[Tensor, list[Tensor]]:
        counts, inside = torch.zeros(4, dtype=torch.int64), [torch.empty(0)]  # a process may hold none of a parameter
        for _, s in part.checked_pieces():
            comparisons = ((operator.lt, low), (operator.le, low), (operator.lt, high), (operator.le, high))
            ends = [compare(s, comparison, bound) for comparison, bound in comparisons]
            counts += torch.tensor([bits.count(end) for end in ends])
            if low < high:
                inside.append(s[ends[2] & ~ends[1]].cpu())
        return counts, inside

    counted = list(each(count, scores))
    below_low, to_low, below_high, to_high = processes.sum(
        torch.stack([counts for counts, _ in counted]).sum(0)
    ).tolist()
    if not below_low < k <= to_high:
        return None
    if k <= to_low:
        return low
    if k > below_high:
        return high
    return kth_lowest(torch.cat([piece for _, inside in counted for piece in inside]), k - to_low, processes)


def _mark(scores: Sequence[Scores], k: int, threshold: float, processes: Processes, each: Each) -> list[Tensor]:
    """Marks every score below the threshold and the first of those equal to it, k in all."""

    def mark(part: Scores) -> tuple[Tensor, Tensor]:
        pieces = [
            tuple(bits.pack(compare(s, comparison, threshold)) for comparison in (operator.lt, operator.eq))
            for _, s in part.pieces()
        ]
        empty = torch.empty(0, dtype=torch.uint8, device=part.weights.theta.device)
        return torch.cat([empty, *(b for b, _ in pieces)]), torch.cat([empty, *(e for _, e in pieces)])

    marked = list(each(mark, scores))
    below = processes.sum(torch.tensor(sum(bits.count_ones(packed) for packed, _ in marked)))
    ties = torch.zeros(len(scores), processes.count, dtype=torch.int64)
    ties[:, processes.rank] = torch.tensor([bits.count_ones(equal) for _, equal in marked])
    ties = processes.sum(ties)
    before = ties.view(-1).cumsum(0).view_as(ties) - ties
    quotas = (k - below - before[:, processes.rank]).tolist()
    return [
        packed | _first_ones(equal, len(part), quota)
        for part, (packed, equal), quota in zip(scores, marked, quotas, strict=True)
    ]


def _first_ones(packed: Tensor, count: int, quota: int) -> Tensor:
    """Keeps the first ``quota`` of the ones among packed bits."""
    if quota <= 0:
        return torch.zeros_like(packed)
    if bits.count_ones(packed) <= quota:
        return packed
    flags = bits.unpack(packed, count)
    flags[bits.places(flags)[quota:]] = False
    return bits.pack(flags)


def _set_bits(packed: Tensor, places: Tensor) -> None:
    """Sets bits that are 0 to 1."""
    packed.index_add_(0, places >> 3, (128 >> (places & 7)).to(torch.uint8))


@contextlib.contextmanager
def workers(weights: Sequence[Weights]) -> Iterator[Each]:
    """Gives a `map` over parts: on the CPU with a part a thread and, inside, operations that are not cut further.

    Pieces fit a cache and take microseconds: what torch's own threads would wait for each other costs more than that.
    """
    threads = torch.get_num_threads()
    if not weights or weights[0].theta.device.type != "cpu":
        yield map
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)
