"""Exactly the k lowest scores, nearly always in one pass over weights and gradients.

Tensors are not concatenated and scores are not stored. A random sample gives a bracket [low, high] that contains the
k-th lowest score with near certainty. A pass computes the scores piece by piece, marks those below the bracket with
one bit each and keeps the few inside, among which the threshold is exact. If the bracket misses, or contains very many
equal scores, the counts of the pass give the next bracket. Equal scores are selected in the order of (tensor, index),
so the result is the same on every machine and for every sharding.
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
from influence_masking.runtime.processes import SINGLE_PROCESS, Ranks
from influence_masking.selection.scores import ScoreFunction, takes_position

PIECE_SIZE = {"cpu": 3 << 17, "cuda": 1 << 24}  # weights per piece: on the CPU what fits in a cache; multiples of 8
SAMPLE_SIZE = 1 << 18  # number of sampled scores
BRACKET_MARGIN = 3.0  # standard deviations of the sampled rank, from the quantile to each end of the bracket
MAX_KEPT_SHARE = 1 / 64  # of the scores may be in the bracket; more means that many are equal

MapParts = Callable[..., Iterable[Any]]  # `map` over the local parts of the candidates, perhaps in threads
Tail = Literal["lowest", "highest"]
Scope = Literal["global", "layer", "tensor"]


@dataclass(frozen=True)
class Weights:
    """The part of one candidate on this process, flat.

    Attributes:
        name: Name of the parameter.
        theta: Local elements in any floating-point type, shape (n,).
        grad: Their gradient, float32 or float64, shape (n,); scores are computed in float32.
        position: Index of the first local element among the elements of all candidates.
    """

    name: str
    theta: Tensor
    grad: Tensor
    position: int = 0

    def __len__(self) -> int:
        return self.theta.numel()

    def slices(self) -> Iterator[slice]:
        """Yield slices of at most one `PIECE_SIZE`."""
        size = PIECE_SIZE.get(self.theta.device.type, PIECE_SIZE["cpu"])
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))


class Scores:
    """The scores of a `Weights`, computed on access; for the highest tail with their sign changed.

    Args:
        weights: The local part of a candidate.
        score: A resolved score.
        tail: `lowest` or `highest`.
    """

    def __init__(self, weights: Weights, score: ScoreFunction, tail: Tail = "lowest") -> None:
        self.weights = weights
        self._score = score
        self._sign = {"lowest": 1, "highest": -1}[tail]
        self._with_position = takes_position(score)

    def __len__(self) -> int:
        return len(self.weights)

    def at(self, index: slice | Tensor) -> Tensor:
        """Return the scores at some local elements, float32."""
        theta, grad = self.weights.theta[index].float(), self.weights.grad[index].float()
        scores = self._score(theta, grad, **self._position(index)).float()
        if scores.shape != theta.shape:
            raise MaskingError(
                f"The score {self._score} must return one number per weight, found shape {tuple(scores.shape)} for "
                f"{len(theta)} weights. Make it work element by element."
            )
        return scores if self._sign == 1 else -scores

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the scores piece by piece, each with its slice; at the end raise a `MaskingError` if one was NaN."""
        total = torch.zeros((), device=self.weights.theta.device)
        for where in self.weights.slices():
            scores = self.at(where)
            total += scores.sum()  # NaN if a score is, and much cheaper than `isnan`
            yield where, scores
        if not total.isfinite() and any(self.at(where).isnan().any() for where in self.weights.slices()):
            raise MaskingError(
                f"The score {self._score} of {self.weights.name} is NaN for some weights. Check the weights and the "
                "score."
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
    processes: Ranks = SINGLE_PROCESS,
) -> list[Tensor]:
    """Select exactly k weights at one tail of their scores.

    Args:
        weights: The local parts of the candidates, in the order of the model.
        k: Number of weights to select over all processes.
        score: A resolved score (`scores.resolve_score`).
        tail: Which end of the scores.
        scope: Rank over all candidates, or within each layer or tensor. Layers and tensors get shares of k in
            proportion to their sizes.
        processes: The processes that the candidates are sharded over.

    Returns:
        The selection of each element of `weights` as packed bits.

    Raises:
        MaskingError: If a score is not a number, or `k` exceeds the number of candidates.
    """
    key = {"global": lambda _: "", "layer": layer_of, "tensor": lambda name: name}[scope]
    groups: dict[str, list[int]] = {}
    for i, part in enumerate(weights):
        groups.setdefault(key(part.name), []).append(i)
    sizes = processes.sum(torch.tensor([sum(len(weights[i]) for i in members) for members in groups.values()]))
    selected: dict[int, Tensor] = {}
    with threaded_map(weights) as map_parts:
        for members, share in zip(groups.values(), split_in_proportion(k, sizes.tolist()), strict=True):
            scores = [Scores(weights[i], score, tail) for i in members]
            selected.update(zip(members, select_lowest(scores, share, processes, map_parts), strict=True))
    return [selected[i] for i in range(len(weights))]


