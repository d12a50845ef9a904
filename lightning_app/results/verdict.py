"""The verdict on an arm: whether it helps, by a rule that was fixed before any result was seen."""

from dataclasses import dataclass
from typing import Literal

from lightning_app.results.metrics import HEADLINE, METRICS
from lightning_app.results.statistics import ALPHA, EQUIVALENCE_MARGIN, POWER, Difference, tost

Outcome = Literal["helps", "hurts", "no difference", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """Whether an arm helps on a dataset, and why.

    Attributes:
        outcome: By the rule of `verdict`.
        reason: One plain sentence.
        reference: The difference from the arm that this one starts from, with `p_holm`.
        control: The difference from the control, with `p_holm`.
    """

    dataset: str
    arm: str
    outcome: Outcome
    reason: str
    reference: Difference
    control: Difference


def verdict(reference: Difference, control: Difference) -> Verdict:
    """Decide whether an arm helps on a dataset, by the headline metric.

    *Beats* means a gain with `p_holm` below `ALPHA`, *is worse* a loss; the margin is `EQUIVALENCE_MARGIN`. The first
    that holds:

    1. **helps**: the arm beats its reference and its control (for masks: as many weights drawn at random).
    2. **hurts**: the arm is worse than the reference.
    3. **no difference**: the arm is shown to be within the margin of the reference (`p_equivalence` below `ALPHA`); or
       it beats the reference and is shown to beat the control by less than the margin (one of the two tests of
       `tost`): what it gains, the control gains too.
    4. **cannot tell**: none of these is shown; the study is too small for a difference of this size.

    An arm helps or hurts also if the difference is within the margin; the reason then says that it is small. Holm's
    correction covers the tests of a difference, not the tests of equivalence. With one seed the verdict holds only for
    these trained models, and the reason says so.

    Args:
        reference: The arm minus the arm that it starts from, corrected by `holm` with all others of the study.
        control: The arm minus its control, corrected in the same way.
    """
    outcome, why = _rule(reference, control)
    if min(len(reference.seeds), len(control.seeds)) == 1:
        why += "; with one seed this holds for other rows, not for other seeds"
    return Verdict(reference.dataset, reference.arm, outcome, f"{why}.", reference, control)


def _rule(reference: Difference, control: Difference) -> tuple[Outcome, str]:
    headline = METRICS[HEADLINE]
    arm, margin = reference.arm, f"the margin of {headline.scale * EQUIVALENCE_MARGIN:.2f} {headline.difference_unit}"
    small = f", but by less than {margin}" if reference.p_equivalence < ALPHA else ""
    beats = _beats(reference)
    if beats and _beats(control):
        return "helps", f"{arm} beats both {_words(reference)} and {_words(control)}{small}"
    if reference.p_holm < ALPHA and _gain(reference) < 0:
        return "hurts", f"{arm} is worse than {_words(reference)}{small}"
    if reference.p_equivalence < ALPHA:
        return "no difference", f"{arm} differs by less than {margin} from {_words(reference)}"
    if beats and tost(_gain(control), control.standard_error, control.df)[1] < ALPHA:
        return (
            "no difference",
            f"{arm} beats {_words(reference)}, but {_words(control)} by less than {margin} if at all",
        )
    unclear = control if beats else reference
    return "cannot tell", (
        f"neither a difference nor its absence is shown between {arm} and {_words(unclear)}; the study finds only "
        f"differences of {headline.scale * unclear.smallest_detectable:.1f} {headline.difference_unit} or more with a "
        f"probability of {POWER:.0%}"
    )


def _gain(difference: Difference) -> float:
    """Return the difference in the direction that is better."""
    return difference.estimate if METRICS[HEADLINE].higher_is_better else -difference.estimate


def _beats(difference: Difference) -> bool:
    return difference.p_holm < ALPHA and _gain(difference) > 0


def _words(difference: Difference) -> str:
    headline = METRICS[HEADLINE]
    low, mean, high = (
        f"{headline.scale * value:+.2f}" for value in (difference.low, difference.estimate, difference.high)
    )
    return (
        f"{difference.reference} ({mean} {headline.difference_unit}, 95 % interval {low} to {high}, "
        f"p = {difference.p_holm:.2g} after Holm)"
    )
