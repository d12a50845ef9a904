"""The options of a mask, described and checked in one place."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from influence_masking.errors import MaskingError
from influence_masking.masks.enforcer import Action
from influence_masking.selection.counts import exact_count
from influence_masking.selection.lowest import Scope, Tail
from influence_masking.selection.scores import RANDOM_MATCHED, ScoreFunction, resolve_score, score_name

DEFAULT_FRACTION = 0.05


@dataclass(frozen=True)
class MaskingOptions:
    """Options of `InfluenceMasking`: which weights are selected, and what is done to them.

    Args:
        fraction: Share of the candidates to select, between 0 and 1: exactly floor(fraction * candidates). Without a
            fraction and a `count` it is 0.05.
        score: `sign_gradient`, `taylor`, `snip`, `gradient`, `magnitude`, `random`, `random_matched`, the import path
            of a function (`package.module.function`) or a function.
        tail: Which end of the scores is selected. Zeroing theta changes the loss to first order by -|theta| * score, so
            `lowest` selects the weights whose removal raises the loss.
        scope: Rank over all candidates (`global`), or within each `layer` or `tensor`.
        targets: Which parameters are candidates: a list of name suffixes, a regular expression that matches whole
            names, or None for the attention and MLP matrices of common transformers.
        num_samples: Number of samples that the gradient is taken over; None takes all calibration data.
        action: `zero` sets the selected weights to zero and holds them there, `freeze` holds them at their values,
            `train_only` trains only them.
        mask_path: File with the mask to use. No gradient is taken and nothing is measured.
        seed: Seed for the order of shuffled calibration data and for random scores.
        count: Number of weights to select, instead of a fraction.
        micro_batch_size: Largest number of samples in one forward and backward pass of the gradient; None takes the
            batches as the loader gives them.
        matched_score: Score of the mask whose tensors and weight sizes `random_matched` follows.

    Raises:
        MaskingError: If an option is out of its range, or both a fraction and a count are given.
    """

    fraction: float | None = None
    score: str | ScoreFunction = "sign_gradient"
    tail: Tail = "lowest"
    scope: Scope = "global"
    targets: Sequence[str] | str | None = None
    num_samples: int | None = 1000
    action: Action = "zero"
    mask_path: str | Path | None = None
    seed: int = 0
    count: int | None = None
    micro_batch_size: int | None = None
    matched_score: str | ScoreFunction = "sign_gradient"

    def __post_init__(self) -> None:
        """Check every option."""
        if self.fraction is not None and self.count is not None:
            raise MaskingError(
                f"`fraction` and `count` cannot both be set, found fraction={self.fraction} and count={self.count}. "
                "Leave one out."
            )
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise MaskingError(
                f"`fraction` must be between 0 and 1, found fraction={self.fraction}. Set it to a value such as 0.05."
            )
        for name in ("count", "num_samples", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and not (_is_integer(value) and value > 0):
                raise MaskingError(
                    f"`{name}` must be a whole number above 0, found {name}={value!r}. "
                    "Set it to 1 or more, or leave it out."
                )
        if not _is_integer(self.seed):
            raise MaskingError(f"`seed` must be a whole number, found seed={self.seed!r}. Set it to an integer.")
        for name, allowed in (("tail", get_args(Tail)), ("scope", get_args(Scope)), ("action", get_args(Action))):
            if getattr(self, name) not in allowed:
                raise MaskingError(f"Unknown {name}={getattr(self, name)!r}. Choose one of {list(allowed)}.")
        for name in ("score", "matched_score"):
            if name == "matched_score" or self.score != RANDOM_MATCHED:
                resolve_score(getattr(self, name), option=name)

    @property
    def ranking_score(self) -> str | ScoreFunction:
        """The score that the weights are ranked by: for `random_matched` that of the mask it follows."""
        return self.matched_score if self.score == RANDOM_MATCHED else self.score

    @property
    def effective_fraction(self) -> float | None:
        """The fraction with its default filled in; None if a count is given."""
        # `fraction` itself stays None: a default of 0.05 would exclude a count that a command line adds to the defaults
        return DEFAULT_FRACTION if self.fraction is None and self.count is None else self.fraction

    def num_selected(self, num_candidates: int) -> int:
        """Return how many of the candidates are selected."""
        return self.count or exact_count(self.effective_fraction or 0, num_candidates)

    def as_record(self) -> dict[str, Any]:
        """Return the options that a mask depends on, as JSON values, for state keys and provenance."""
        record = {
            "fraction": self.effective_fraction,
            "count": self.count,
            "score": score_name(self.score),
            "tail": self.tail,
            "scope": self.scope,
            "targets": self.targets if isinstance(self.targets, str | None) else list(self.targets),
            "num_samples": self.num_samples,
            "action": self.action,
            "mask_path": str(self.mask_path) if self.mask_path else None,
            "seed": self.seed,
        }
        return record | ({"matched_score": score_name(self.matched_score)} if self.score == RANDOM_MATCHED else {})


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
