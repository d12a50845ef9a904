"""Exactly the k lowest scores, nearly always in one pass over weights and gradients.

Nothing is concatenated and no scores are kept. A random sample gives a bracket [low, high] that holds the k-th lowest
score with near certainty. A pass computes the scores piece by piece, marks those below the bracket with one bit each,
and keeps the few inside; the threshold is exact among those. If the bracket misses, or very many equal scores are in
it, what the pass has counted gives the next bracket. Equal scores are taken in the order of (tensor, index), so the
result is the same on every machine and however parameters are sharded over processes.
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
BRACKET_MARGIN = 3.0  # standard deviations of the sampled rank between the quantile and either end of the bracket
KEPT_SHARE = 1 / 64  # more scores than this inside the bracket are many equal ones

Each = Callable[..., Iterable[Any]]
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
    """Do what `lowest` does, with the caller's `map` over the parts."""
    total = int(processes.sum(torch.tensor(sum(map(len, scores)))))
    if not 0 <= k <= total:
        raise MaskingError(f"Cannot select {k} weights of {total} candidates. Lower the fraction or the count.")
    if k == 0:
        return [torch.zeros(-(-len(part) // 8), dtype=torch.uint8, device=part.weights.theta.device) for part in scores]
    sample = sort(sample_scores(scores, processes)) if total > SAMPLE else torch.empty(0)
    known, is_crowded = _Interval(-math.inf, math.inf, 0, total), False
    while True:
        near = sample[(sample >= known.low) & (sample <= known.high)]
        low, high = _bracket(known, k, near, is_crowded)
        limit = max(2 * SAMPLE, math.ceil(KEPT_SHARE * total)) if len(near) else known.inside
        scans = _scan(scores, low, high, limit, each)
        counts = torch.tensor([(scan.num_below, scan.num_inside) for scan in scans])
        below, inside = processes.sum(counts.sum(0)).tolist()
        is_crowded = below < k <= below + inside and inside > limit and low < high
        if k <= below:
            known = _Interval(known.low, _next(low, -math.inf), known.below, below - known.below)
        elif k > below + inside:
            above = known.below + known.inside - below - inside
            known = _Interval(_next(high, math.inf), known.high, below + inside, above)
        elif is_crowded:
            known = _Interval(low, high, below, inside)
        else:
            return _mark(scans, k - below, low < high, processes)


class _Interval(NamedTuple):
    """Two scores that the k-th lowest lies between, ends included; how many are below and how many between."""

    low: float
    high: float
    below: int
    inside: int


def _bracket(known: _Interval, k: int, near: Tensor, is_crowded: bool) -> tuple[float, float]:
    """Return two scores that the k-th lowest lies between, very likely, with few others.

    Args:
        known: An interval that it lies in.
        k: Its rank.
        near: Scores in the interval drawn at random, ascending.
        is_crowded: Whether the interval was a bracket with too many inside. Many scores are then equal, and the
            likeliest is tried alone: equal scores need no places, only bits.
    """
    share = (k - known.below) / known.inside
    expected, deviation = len(near) * share, math.sqrt(len(near) * share * (1 - share))
    if is_crowded:
        likeliest = near[min(int(expected), len(near) - 1)].item()
        return likeliest, likeliest
    first = math.floor(expected - BRACKET_MARGIN * deviation) - 1
    last = math.ceil(expected + BRACKET_MARGIN * deviation) + 1
    low = near[first].item() if first >= 0 else known.low
    return low, near[last].item() if last < len(near) else known.high


def _next(score: float, towards: float) -> float:
    """Return the neighboring float32."""
    return float(np.nextafter(np.float32(score), np.float32(towards)))


class _Scan(NamedTuple):
    """What one pass over a part found.

    Attributes:
        below: The scores below the bracket, as packed bits.
        num_below: Their number.
        num_inside: Number of scores in the bracket.
        places: Where these are, unless they are too many.
        values: The scores there.
        equal: The scores in the bracket as packed bits, if it is a single score.
    """

    below: Tensor
    num_below: int
    num_inside: int
    places: Tensor
    values: Tensor
    equal: Tensor


def _scan(scores: Sequence[Scores], low: float, high: float, limit: int, each: Each) -> list[_Scan]:
    """Compare every score with a bracket; keep the places of those inside while they are at most ``limit``."""
    kept = 0

    def scan(part: Scores, below: Tensor, equal: Tensor) -> _Scan:
        nonlocal kept
        num_below = num_inside = 0
        found = [torch.empty(0, dtype=torch.int64, device=below.device)]
        for where, piece in part.checked_pieces():
            is_below = compare_with(piece, operator.lt, low)
            is_inside = compare_with(piece, operator.le, high).logical_xor_(is_below)
            filled = slice(where.start // 8, -(-where.stop // 8))
            below[filled] = bits.pack(is_below)
            num_below += bits.count_true(is_below)
            if low == high:
                equal[filled] = bits.pack(is_inside)
                num_inside += bits.count_true(is_inside)
            else:
                places = bits.places(is_inside).add_(where.start)
                num_inside += len(places)
                found += [places] if kept <= limit else []
                kept += len(places)
        places = torch.cat(found)
        return _Scan(below, num_below, num_inside, places, part.at(places), equal)

    # what a worker thread allocates and leaves behind would keep its heap from being used again: allocated here
    sizes = [(-(-len(part) // 8), part.weights.theta.device) for part in scores]
    below = [torch.empty(size, dtype=torch.uint8, device=device) for size, device in sizes]
    equal = [torch.empty(size * (low == high), dtype=torch.uint8, device=device) for size, device in sizes]
    return list(each(scan, scores, below, equal))


def _mark(scans: Sequence[_Scan], wanted: int, has_places: bool, processes: Processes) -> list[Tensor]:
    """Add the ``wanted`` lowest scores in the bracket to those below; among equal ones those that come first."""
    ties = [scan.equal for scan in scans]
    if has_places:
        threshold = kth_lowest(torch.cat([scan.values for scan in scans]), [wanted], processes)[0]
        lower = [scan.places[scan.values < threshold] for scan in scans]
        wanted -= int(processes.sum(torch.tensor(sum(map(len, lower)))))
        ties = [scan.places[scan.values == threshold] for scan in scans]
        for scan, places in zip(scans, lower, strict=True):
            _set_bits(scan.below, places)
    counts = torch.zeros(len(scans), processes.count, dtype=torch.int64)
    counts[:, processes.rank] = torch.tensor(
        [len(t) if has_places else scan.num_inside for t, scan in zip(ties, scans, strict=True)]
    )
    counts = processes.sum(counts)
    before = counts.view(-1).cumsum(0).view_as(counts) - counts
    for scan, tie, quota in zip(scans, ties, (wanted - before[:, processes.rank]).tolist(), strict=True):
        _set_bits(scan.below, tie[: max(quota, 0)]) if has_places else scan.below.bitwise_or_(_first_ones(tie, quota))
    return [scan.below for scan in scans]


def _first_ones(packed: Tensor, quota: int) -> Tensor:
    """Keep the first ``quota`` of the ones among packed bits."""
    if quota <= 0:
        return torch.zeros_like(packed)
    if bits.count_ones(packed) <= quota:
        return packed
    flags = bits.unpack(packed, 8 * len(packed))
    flags[bits.places(flags)[quota:]] = False
    return bits.pack(flags)


def _set_bits(packed: Tensor, places: Tensor) -> None:
    """Set bits that are 0 to 1."""
    packed.index_add_(0, places >> 3, (128 >> (places & 7)).to(torch.uint8))


def compare_with(scores: Tensor, comparison: Callable[[Any, Any], Any], bound: float) -> Tensor:
    """Return the flags of a comparison; on the CPU by numpy, which takes a seventh of torch's time there."""
    if scores.device.type == "cpu":
        return torch.from_numpy(comparison(scores.numpy(), np.float32(bound)))
    return comparison(scores, bound)


def sort(values: Tensor) -> Tensor:
    """Return flat values in ascending order; on the CPU by numpy, which takes a tenth of torch's time there."""
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values


def kth_lowest(values: Tensor, ranks: Sequence[int], processes: Processes = ALONE) -> list[float]:
    """Return the float32 values of all processes at some ranks, from 1, in ascending order.

    Several processes bisect: floats are in the order of the integers of their bits, once those of negative numbers are
    flipped, and in 32 rounds each process counts how many of its own do not exceed the middle.
    """
    wanted = torch.tensor(ranks)
    ordered = sort(values + 0.0)  # makes -0.0 and 0.0 equal
    if processes.count == 1:
        return ordered[wanted.to(values.device) - 1].tolist()
    keys = _flip(ordered.view(torch.int32))
    low, high = torch.full_like(wanted, -(1 << 31)), torch.full_like(wanted, (1 << 31) - 1)
    for _ in range(32):
        middle = (low + high) >> 1
        reached = torch.searchsorted(keys, middle.to(keys), right=True)
        is_reached = processes.sum(reached.cpu()) >= wanted
        low, high = torch.where(is_reached, low, middle + 1), torch.where(is_reached, middle, high)
    return _flip(low.to(torch.int32)).view(torch.float32).tolist()


def _flip(patterns: Tensor) -> Tensor:
    """Flip the bits of negative floats, all but the sign, or flip them back."""
    return patterns ^ ((patterns >> 31) & 0x7FFFFFFF)


def sample_scores(scores: Sequence[Scores], processes: Processes = ALONE) -> Tensor:
    """Return about `SAMPLE` scores of all processes, drawn at random with replacement, float32 on the CPU."""
    total = max(int(processes.sum(torch.tensor(sum(map(len, scores))))), 1)
    generator = torch.Generator().manual_seed(processes.rank)
    drawn = []
    for part in scores:
        count = math.ceil(SAMPLE * len(part) / total)
        where = torch.randint(max(len(part), 1), (count,), generator=generator)
        drawn.append(part.at(where.to(part.weights.theta.device)).cpu())
    return torch.cat(processes.gather(torch.cat(drawn)))


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
