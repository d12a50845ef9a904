"""The order of conditions: an arm runs after the one that it starts from, and the largest conditions run first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lightning_app.grid.condition import Condition
from lightning_app.grid.forecast import Work


@dataclass(frozen=True)
class Plan:
    """What is known about the conditions before any of them runs.

    Attributes:
        accelerator: Type of the device that all of them run on: `cpu`, `cuda`, `mps`, or `xla` for a TPU.
        devices: Number of these devices on this machine; for `cpu`, its cores.
        costs: Tokens through the backbone by condition; a backward pass counts twice.
        works: What each condition computes.
        precision: The Trainer's.
    """

    accelerator: str
    devices: int
    costs: Mapping[Condition, int]
    works: Mapping[Condition, Work] = field(default_factory=dict)
    precision: str = "32-true"


class Workers(Protocol):
    """Runs conditions, several at the same time or one after the other."""

    largest_first: bool
    """Whether conditions start in the order of their cost, or in the order given."""

    def has_room(self) -> bool:
        """Return whether another condition can start now."""

    def start(self, condition: Condition) -> None:
        """Start a condition."""

    def wait(self) -> tuple[Condition, str | None]:
        """Return the next condition that ends, and why it failed or None."""


@dataclass(frozen=True)
class Event:
    """The start or the end of a condition, with the reason if it failed."""

    condition: Condition
    kind: Literal["start", "end"]
    failure: str | None = None


def by_priority(todo: Sequence[Condition], costs: Mapping[Condition, int]) -> list[Condition]:
    """Return the conditions by their own cost plus that of the largest arm that starts from them, the largest first."""

    def priority(condition: Condition) -> int:
        return costs[condition] + max((priority(other) for other in todo if other.begins_from(condition)), default=0)

    return sorted(todo, key=priority, reverse=True)


def followers(condition: Condition, others: Sequence[Condition]) -> list[Condition]:
    """Return those of the others that start from a condition's head, directly or by way of another one."""
    direct = [other for other in others if other.begins_from(condition)]
    return direct + [follower for other in direct for follower in followers(other, others)]


def run_all(todo: Sequence[Condition], costs: Mapping[Condition, int], workers: Workers) -> Iterator[Event]:
    """Run each condition once there is room and the condition that it starts from has ended.

    If that one fails, those that start from it are not run.

    Yields:
        Starts and ends as they happen.
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
        if failure:
            left_out = followers(ended, waiting)
            waiting = [condition for condition in waiting if condition not in left_out]
        yield Event(ended, "end", failure)
