"""An experiment on two devices that a signal stops anywhere: it ends, leaves no process, and goes on."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from integration_helpers import ARMS, ForkServer, metrics_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

WORKERS = "lightning_app.grid.workers"
SPAWN = "multiprocessing.util:spawnv_passfds"


def at(where: str, act: str, call: int = 1, of: str = "") -> dict[str, Any]:
    return {"where": where, "act": act, "call": call, "of": of}


COPIED = [
    at("lightning_app.grid.experiment:check_inputs", "replace", of="copied_conditions:check_inputs"),
    at(f"{WORKERS}:serve", "replace", of="copied_conditions:serve"),
    at("lightning_app.report:write_report", "leave out"),
]
PROCESSES = ("of the check", "of the first device", "of the second device", "that replaces a dead one")
OF_A_START = {"is about to start": (SPAWN, "spawn_main", ""), "has half started": (SPAWN, "spawn_main", " after")}
OF_A_START |= {"has started": (f"{WORKERS}:begin_process", "", " after")}
IN_THE_EXPERIMENT = {
    f"the process {which} {moment}": (where, call, of, when)
    for moment, (where, of, when) in OF_A_START.items()
    for call, which in enumerate(PROCESSES, 1)
} | {
    "the process of the check ends": (f"{WORKERS}:end_processes", 1, "", ""),
    "the first condition is sent": (f"{WORKERS}:Slot.start", 1, "", ""),
    "the first condition is waited for": (f"{WORKERS}:Processes.wait", 1, "", ""),
    "the first condition has ended": (f"{WORKERS}:Processes.wait", 1, "", " after"),
    "the second condition is sent": (f"{WORKERS}:Slot.start", 2, "", ""),
    "the third condition is sent": (f"{WORKERS}:Slot.start", 3, "", " after"),
    "the third condition has ended": (f"{WORKERS}:Processes.wait", 3, "", " after"),
    "the last condition has ended": (f"{WORKERS}:Processes.wait", 5, "", " after"),
    "the devices are given back": (f"{WORKERS}:Processes.__exit__", 1, "", ""),
    "the processes end": (f"{WORKERS}:end_processes", 2, "", ""),
    "the report is written": ("lightning_app.report:write_report", 1, "", ""),
}
IN_A_PROCESS = (
    "the inputs are checked",
    "process 0 begins",
    "process 1 begins",
    "baseline begins",
    "baseline is half done",
    "baseline is complete",
    "lora begins",
    "full_ft is half done",
    "a process is about to die",
)
SIGNALS = ("SIGTERM", "SIGINT", "SIGKILL")
MOMENTS = [(moment, name) for moment in (*IN_THE_EXPERIMENT, *IN_A_PROCESS) for name in SIGNALS]
Ends = tuple[CompletedProcess[str], list[str], CompletedProcess[str], Path]


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder:
                found.append((process / "cmdline").read_text())
        except OSError:  # it has just ended
            continue
    return found


def left_in(folder: Path) -> list[str]:
    """Those that are still there after a minute."""
    deadline = time.monotonic() + 60
    while (left := processes_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


@pytest.fixture(scope="module")
def ends(
    request: pytest.FixtureRequest, forks: ForkServer, study: Path, study_words, tmp_path_factory
) -> Iterator[Callable[[str, str], Future[Ends]]]:
    """Of each moment and signal: the run that got it, what is left of it, the run after it, and their folder."""
    words = [*study_words, "--devices", "2"]

    def stop_and_start(moment: str, name: str) -> Ends:
        folder = tmp_path_factory.mktemp("stopped")
        (folder / "study").symlink_to(study)
        faults = list(COPIED)
        if moment in IN_THE_EXPERIMENT:
            where, call, of, when = IN_THE_EXPERIMENT[moment]
            faults.append(at(where, name + when, call, of))
        else:
            (folder / "point").write_text(json.dumps({"moment": moment, "signal": signal.Signals[name]}))
        stopped = forks.run(*words, cwd=folder, faults=faults)
        left = left_in(folder)
        (folder / "died").touch()
        return stopped, left, forks.run(*words, cwd=folder, faults=COPIED), folder

    with ThreadPoolExecutor(2) as pool:
        here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
        asked = [(item.callspec.params["moment"], item.callspec.params["name"]) for item in here]
        runs = {one: pool.submit(stop_and_start, *one) for one in asked}
        yield lambda *one: runs[one]


@pytest.mark.parametrize(("moment", "name"), MOMENTS)
def test_two_devices_are_stopped_as(moment: str, name: str, ends, study):
    stopped, left, again, folder = ends(moment, name).result()
    number = signal.Signals[name]
    assert stopped.returncode == (-number if name == "SIGKILL" else 128 + number), stopped.stdout + stopped.stderr
    assert not left
    if name != "SIGKILL":
        assert stopped.stderr.splitlines()[-1].startswith(f"influence experiment: stopped by {name}; nothing that was")
        assert "Traceback" not in stopped.stderr
    assert again.returncode == 0, again.stderr
    results = folder / "outputs" / study.name / "docstrings"
    for arm in ARMS:
        assert metrics_of(results / arm / "seed0") == metrics_of(study / "docstrings" / arm / "seed0")
