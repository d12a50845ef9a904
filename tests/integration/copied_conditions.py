"""Conditions that take a moment: results are copied from a study, and signals are sent where a test asks for one.

A run in a folder that has the link `study` takes `check_inputs` and `serve` from here. The file `point` names a moment
in one of its processes, and the signal that the experiment receives then.
"""

import json
import os
import shutil
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

from lightning_app.grid import workers
from lightning_app.grid.condition import CONDITION_FILE, Condition
from lightning_app.grid.schedule import Plan
from lightning_app.results.files import METRICS_FILE, write_json


def reach(moment: str) -> None:
    """Send the signal if it is to be sent now."""
    point = json.loads(Path("point").read_text()) if Path("point").exists() else {}
    if point.get("moment") == moment:
        Path("point").unlink()
        os.kill(os.getppid(), point["signal"])


def check_inputs(conditions: list[Condition]) -> Plan:
    """Find nothing wrong, and two devices that need no package."""
    reach("the inputs are checked")
    time.sleep(0.05)
    return Plan("cuda", 2, dict.fromkeys(conditions, 1))


def serve(connection: Connection, index: int, threads: int | None) -> None:
    """Do what a process of an experiment does, with these conditions."""
    workers.try_condition = copy
    sys.modules["modules"] = SimpleNamespace(Caches=object)  # the real ones take seconds to import
    reach(f"process {index} begins")
    workers.serve(connection, index, threads)


def copy(condition: Condition, caches: object, verbose: bool) -> None:
    """Complete a condition; the process of the first `influence` dies."""
    reach(f"{condition.arm} begins")
    if condition.folder.exists():
        shutil.rmtree(condition.folder)
    write_json(condition.folder / CONDITION_FILE, condition.record())
    time.sleep(0.05)
    if condition.arm == "influence" and not Path("died").exists():
        Path("died").touch()
        reach("a process is about to die")
        os.kill(os.getpid(), signal.SIGKILL)
    reach(f"{condition.arm} is half done")
    source = Path("study") / condition.folder.relative_to(condition.experiment)
    shutil.copy(source / "predictions.parquet", condition.folder)
    (condition.folder / METRICS_FILE).symlink_to((source / METRICS_FILE).resolve())
    reach(f"{condition.arm} is complete")
