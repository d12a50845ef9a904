"""Many masks from one gradient, each with the predicted and the measured effect of zeroing it."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from influence_masking.errors import MaskingError
from influence_masking.masks.mask import Mask
from influence_masking.selection.counts import exact_count
from influence_masking.selection.lowest import Scope, Tail
from influence_masking.snapshot import Snapshot

SWEEP_FRACTIONS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class SweepPoint:
    """One mask of a sweep and its effect.

    Attributes:
        score: Name of the score.
        tail: `lowest` or `highest`.
        fraction: Requested share of the candidates.
        num_masked: Number of selected weights.
        predicted_change: Change of the mean loss when the mask is zeroed, to first order.
        measured_change: Change measured on the same samples.
        digest: Digest of the mask.
        metrics: Result of `measure` with the mask zeroed.
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
    """The loss at one point on the straight line from the current weights to those with the mask zeroed."""

    alpha: float
    predicted_change: float
    measured_change: float


@dataclass(frozen=True)
class Stability:
    """Agreement between the masks of several gradients.

    Attributes:
        jaccard: Mean Jaccard index (intersection over union) of all pairs of masks.
        lowest_jaccard: Jaccard index of the pair that agrees least.
        chance: Jaccard index of random masks of the same size, to first order.
    """

    jaccard: float
    lowest_jaccard: float
    chance: float


def sweep(
    snapshot: Snapshot,
    fractions: Sequence[float] = SWEEP_FRACTIONS,
    tails: Sequence[Tail] = ("lowest", "highest"),
    scores: Sequence[str] = ("sign_gradient",),
    scope: Scope = "global",
    seed: int = 0,
    measure: Callable[[], Mapping[str, float]] = dict,
) -> Iterator[SweepPoint]:
    """Yield a point for every combination of score, tail and fraction.

    Each costs a selection and one forward pass over the samples. Fractions that select no weight are skipped. The
    model's weights are restored after each point.

    Args:
        snapshot: The gradient (`take_snapshot`, or `InfluenceMasking.snapshot` within a Trainer's run).
        fractions: Shares of the candidates.
        tails: Ends of the scores.
        scores: Names of scores.
        scope: As for `InfluenceMasking`.
        seed: Seed for random scores.
        measure: Called once per point, in evaluation mode with the mask zeroed, for example to compute accuracy on
            other data.
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
    """Return the change of the loss L(theta - alpha * theta_S) as the masked weights theta_S shrink to zero.

    The alpha where the measured and the predicted change part shows how far first-order theory holds.
    """
    slope = snapshot.predicted_change(mask)
    return [PathPoint(a, a * slope, snapshot.measured_loss(mask, a) - snapshot.loss) for a in alphas]


def stability(
    make_snapshot: Callable[[int], Snapshot], seeds: Sequence[int], select: Callable[[Snapshot], Mask]
) -> Stability:
    """Return how much the selection depends on the samples that the gradient is taken over.

    Args:
        make_snapshot: Takes the gradient over the subset of the data that belongs to a seed.
        seeds: Two seeds or more.
        select: Makes the mask of a gradient, for example `lambda snapshot: snapshot.select(1000)`.

    Raises:
        MaskingError: If there are fewer than two seeds.
    """
    if len(seeds) < 2:
        raise MaskingError(f"Stability needs at least two seeds, found {list(seeds)}. Add a seed.")
    masks = [select(make_snapshot(seed)) for seed in seeds]
    overlaps = [one.overlap(other) for one, other in itertools.combinations(masks, 2)]
    jaccards = [overlap.jaccard for overlap in overlaps]
    return Stability(fmean(jaccards), min(jaccards), fmean(overlap.chance for overlap in overlaps))
