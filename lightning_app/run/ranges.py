"""Ranges of the options of the Trainer and of early stopping.

Lightning checks some after the backbone has been loaded, in words that do not name the option as it is typed, and
takes others as they are: early stopping on a metric that does not exist ends a fit after its first epoch.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from lightning_app.errors import UsageError
from lightning_app.messages import nearest
from lightning_app.results.metrics import METRICS

TIME = re.compile(r"\d+:\d{1,2}:\d{1,2}:\d{1,2}")


@dataclass(frozen=True)
class Range:
    """The values that an option may have.

    Attributes:
        wanted: The values, in words.
        holds: Whether a value is one of them.
        names: The values, if they are names.
    """

    wanted: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def refusal(self, key: str, value: object) -> str:
        """Say what is wrong with a value, and which name is meant."""
        near = nearest(str(value), self.names)
        return f"{key} is {value!r}, but must be {self.wanted}.{f' Did you mean {near}?' if near else ''}"


def at_least(least: float, also: str = "") -> Range:
    """Numbers from `least`, which are finite."""
    return Range(f"{least} or more{also}", lambda value: least <= value < inf)


def one_of(*names: str) -> Range:
    """Names; an object, which a class path makes, is not one of them and passes."""
    return Range(f"one of {', '.join(names)}", lambda value: not isinstance(value, str) or value in names, names)


def _is_share(value: Any) -> bool:
    return value >= 0 if isinstance(value, int) else 0 <= value <= 1


def _is_interval(value: Any) -> bool:
    if isinstance(value, str):
        return TIME.fullmatch(value) is not None
    return not isinstance(value, int | float) or (value >= 1 if isinstance(value, int) else 0 < value <= 1)


def _are_devices(value: Any) -> bool:
    if isinstance(value, str):
        return value == "auto" or (re.fullmatch(r"-1|\d+(,\d+)*,?", value) is not None and value != "0")
    return bool(value) and min(value) >= 0 if isinstance(value, list) else value == -1 or value >= 1


SHARE = Range("a number of batches, 0 or more, or a share of them with a point, from 0.0 to 1.0", _is_share)

RANGES = {
    "trainer.accelerator": one_of("auto", "gpu", *AcceleratorRegistry.available_accelerators()),
    "trainer.strategy": one_of("auto", *StrategyRegistry.available_strategies()),
    "trainer.devices": Range("a number from 1, -1 for all, a list of numbers from 0, or auto", _are_devices),
    "trainer.num_nodes": at_least(1),
    "trainer.fast_dev_run": at_least(0),
    "trainer.max_epochs": at_least(-1, " (-1: no limit)"),
    "trainer.min_epochs": at_least(0),
    "trainer.max_steps": at_least(-1, " (-1: no limit)"),
    "trainer.min_steps": at_least(0),
    "trainer.max_time": Range(
        "a time as DD:HH:MM:SS", lambda value: not isinstance(value, str) or TIME.fullmatch(value) is not None
    ),
    "trainer.limit_train_batches": SHARE,
    "trainer.limit_val_batches": SHARE,
    "trainer.limit_test_batches": SHARE,
    "trainer.limit_predict_batches": SHARE,
    "trainer.overfit_batches": SHARE,
    "trainer.val_check_interval": Range(
        "a number of batches from 1, a share of an epoch above 0.0, or a time as DD:HH:MM:SS", _is_interval
    ),
    "trainer.check_val_every_n_epoch": at_least(1),
    "trainer.num_sanity_val_steps": at_least(-1, " (-1: all)"),
    "trainer.log_every_n_steps": at_least(0),
    "trainer.accumulate_grad_batches": at_least(1),
    "trainer.gradient_clip_val": at_least(0),
    "trainer.gradient_clip_algorithm": one_of("norm", "value"),
    "trainer.profiler": one_of("simple", "advanced", "pytorch", "xla"),
    "trainer.reload_dataloaders_every_n_epochs": at_least(0),
    "early_stopping.monitor": one_of(*(f"val/{name}" for name in METRICS), "train/loss"),
    "early_stopping.mode": one_of("min", "max"),
    "early_stopping.patience": at_least(0),
    "early_stopping.min_delta": at_least(0),
}


def check_ranges(config: Namespace) -> None:
    """Refuse an option of the Trainer or of early stopping that is out of its range.

    Raises:
        UsageError: If there is one.
    """
    for key, allowed in RANGES.items():
        value = config.get(key)
        if value is not None and not allowed.holds(value):
            raise UsageError(allowed.refusal(key, value))
