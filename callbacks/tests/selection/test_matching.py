"""Random selections that match an informed one, against an independent sort."""

import math

import pytest
import torch
from models import Classifier
from test_gradients import snapshot_of
from test_selection import flags_of, pieces

from influence_masking import SCORES, Mask, MaskingError
from influence_masking.masks import bits
from influence_masking.selection import matching
from influence_masking.selection.lowest import Weights, select
from influence_masking.selection.matching import select_matched
from influence_masking.selection.scores import random

SIZES = (200_000, 5_001, 40, 0)


def deciles_by_sorting(part: Weights) -> torch.Tensor:
    """Return the decile of each magnitude: how many of the nine edges, taken from a sort, are below it."""
    size = part.theta.abs().float()
    ranks = [max(math.ceil(len(part) * decile / 10), 1) for decile in range(1, 10)]
    edges = size.sort().values[[rank - 1 for rank in ranks]]
    return (size.unsqueeze(1) > edges).sum(1)


def matched_by_sorting(part: Weights, informed: torch.Tensor, seed: int) -> torch.Tensor:
    """In each decile the weights with the lowest random numbers, the first of equal ones."""
    chosen = torch.zeros(len(part), dtype=torch.bool)
    if not len(part):
        return chosen
    decile = deciles_by_sorting(part)
    noise = random(part.theta, part.grad, position=torch.arange(len(part)) + part.position, seed=seed)
    for number in range(10):
        members = (decile == number).nonzero().squeeze(1)
        count = int(informed[members].sum())
        chosen[members[noise[members].sort(stable=True).indices[:count]]] = True
    return chosen


@pytest.mark.parametrize("case", ["normal", "bfloat16", "all equal", "mostly zero", "subnormal"])
@pytest.mark.parametrize(("score", "share"), [("sign_gradient", 0.05), ("magnitude", 0.15), ("gradient", 1.0)])
def test_in_each_decile_the_weights_with_the_lowest_random_numbers_are_taken(case, score, share) -> None:
    parts = pieces(case, SIZES)
    for part in parts:
        if case == "mostly zero":
            part.theta.mul_(torch.rand(len(part)) < 0.3)
        elif case == "subnormal":
            part.theta.mul_(1e-41)
    informed = select(parts, int(share * sum(SIZES)), SCORES[score], "highest")
    for seed in (0, 3):
        for part, one, found in zip(parts, informed, select_matched(parts, informed, seed), strict=True):
            expected = matched_by_sorting(part, bits.unpack(one, len(part)), seed)
            assert torch.equal(bits.unpack(found, len(part)), expected)


def test_tensors_and_deciles_hold_as_many_as_in_the_informed_selection() -> None:
    parts = pieces("normal", SIZES)
    informed = select(parts, 12_000, SCORES["magnitude"], "highest")
    matched = select_matched(parts, informed, seed=0)
    for part, one, other in zip(parts[:3], informed[:3], matched[:3], strict=True):
        decile = deciles_by_sorting(part)
        counts = [decile[bits.unpack(packed, len(part))].bincount(minlength=10).tolist() for packed in (one, other)]
        assert counts[0] == counts[1]
    assert not torch.equal(flags_of(parts, informed), flags_of(parts, matched))
    assert not torch.equal(flags_of(parts, matched), flags_of(parts, select_matched(parts, informed, seed=1)))


def test_a_bound_that_leaves_too_few_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = pieces("normal", SIZES)
    informed = select(parts, 12_000, SCORES["snip"])
    expected = flags_of(parts, select_matched(parts, informed, seed=0))
    monkeypatch.setattr(matching, "BOUND_MARGIN", -3.0)
    assert torch.equal(flags_of(parts, select_matched(parts, informed, seed=0)), expected)


def test_any_mask_can_be_matched() -> None:
    snapshot = snapshot_of(Classifier())
    informed = snapshot.select(64, "snip", "highest")
    matched = snapshot.match(informed, seed=2)
    assert matched == snapshot.select(64, "random_matched", "highest", seed=2, matched_score="snip")
    assert matched.counts == informed.counts
    assert matched != informed


def test_a_mask_over_other_candidates_is_neither_matched_nor_predicted() -> None:
    snapshot, other = snapshot_of(Classifier()), Mask.from_flags({"net.0.weight": torch.rand(32, 16) < 0.1})
    for use in (snapshot.match, snapshot.predicted_change):
        with pytest.raises(MaskingError, match=r"net\.3\.weight has shape None"):
            use(other)
