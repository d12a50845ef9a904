"""A random selection with as many weights of each tensor and of each decile of its magnitudes as an informed one.

It controls for what a score knows beyond how many weights of which size it takes from which tensor. In each decile the
weights with the lowest random numbers are taken. Only random numbers below a bound are kept and ranked: the share that
is wanted plus six standard deviations, so that too few are below it only once in a billion times.
"""

import math
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from influence_masking.masks import bits
from influence_masking.runtime.processes import ALONE, Processes
from influence_masking.selection.lowest import PIECE, Scores, Weights, compare_with, kth_lowest, lowest_of, workers
from influence_masking.selection.scores import magnitude, random

DECILES = 10
MARGIN = 6.0  # standard deviations


def select_matched(
    weights: Sequence[Weights], informed: Sequence[Tensor], seed: int, processes: Processes = ALONE
) -> list[Tensor]:
    """Selects at random as many weights of each tensor and of each decile of its magnitudes as an informed mask has.

    Args:
        weights: The local parts of the candidates.
        informed: The selection to match, as packed bits (what `selection.select` returns).
        seed: Of the random numbers, which depend on it and on the weights' positions alone.
        processes: Those that the candidates are sharded over.

    Returns:
        For each element of ``weights`` its selection as packed bits.
    """

    def match(part: Weights, packed: Tensor) -> Tensor:
        return _match(part, bits.unpack(packed, len(part)), seed, processes)

    with workers(weights) as each:
        # the ranks must meet in one order
        return list((each if processes.count == 1 else map)(match, weights, informed))


class _Deciles(NamedTuple):
    """How the magnitudes of a tensor are divided.

    Attributes:
        edges: The largest magnitude of each decile but the last, shape (9,).
        sizes: How many weights of all processes each holds, shape (10,): unequal where magnitudes are equal.
    """

    edges: Tensor
    sizes: Tensor

    def of(self, theta: Tensor) -> Tensor:
        """Returns the deciles that weights belong to, 0 to 9."""
        return torch.bucketize(theta.abs().float(), self.edges)


def _match(part: Weights, informed: Tensor, seed: int, processes: Processes) -> Tensor:
    deciles = _deciles(part, processes)
    wanted = processes.sum(deciles.of(part.theta[informed]).bincount(minlength=DECILES).cpu())
    share = wanted / deciles.sizes.clamp(min=1)
    bounds = torch.where(wanted > 0, share + MARGIN * (share / deciles.sizes.clamp(min=1)).sqrt(), -1)
    places, noise, decile = _numbers_below(part, deciles, bounds + MARGIN / deciles.sizes.clamp(min=1), seed)
    if (processes.sum(decile.bincount(minlength=DECILES).cpu()) < wanted).any():
        places, noise, decile = _numbers_below(part, deciles, torch.full((DECILES,), 2.0), seed)
    chosen = torch.zeros(len(part), dtype=torch.bool, device=part.theta.device)
    for number, count in enumerate(wanted.tolist()):
        members = (decile == number).nonzero().squeeze(1)
        drawn = Scores(Weights(part.name, noise[members], noise[members]), magnitude)
        picked = bits.unpack(lowest_of([drawn], count, processes, map)[0], len(members))
        chosen[places[members[picked]]] = True
    return bits.pack(chosen)


def _pieces(part: Weights) -> Iterator[slice]:
    size = PIECE.get(part.theta.device.type, PIECE["cpu"])
    return (slice(start, min(start + size, len(part))) for start in range(0, len(part), size))


def _deciles(part: Weights, processes: Processes) -> _Deciles:
    total = int(processes.sum(torch.tensor(len(part))))
    if not total:
        return _Deciles(torch.zeros(DECILES - 1, device=part.theta.device), torch.zeros(DECILES, dtype=torch.int64))
    magnitudes = part.theta.abs().float()
    edges = kth_lowest(magnitudes, [math.ceil(total * decile / DECILES) for decile in range(1, DECILES)], processes)
    up_to = processes.sum(
        torch.tensor([bits.count_true(compare_with(magnitudes, operator.le, edge)) for edge in edges])
    )
    sizes = torch.tensor([0, *up_to.tolist(), total]).diff()
    return _Deciles(torch.tensor(edges, device=part.theta.device), sizes)


def _numbers_below(part: Weights, deciles: _Deciles, bounds: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws each weight's number; returns places, numbers and deciles of those below the bound of their decile."""
    bounds, highest = bounds.to(part.theta.device), float(bounds.max())
    found = []
    for where in _pieces(part):
        theta = part.theta[where]
        position = torch.arange(where.start, where.stop, device=theta.device)
        noise = random(theta, theta, position=position + part.position, seed=seed)
        near = (noise < highest).nonzero().squeeze(1)
        decile = deciles.of(theta[near])
        below = noise[near] < bounds[decile]
        near = near[below]
        found.append((near + where.start, noise[near], decile[below]))
    nothing = torch.empty(0, dtype=torch.int64, device=part.theta.device)
    places, noises, numbers = zip((nothing, nothing.float(), nothing), *found, strict=True)
    return torch.cat(places), torch.cat(noises), torch.cat(numbers)
