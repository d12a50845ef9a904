"""Which arms a study compares, decided by the arms' records and never by their names."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from lightning_app.results.statistics import Pair


@dataclass(frozen=True)
class Design:
    """The comparisons of a study.

    Attributes:
        baseline: The arm that others start from; None if there is none.
        references: For each other arm, the arm that it is compared with: the one it starts from, or the baseline.
        controls: For each arm that has a control, the control: these arms get a verdict.
    """

    baseline: str | None
    references: Mapping[str, str]
    controls: Mapping[str, str]

    @classmethod
    def of(cls, results: pd.DataFrame) -> "Design":
        """Derive the design from one row per condition with `arm`, `role`, `starts_from` and `control`."""
        arms = results.drop_duplicates("arm").set_index("arm")
        starts, controls = ({**arms[name].dropna()} for name in ("starts_from", "control"))
        common = [arm for arm, _ in Counter(starts.values()).most_common(1)]
        baseline = next(iter([*common, *arms.index[arms["role"] == "baseline"]]), None)
        references = {
            arm: reference
            for arm in arms.index
            if (reference := starts.get(arm, baseline)) is not None and reference != arm
        }
        return cls(baseline, references, {arm: control for arm, control in controls.items() if arm in references})

    @property
    def declared(self) -> list[Pair]:
        """The comparisons that verdicts are based on: each arm that has a control, with its reference and its control.

        Holm's correction is taken over all of them in every dataset of the study; every other comparison is
        exploratory.
        """
        return [pair for arm in self.controls for pair in self.verdict_pairs(arm)]

    @property
    def pairs(self) -> list[Pair]:
        """All comparisons, the declared ones first."""
        return list(dict.fromkeys([*self.declared, *self.references.items()]))

    def verdict_pairs(self, arm: str) -> tuple[Pair, Pair]:
        """Return the two comparisons that the verdict on an arm is based on."""
        return (arm, self.references[arm]), (arm, self.controls[arm])