def first_order_change(
    weights: Sequence[Weights], selected: Sequence[Tensor], processes: Ranks = SINGLE_PROCESS
) -> float:
    """Return minus the sum of theta * grad over a selection: the first-order loss change when it is zeroed.

    Args:
        weights: The local parts of the candidates.
        selected: The selection as packed bits.
        processes: The processes that the candidates are sharded over.
    """
    sums = [
        float(torch.dot(part.theta[where].double(), part.grad[where].double()))
        for part, packed in zip(weights, selected, strict=True)
        for where in [bits.unpack(packed.to(part.theta.device), len(part))]
    ]
    return -math.fsum(torch.cat(processes.gather(torch.tensor(sums, dtype=torch.float64))).tolist())


def split_in_proportion(k: int, sizes: Sequence[int]) -> list[int]:
    """Split k into whole numbers in proportion to sizes (Hamilton's method of largest remainders)."""
    total = max(sum(sizes), 1)
    shares = [k * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(k * sizes[i] % total), i))
    for i in by_remainder[: k - sum(shares)]:
        shares[i] += 1
    return shares


def select_lowest(scores: Sequence[Scores], k: int, processes: Ranks, map_parts: MapParts) -> list[Tensor]:
    """Select exactly the k lowest scores of all processes, as packed bits; among equal ones those that come first.

    Rank 0 must have the first rows of every candidate, rank 1 the next ones, and so on.
    """
    total = int(processes.sum(torch.tensor(sum(map(len, scores)))))
    if not 0 <= k <= total:
        raise MaskingError(f"Cannot select {k} weights of {total} candidates. Lower the fraction or the count.")
    if k == 0:
        return [torch.zeros(-(-len(part) // 8), dtype=torch.uint8, device=part.weights.theta.device) for part in scores]
    sample = sort(sample_scores(scores, processes)) if total > SAMPLE_SIZE else torch.empty(0)
    interval, is_crowded = _Interval(-math.inf, math.inf, 0, total), False
    while True:
        near = sample[(sample >= interval.low) & (sample <= interval.high)]
        low, high = _bracket(interval, k, near, is_crowded)
        limit = max(2 * SAMPLE_SIZE, math.ceil(MAX_KEPT_SHARE * total)) if len(near) else interval.inside
        scans = _scan(scores, low, high, limit, map_parts)
        counts = torch.tensor([(scan.num_below, scan.num_inside) for scan in scans])
        below, inside = processes.sum(counts.sum(0)).tolist()
        is_crowded = below < k <= below + inside and inside > limit and low < high
        if k <= below:
            interval = _Interval(interval.low, _next(low, -math.inf), interval.below, below - interval.below)
        elif k > below + inside:
            above = interval.below + interval.inside - below - inside
            interval = _Interval(_next(high, math.inf), interval.high, below + inside, above)
        elif is_crowded:
            interval = _Interval(low, high, below, inside)
        else:
            return _mark(scans, k - below, low < high, processes)


class _Interval(NamedTuple):
    """An interval of scores that contains the k-th lowest, and how many scores are below it and inside."""

    low: float
    high: float
    below: int
    inside: int


def _bracket(interval: _Interval, k: int, near: Tensor, is_crowded: bool) -> tuple[float, float]:
    """Return a narrower interval that contains the k-th lowest score with near certainty.

    Args:
        interval: An interval that contains it.
        k: Its rank among all scores.
        near: A random sample of the scores in the interval, ascending.
        is_crowded: Whether the interval was a bracket with too many scores inside. Many scores are then equal, and the
            likeliest one is the next bracket: equal scores are kept as bits, which takes less memory than indices.
    """
    share = (k - interval.below) / interval.inside
    expected, deviation = len(near) * share, math.sqrt(len(near) * share * (1 - share))
    if is_crowded:
        likeliest = near[min(int(expected), len(near) - 1)].item()
        return likeliest, likeliest
    first = math.floor(expected - BRACKET_MARGIN * deviation) - 1
    last = math.ceil(expected + BRACKET_MARGIN * deviation) + 1
    low = near[first].item() if first >= 0 else interval.low
    return low, near[last].item() if last < len(near) else interval.high


def _next(score: float, towards: float) -> float:
    """Return the neighboring float32."""
    return float(np.nextafter(np.float32(score), np.float32(towards)))


class _Scan(NamedTuple):
    """The result of one pass over a part.

    Attributes:
        below: Flags of the scores below the bracket, packed.
        num_below: Number of scores below.
        num_inside: Number of scores inside.
        places: Indices of the scores inside, unless they are too many.
        values: The scores at these indices.
        equal: Flags of the scores inside, packed, if the bracket is a single score.
    """

    below: Tensor
    num_below: int
    num_inside: int
    places: Tensor
    values: Tensor
    equal: Tensor


def _scan(scores: Sequence[Scores], low: float, high: float, limit: int, map_parts: MapParts) -> list[_Scan]:
    """Compare every score with a bracket; keep the indices of at most about `limit` of those inside."""
    kept = 0

    def scan(part: Scores, below: Tensor, equal: Tensor) -> _Scan:
        nonlocal kept
        num_below = num_inside = 0
        kept_places = [torch.empty(0, dtype=torch.int64, device=below.device)]
        for where, piece in part.pieces():
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
                kept_places += [places] if kept <= limit else []
                kept += len(places)
        places = torch.cat(kept_places)
        return _Scan(below, num_below, num_inside, places, part.at(places), equal)

    # allocated in this thread: results that outlive a worker thread keep malloc from reusing its heap
    sizes = [(-(-len(part) // 8), part.weights.theta.device) for part in scores]
    below = [torch.empty(size, dtype=torch.uint8, device=device) for size, device in sizes]
    equal = [torch.empty(size * (low == high), dtype=torch.uint8, device=device) for size, device in sizes]
    return list(map_parts(scan, scores, below, equal))


def _mark(scans: Sequence[_Scan], wanted: int, has_places: bool, processes: Ranks) -> list[Tensor]:
    """Select the scores below the bracket and the `wanted` lowest inside; among equal ones those that come first."""
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
    """Keep the first `quota` of the ones among packed bits."""
    if quota <= 0:
        return torch.zeros_like(packed)
    if bits.count_ones(packed) <= quota:
        return packed
    flags = bits.unpack(packed, 8 * len(packed))
    flags[bits.places(flags)[quota:]] = False
    return bits.pack(flags)


def _set_bits(packed: Tensor, places: Tensor) -> None:
    """Set bits that are 0 to 1; adding is safe only because they are 0 and no index is repeated."""
    packed.index_add_(0, places >> 3, (128 >> (places & 7)).to(torch.uint8))


def compare_with(scores: Tensor, comparison: Callable[[Any, Any], Any], bound: float) -> Tensor:
    """Return the flags of a comparison; on the CPU by numpy, which is seven times as fast as torch there."""
    if scores.device.type == "cpu":
        return torch.from_numpy(comparison(scores.numpy(), np.float32(bound)))
    return comparison(scores, bound)


def sort(values: Tensor) -> Tensor:
    """Return flat values in ascending order; on the CPU by numpy, which is ten times as fast as torch there."""
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values


def kth_lowest(values: Tensor, ranks: Sequence[int], processes: Ranks = SINGLE_PROCESS) -> list[float]:
    """Return the values of all processes, float32, that have the given ranks (from 1) in ascending order.

    Over several processes the bits of the answer are found by bisection, in 32 rounds of one small sum: as integers,
    the bits of floats are in the order of the floats, once those of negative floats are flipped.
    """
    wanted = torch.tensor(ranks)
    ordered = sort(values)
    if processes.count == 1:
        return ordered[wanted.to(values.device) - 1].tolist()
    keys = _flip((ordered + 0.0).view(torch.int32))  # adding zero makes -0.0 and 0.0 the same bits
    low, high = torch.full_like(wanted, -(1 << 31)), torch.full_like(wanted, (1 << 31) - 1)
    for _ in range(32):
        middle = (low + high) >> 1
        reached = torch.searchsorted(keys, middle.to(keys), right=True)
        is_reached = processes.sum(reached.cpu()) >= wanted
        low, high = torch.where(is_reached, low, middle + 1), torch.where(is_reached, middle, high)
    return _flip(low.to(torch.int32)).view(torch.float32).tolist()


def _flip(patterns: Tensor) -> Tensor:
    """Flip all bits but the sign of negative floats, or flip them back."""
    return patterns ^ ((patterns >> 31) & 0x7FFFFFFF)


def sample_scores(scores: Sequence[Scores], processes: Ranks = SINGLE_PROCESS) -> Tensor:
    """Return about `SAMPLE_SIZE` scores of all processes, drawn at random with replacement, float32 on the CPU."""
    total = max(int(processes.sum(torch.tensor(sum(map(len, scores))))), 1)
    generator = torch.Generator().manual_seed(processes.rank)
    drawn = []
    for part in scores:
        count = math.ceil(SAMPLE_SIZE * len(part) / total)
        where = torch.randint(max(len(part), 1), (count,), generator=generator)
        drawn.append(part.at(where.to(part.weights.theta.device)).cpu())
    return torch.cat(processes.gather(torch.cat(drawn)))


@contextlib.contextmanager
def threaded_map(weights: Sequence[Weights]) -> Iterator[MapParts]:
    """Provide a `map` over local parts; on the CPU it runs one part per thread, without torch's own threads.

    An operation on a piece takes microseconds, less than torch's threads need to wait for each other.
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
