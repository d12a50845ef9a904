"""Several conditions of an experiment at once, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
from integration_helpers import ARMS, environment, metrics_of, predictions_of, run_influence, table_of

from lightning_app.grid.condition import Condition
from lightning_app.grid.schedule import Plan
from lightning_app.grid.workers import Processes, Slot, num_cores

pytestmark = [
    pytest.mark.skipif(num_cores() < 2, reason="needs two CPU cores"),
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]


@pytest.fixture
def words(study_words) -> list[str]:
    return [*study_words, "trainer.log_every_n_steps=1", "--devices", "2"]


def assert_equal_results(folder: Path, study: Path) -> None:
    for arm in ARMS:
        here, there = (experiment / "docstrings" / arm / "seed0" for experiment in (folder, study))
        assert metrics_of(here) == metrics_of(there), arm
        assert predictions_of(here) == predictions_of(there), arm


def children_of(pid: int) -> list[int]:
    """Return the processes that run conditions, not the one with which Python tracks semaphores."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in children if b"spawn_main" in command_of(child)]


def command_of(pid: int) -> bytes:
    """Return the command line of a process; empty if it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def begin(words: list[str], cwd: Path, conditions: int, processes: int = 0) -> subprocess.Popen[str]:
    """Start an experiment, and return when so many of its conditions and processes have begun."""
    command = [sys.executable, "-m", "lightning_app", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen(command, cwd=cwd, env=environment(), text=True, start_new_session=True, **pipes)
    while run.poll() is None and (
        len(list(cwd.rglob("condition.json"))) < conditions or len(children_of(run.pid)) < processes
    ):
        time.sleep(0.02)
    return run


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_two_at_once_give_the_results_of_one_after_the_other_and_a_log_each(study, words, tmp_path):
    done = run_influence(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    folder = tmp_path / "outputs" / study.name
    assert_equal_results(folder, study)
    assert table_of(done.stdout) == table_of((study.parents[1] / "printed.txt").read_text())
    starts = [line for line in done.stdout.splitlines() if line.endswith(": running")]
    assert "baseline" in starts[0]
    assert {"influence+all", "lora", "full_ft"} >= {starts[1].split("/")[2], starts[2].split("/")[2]}
    for arm in ARMS:
        log = (folder / "logs" / f"docstrings-{arm}-seed0.log").read_text()
        assert log.endswith("complete\n")
        assert log.count("Seed set to 0") == 1


def test_a_process_that_dies_costs_its_condition_alone_and_none_outlives_the_experiment(study, words, tmp_path):
    run = begin(words, tmp_path, conditions=2)
    working = children_of(run.pid)
    assert len(working) == 2
    run.kill()
    run.communicate()
    deadline = time.monotonic() + 60
    while any(map(is_alive, working)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, working))

    run = begin(words, tmp_path, conditions=3)
    os.kill(children_of(run.pid)[0], signal.SIGKILL)
    printed, errors = run.communicate(timeout=600)
    assert run.returncode == 1, printed
    assert errors.count("failed: ") == 1
    assert "its process ended by signal 9. The system kills a process that takes too much memory." in errors
    folder = tmp_path / "outputs" / study.name
    assert len(list(folder.rglob("metrics.json"))) == len(ARMS) - 1

    done = run_influence(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_equal_results(folder, study)


@pytest.mark.parametrize(("conditions", "number"), [(0, signal.SIGINT), (3, signal.SIGTERM)])
def test_a_signal_while_processes_begin_or_train_ends_all_and_the_same_command_resumes(
    conditions, number, study, words, tmp_path
):
    """Ctrl-C reaches all processes of a terminal, the first one alone answers."""
    run = begin(words, tmp_path, conditions, processes=2)
    working = children_of(run.pid)
    os.killpg(run.pid, number) if number == signal.SIGINT else run.send_signal(number)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 128 + number
    assert errors == (
        f"influence experiment: stopped by {number.name}; nothing that was complete is lost. Run the same command to "
        "resume.\n"
    )
    assert not any(map(is_alive, working))

    done = run_influence(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert table_of(done.stdout) == table_of((study.parents[1] / "printed.txt").read_text())
    assert_equal_results(tmp_path / "outputs" / study.name, study)


def test_more_devices_than_there_are_are_refused(study_words, tmp_path):
    done = run_influence(*study_words, "--devices", "999", cwd=tmp_path)
    assert done.returncode == 2
    assert f"--devices is 999, found {num_cores()} CPU cores. Give 1 to {num_cores()}." in done.stderr
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_process_that_is_killed_while_it_has_nothing_to_do_is_replaced(tmp_path):
    conditions = [Condition("nodata", arm, 0, tmp_path / "study" / "nodata" / arm / "seed0", (), ()) for arm in "ab"]
    with Processes(1, Plan("cuda", 1, {})) as workers:
        workers.start(conditions[0])
        workers.wait()
        (process,) = active_children()
        process.kill()
        process.join()
        workers.start(conditions[1])
        ended, failure = workers.wait()
    assert ended == conditions[1]
    assert failure is not None
    assert "its process ended" not in failure  # it was run, and failed of having no configuration
    assert "failed: " in conditions[1].log_file.read_text()


def test_a_process_that_dies_before_it_is_given_a_condition_fails_that_condition(tmp_path):
    condition = Condition("nodata", "noarm", 0, tmp_path / "study" / "nodata" / "noarm" / "seed0", (), ())
    slot = Slot(0, None)
    slot.begin()
    assert slot.process
    slot.process.kill()
    slot.process.join()
    slot.start(condition)  # its connection is broken
    ended, failure = slot.result()
    assert ended == condition
    assert failure is not None
    assert failure.startswith("its process ended by signal 9.")
