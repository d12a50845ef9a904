"""Many masks from one gradient: what first-order theory predicts of each, and what zeroing it really does."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from influence_masking.errors import MaskingError
from influence_masking.masks.mask import Mask
from influence_masking.selection.counts import exact_count
from influence_masking.selection.lowest import Scope, Tail
from influence_masking.snapshot import Snapshot

FRACTIONS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class SweepPoint:
    """One mask of a sweep.

    Attributes:
        score: Name of the score.
        tail: ``lowest`` or ``highest``.
        fraction: Share of the candidates that was asked for.
        num_masked: Weights that it selects.
        predicted_change: Of the mean loss when they are zeroed, to first order.
        measured_change: The real change on the same samples.
        digest: The mask's.
        metrics: What `measure` found with the mask zeroed.
    """

    score: str
    tail: Tail
    fraction: float
    num_masked: int
    predicted_change: float
    measured_change: float
    digest: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PathPoint:
    """One point on the straight way from the weights as they are to those with the mask zeroed."""

    alpha: float
    predicted_change: float
    measured_change: float


@dataclass(frozen=True)
class Stability:
    """How much the masks of several gradients agree.

    Attributes:
        jaccard: Mean over all pairs of masks of the share of the union that is in both.
        lowest_jaccard: Of the pair that agrees least.
        chance: What random masks of the same size have, to first order.
    """

    jaccard: float
    lowest_jaccard: float
    chance: float


def sweep(
    snapshot: Snapshot,
    fractions: Sequence[float] = FRACTIONS,
    tails: Sequence[Tail] = ("lowest", "highest"),
    scores: Sequence[str] = ("sign_gradient",),
    scope: Scope = "global",
    seed: int = 0,
    measure: Callable[[], Mapping[str, float]] = dict,
) -> Iterator[SweepPoint]:
    """Yields every combination of score, tail and fraction; each costs a selection and one pass without gradients.

    Fractions of which not one weight comes are left out. The model's weights are what they were after each point.

    Args:
        snapshot: The gradient (`take_snapshot`, or `InfluenceMasking.snapshot` within a Trainer's run).
        fractions: Shares of the candidates.
        tails: Ends of the scores.
        scores: Names of scores.
        scope: As for `InfluenceMasking`.
        seed: Of the random scores.
        measure: Called once a point while the module evaluates with the mask zeroed: accuracy on other data, say.
    """
    for score, tail, fraction in itertools.product(scores, tails, fractions):
        k = exact_count(fraction, snapshot.num_candidates)
        if k > 0:
            mask = snapshot.select(k, score, tail, scope, seed)
            predicted, measured = snapshot.predicted_change(mask), snapshot.measured_change(mask)
            with snapshot.masked(mask):
                metrics = measure()
            yield SweepPoint(score, tail, fraction, k, predicted, measured, mask.digest, metrics)


def path_scan(snapshot: Snapshot, mask: Mask, alphas: Iterable[float] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> list[PathPoint]:
    """Returns how the loss L(theta - alpha * theta_S) changes from theta as the masked weights theta_S shrink to zero.

    Where measured and predicted part tells how far the first order reaches.
    """
    slope = snapshot.predicted_change(mask)
    return [PathPoint(a, a * slope, snapshot.measured_loss(mask, a) - snapshot.loss) for a in alphas]


def stability(
    make_snapshot: Callable[[int], Snapshot], seeds: Sequence[int], select: Callable[[Snapshot], Mask]
) -> Stability:
    """Returns how much the selection depends on which samples the gradient is taken over.

    Args:
        make_snapshot: Takes the gradient over the subset of the data that a seed stands for.
        seeds: At least two.
        select: Makes the mask of a gradient, as ``lambda snapshot: snapshot.select(1000)``.

    Raises:
        MaskingError: If there are fewer than two seeds.
    """
    if len(seeds) < 2:
        raise MaskingError(f"Asked for the stability over seeds {list(seeds)}, found no pair. Give at least two seeds.")
    masks = [select(make_snapshot(seed)) for seed in seeds]
    overlaps = [one.overlap(other) for one, other in itertools.combinations(masks, 2)]
    jaccards = [overlap.jaccard for overlap in overlaps]
    return Stability(fmean(jaccards), min(jaccards), fmean(overlap.chance for overlap in overlaps))
