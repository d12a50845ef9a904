"""A random selection with as many weights of each tensor and of each decile of its magnitudes as an informed one.

As a control it shows what a score knows beyond how many weights of which size it selects from which tensor. In each
decile the weights with the lowest random numbers are selected. To rank few of them, only numbers below a bound are
kept, which is so far above the wanted share that too few numbers are below it once in a billion times.
"""

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from influence_masking.masks import bits
from influence_masking.runtime.processes import SINGLE_PROCESS, Ranks
from influence_masking.selection.lowest import Scores, Weights, compare_with, kth_lowest, select_lowest, threaded_map
from influence_masking.selection.scores import magnitude, random

DECILES = 10
BOUND_MARGIN = 6.0  # standard deviations


def select_matched(
    weights: Sequence[Weights], informed: Sequence[Tensor], seed: int, processes: Ranks = SINGLE_PROCESS
) -> list[Tensor]:
    """Select at random as many weights of each tensor and of each decile of its magnitudes as an informed mask has.

    Args:
        weights: The local parts of the candidates.
        informed: The selection to match, as packed bits (the result of `select`).
        seed: Seed of the random numbers, which depend only on it and on the weights' positions.
        processes: The processes that the candidates are sharded over.

    Returns:
        The selection of each element of `weights` as packed bits.
    """

    def match(part: Weights, packed: Tensor) -> Tensor:
        return _match(part, bits.unpack(packed, len(part)), seed, processes)

    with threaded_map(weights) as map_parts:
        # sums over processes must be in the same order everywhere, so with several there are no threads
        return list((map_parts if processes.count == 1 else map)(match, weights, informed))


class _Deciles(NamedTuple):
    """The deciles of the magnitudes of a tensor.

    Attributes:
        edges: Largest magnitude of each decile but the last, shape (9,).
        sizes: Number of weights in each decile over all processes, shape (10,); unequal where magnitudes are equal.
    """

    edges: Tensor
    sizes: Tensor

    def of(self, theta: Tensor) -> Tensor:
        """Return the decile of each weight, 0 to 9."""
        return torch.bucketize(theta.abs().float(), self.edges)


def _match(part: Weights, informed: Tensor, seed: int, processes: Ranks) -> Tensor:
    deciles = _deciles(part, processes)
    wanted = processes.sum(deciles.of(part.theta[informed]).bincount(minlength=DECILES).cpu())
    share = wanted / deciles.sizes.clamp(min=1)
    bounds = torch.where(wanted > 0, share + BOUND_MARGIN * (share / deciles.sizes.clamp(min=1)).sqrt(), -1)
    places, noise, decile = _numbers_below(part, deciles, bounds + BOUND_MARGIN / deciles.sizes.clamp(min=1), seed)
    if (processes.sum(decile.bincount(minlength=DECILES).cpu()) < wanted).any():
        places, noise, decile = _numbers_below(part, deciles, torch.full((DECILES,), 2.0), seed)
    chosen = torch.zeros(len(part), dtype=torch.bool, device=part.theta.device)
    for number, count in enumerate(wanted.tolist()):
        members = (decile == number).nonzero().squeeze(1)
        noise_scores = Scores(Weights(part.name, noise[members], noise[members]), magnitude)
        picked = bits.unpack(select_lowest([noise_scores], count, processes, map)[0], len(members))
        chosen[places[members[picked]]] = True
    return bits.pack(chosen)


def _deciles(part: Weights, processes: Ranks) -> _Deciles:
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
    """Return the indices, random numbers and deciles of the weights whose number is below the bound of its decile."""
    bounds, highest = bounds.to(part.theta.device), float(bounds.max())
    pieces = []
    for where in part.slices():
        theta = part.theta[where]
        position = torch.arange(where.start, where.stop, device=theta.device)
        noise = random(theta, theta, position=position + part.position, seed=seed)
        near = (noise < highest).nonzero().squeeze(1)
        decile = deciles.of(theta[near])
        below = noise[near] < bounds[decile]
        near = near[below]
        pieces.append((near + where.start, noise[near], decile[below]))
    nothing = torch.empty(0, dtype=torch.int64, device=part.theta.device)
    places, noises, numbers = zip((nothing, nothing.float(), nothing), *pieces, strict=True)
    return torch.cat(places), torch.cat(noises), torch.cat(numbers)
