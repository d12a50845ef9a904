"""The name of a condition and the description of its arm, recorded as the user gave them."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["baseline", "mask", "adapter", "full", "sweep"]


@dataclass(frozen=True)
class Arm:
    """One way to adapt the model, as its configuration describes it.

    Attributes:
        name: Its name in results.
        role: What kind of arm it is. `baseline` trains a head that others may start from, `mask` masks weights,
            `adapter` and `full` train more than the head, `sweep` measures many masks and is in no table of arms.
        starts_from: The arm whose head it starts from; None starts from a new head.
        control: The arm that its verdict compares it with, besides the one it starts from; None: no verdict.
        overlay: Name of the file in `configs/tune` that was laid over the arm; it becomes part of the label.
        color: Color in figures, as matplotlib reads it; None: chosen by the name.
    """

    name: str
    role: Role
    starts_from: str | None = "baseline"
    control: str | None = None
    overlay: str | None = None
    color: str | None = None

    @property
    def label(self) -> str:
        """The name, or `name+overlay`: what folders, tables and figures call the arm."""
        return f"{self.name}+{self.overlay}" if self.overlay else self.name


@dataclass(frozen=True)
class Identity:
    """Dataset, arm and seed of one condition, as the user named them."""

    dataset: str
    arm: Arm
    seed: int
