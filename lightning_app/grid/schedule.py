"""What runs when: every baseline before the arms that begin from its head, the largest conditions first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lightning_app.grid.condition import Condition

PASSES_OF_A_STEP = 3
"""A backward pass costs as much as two forward passes."""


@dataclass(frozen=True)
class Plan:
    """What is known of the conditions before any of them runs.

    Attributes:
        accelerator: Type of the device that all of them run on: `cpu`, `cuda`, `mps`, or `xla` for a TPU.
        devices: How many of these this machine has; for `cpu`, its cores.
        costs: Tokens through the backbone, a backward pass counted as two, by condition.
    """

    accelerator: str
    devices: int
    costs: Mapping[Condition, int]


class Workers(Protocol):
    """Something that runs conditions, several at once or one after the other."""

    largest_first: bool
    """Whether conditions are to be started in the order of their cost, or in their own."""

    def has_room(self) -> bool:
        """Whether another condition may be started."""

    def start(self, condition: Condition) -> None:
        """Starts a condition."""

    def wait(self) -> tuple[Condition, str | None]:
        """Returns the next condition that ends, and why it failed if it did."""


@dataclass(frozen=True)
class Event:
    """Something happened to a condition: it starts, or it ended, with the reason if it failed."""

    condition: Condition
    kind: Literal["start", "end"]
    failure: str | None = None


def tokens_of(passes: float, datamodule: Any) -> int:
    """The cost of a condition: the eval split once, the train split `passes` times."""
    return int(datamodule.num_tokens("eval") + passes * datamodule.num_tokens("train"))


def passes_of(model: Any, trainer: Any) -> float:
    """How often an arm takes the train split through the backbone, at most.

    A frozen backbone reads it once, for its features or a mask's gradient; another in every epoch, with a backward
    pass, and half as many rows of dev.
    """
    trains = any(parameter.requires_grad for parameter in model.backbone.parameters())
    return (PASSES_OF_A_STEP + 0.5) * trainer.max_epochs if trains else float(PASSES_OF_A_STEP)


def by_priority(todo: Sequence[Condition], costs: Mapping[Condition, int]) -> list[Condition]:
    """The conditions, those with most work in and behind them first: behind a baseline is its largest arm."""

    def priority(condition: Condition) -> int:
        behind = [costs[other] for other in todo if other.begins_from(condition)]
        return costs[condition] + max(behind, default=0)

    return sorted(todo, key=priority, reverse=True)


def run_all(todo: Sequence[Condition], costs: Mapping[Condition, int], workers: Workers) -> Iterator[Event]:
    """Runs conditions as soon as there is room and their baseline has ended, in whatever way.

    Yields:
        A start or an end, as it comes.
    """
    waiting = by_priority(todo, costs) if workers.largest_first else list(todo)
    running: list[Condition] = []
    while waiting or running:
        for condition in tuple(waiting):
            if not workers.has_room():
                break
            if not any(condition.begins_from(other) for other in (*waiting, *running)):
                waiting.remove(condition)
                running.append(condition)
                yield Event(condition, "start")
                workers.start(condition)
        ended, failure = workers.wait()
        running.remove(ended)
        yield Event(ended, "end", failure)
