"""Run by `test_xla` in a process of its own: a command line on XLA's CPU runtime, which stands in for a TPU.

Prints, after the command's own output, one line of JSON: the programs that XLA had compiled when each condition and
each of its epochs began and at the end, and how often each operator was called that XLA does not have. The environment
variable KILL_AT kills the process where the epoch of that name begins; CHIPS says how many chips there seem to be.
"""

import json
import os
import signal
import sys
from typing import Any

import torch_xla._internal.tpu
import torch_xla.debug.metrics as xla

torch_xla._internal.tpu.num_available_devices = lambda: int(os.environ.get("CHIPS", "1"))

from lightning_app.__main__ import main  # noqa: E402
from lightning_app.grid import condition as conditions  # noqa: E402
from modules.classifier import Classifier  # noqa: E402

COUNTS: list[tuple[str, int]] = []
WHOLE_EPOCH_START, WHOLE_RUN = Classifier.on_train_epoch_start, conditions.run_condition


def count(name: str) -> None:
    """Record how many programs were compiled so far."""
    data = xla.metric_data("CompileTime")
    COUNTS.append((name, data[0] if data else 0))


def on_train_epoch_start(module: Classifier) -> None:
    """Count at the start of an epoch."""
    name = f"{type(module).__name__} {module.current_epoch}"
    count(name)
    if os.environ.get("KILL_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
    WHOLE_EPOCH_START(module)


def run_condition(condition: conditions.Condition, *args: Any) -> None:
    """Count at the start of a condition."""
    count(condition.arm)
    WHOLE_RUN(condition, *args)


if __name__ == "__main__":
    Classifier.on_train_epoch_start = on_train_epoch_start
    conditions.run_condition = run_condition
    status = main(sys.argv[1:])
    count("end")
    fallbacks = {name: xla.counter_value(name) for name in xla.counter_names() if name.startswith("aten::")}
    print(json.dumps({"compilations": COUNTS, "fallbacks": fallbacks}))
    sys.exit(status)
