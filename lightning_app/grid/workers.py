"""Where conditions run on one machine: in this process one after the other, or in several, each with a device."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lightning_app.errors import UsageError, user_mistake
from lightning_app.grid.condition import Condition, try_condition
from lightning_app.grid.schedule import Plan
from lightning_app.signals import held, sigterm

if TYPE_CHECKING:
    from modules import Caches

Result = TypeVar("Result")
SPAWN = get_context("spawn")  # a fork would share the state of CUDA, of XLA and of thread pools

SECONDS_TO_END = 20.0
"""How long a process may finish its batch and save it, before it is killed."""


class InProcess:
    """Runs each condition here when it is waited for; those that follow share gradients and features."""

    largest_first = False

    def __init__(self) -> None:
        from modules import Caches

        self._condition: Condition | None = None
        self._caches = Caches()

    def has_room(self) -> bool:
        """Return whether none is to run."""
        return self._condition is None

    def start(self, condition: Condition) -> None:
        """Let the condition run at the next `wait`."""
        self._condition = condition

    def wait(self) -> tuple[Condition, str | None]:
        """Run it; see `Workers.wait`."""
        assert self._condition is not None
        condition, self._condition = self._condition, None
        return condition, try_condition(condition, self._caches)


class Processes:
    """Keeps several devices of this machine busy, each by a process of its own that sees no other device.

    On CPUs the cores are divided between the processes. What a condition prints goes to its log file. The processes end
    with this one, whatever ends it.

    Args:
        count: How many devices.
        plan: What they are.

    Raises:
        UsageError: If there are not so many.
    """

    largest_first = True

    def __init__(self, count: int, plan: Plan) -> None:
        if not 1 <= count <= plan.devices:
            what = {"cpu": "CPU cores", "cuda": "GPUs", "xla": "TPU chips"}.get(plan.accelerator, "devices")
            raise UsageError(f"--devices is {count}, found {plan.devices} {what}. Give 1 to {plan.devices}.")
        threads = max(1, plan.devices // count) if plan.accelerator == "cpu" else None
        self._slots = [Slot(index, threads) for index in range(count)]

    def __enter__(self) -> Self:
        """Return itself; the processes begin with the first condition."""
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End the processes; one that trains saves its condition first, unless a second signal comes."""
        begun = [slot for slot in self._slots if slot.process]
        for slot in begun:
            slot.connection.close()  # which ends a process that waits for a condition
        end_processes([slot.process for slot in begun if slot.process], at_once=error is not None)

    def has_room(self) -> bool:
        """Return whether a device is idle."""
        return any(slot.condition is None for slot in self._slots)

    def start(self, condition: Condition) -> None:
        """Give the condition to an idle device: rather to one that last ran the same dataset and seed."""
        idle = [slot for slot in self._slots if slot.condition is None]
        for slot in idle:
            slot.begin()  # all of them: what is given nothing yet has loaded its packages when it is
        key = (condition.dataset, condition.seed)
        min(idle, key=lambda slot: slot.last != key).start(condition)

    def wait(self) -> tuple[Condition, str | None]:
        """See `Workers.wait`; a process that died is replaced by a new one."""
        busy = {slot.connection: slot for slot in self._slots if slot.condition}
        return busy[wait(busy)[0]].result()  # type: ignore[index, arg-type]


class Slot:
    """A device and the process that runs conditions on it.

    Args:
        index: Which device.
        threads: Of the CPU; None leaves it to PyTorch.

    Attributes:
        condition: What is running.
        last: Dataset and seed of what ran last: their gradient and features are still in the process.
    """

    def __init__(self, index: int, threads: int | None) -> None:
        self.index, self.threads = index, threads
        self.condition: Condition | None = None
        self.last: tuple[str, int] | None = None
        self.process: SpawnProcess | None = None

    def begin(self) -> None:
        """Make the process, unless there is one: at first, or where it was killed."""
        if self.process is None or not self.process.is_alive():
            self.connection, self.process = begin_process(serve, self.index, self.threads)

    def start(self, condition: Condition) -> None:
        """Send a condition to the process, which has begun."""
        self.condition, self.last = condition, (condition.dataset, condition.seed)
        with suppress(ConnectionError):  # it has just died: `result` says so
            self.connection.send(condition)

    def result(self) -> tuple[Condition, str | None]:
        """Return the condition and why it failed, also where the process died of it."""
        assert self.condition is not None
        assert self.process is not None
        condition, self.condition = self.condition, None
        try:
            return condition, self.connection.recv()
        except (EOFError, ConnectionResetError):  # the latter if it had not even read the condition
            self.process.join()
            code = self.process.exitcode
            how = f"signal {-code}" if code and code < 0 else f"exit status {code}"
            hint = " The system kills a process that takes too much memory." if code == -9 else ""
            return condition, f"its process ended by {how}.{hint} What it printed: {condition.log_file}"


def begin_process(target: Callable[..., None], *args: Any) -> tuple[Connection, SpawnProcess]:
    """Start a process that ends with this one, whatever ends it. It is given a connection, then `args`.

    As a daemon it is ended by the exit handler of `multiprocessing`, which would wait for another one for ever. Signals
    are held meanwhile: they would leave half a process.

    Returns:
        The other end of the connection, and the process.
    """
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_run, args=(target, theirs, *args), daemon=True)
    with held():
        process.start()
    theirs.close()
    return ours, process


def _run(target: Callable[..., None], connection: Connection, *args: Any) -> None:
    current_process().daemon = False  # a daemon may start no processes, as a data loader does
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first ends this one
    signal.signal(signal.SIGTERM, sigterm)  # within training it saves first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        target(connection, *args)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the interpreter, which ends now, would print a traceback


def end_processes(processes: Sequence[SpawnProcess], at_once: bool = False) -> None:
    """Wait until processes have ended; kill them after `SECONDS_TO_END`, or where a signal ends the wait.

    Args:
        processes: They have nothing to do, or are asked to end `at_once`, by SIGTERM.
        at_once: Whether they are.
    """
    try:
        for process in processes if at_once else ():
            process.terminate()
        deadline = monotonic() + SECONDS_TO_END
        for process in processes:
            process.join(max(0.0, deadline - monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()


def serve(connection: Connection, index: int, threads: int | None) -> None:
    """Run, in a process of its own, the conditions that come through a connection until it is closed."""
    see_only(index)
    if threads:
        import torch

        torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS may ask for fewer
    from modules import Caches

    caches = Caches()
    with suppress(EOFError, ConnectionError):  # the experiment has closed its end
        while True:
            connection.send(run_logged(connection.recv(), caches))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # whatever runs here: nobody waits for it, and another experiment may run it soon


def see_only(index: int) -> None:
    """Hide every GPU and TPU chip but one from this process, before CUDA or XLA looks for them."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index] if index < len(gpus) and gpus[0] else str(index)
    os.environ["TPU_VISIBLE_CHIPS"] = str(index)
    os.environ["TPU_CHIPS_PER_PROCESS_BOUNDS"] = os.environ["TPU_PROCESS_BOUNDS"] = "1,1,1"


def run_logged(condition: Condition, caches: "Caches | None" = None) -> str | None:
    """Run a condition; what it prints goes to its log file. Return why it failed."""
    with printing_to(condition.log_file):
        failure = try_condition(condition, caches, verbose=True)
        print(f"failed: {failure}" if failure else "complete")
    return failure


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Append to a file what this process prints, by whatever handler or library."""
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(stream.fileno()) for stream in streams]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("a") as file:
            for stream in streams:
                os.dup2(file.fileno(), stream.fileno())
        yield
    finally:
        for stream, before in zip(streams, kept, strict=True):
            stream.flush()
            os.dup2(before, stream.fileno())
            os.close(before)


def devices_of(trainer: Any) -> tuple[str, int]:
    """Return the kind of device that a Trainer runs on, and how many this machine has; of CPUs, how many cores."""
    kind = trainer.strategy.root_device.type
    return kind, num_cores() if kind == "cpu" else trainer.accelerator.auto_device_count()


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def call_in_process(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function in a process that ends with it: what it loads, and devices it holds, are free afterwards.

    Raises:
        UsageError: If it was asked for something that cannot be done.
    """
    connection, process = begin_process(_answer, function, args)
    try:
        result, mistake = connection.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"The process that checks the inputs ended by exit status {process.exitcode}.") from None
    except BaseException:
        end_processes([process], at_once=True)
        raise
    end_processes([process])
    if mistake:
        raise UsageError(mistake)
    return result


def _answer(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    connection.send(with_mistake(function, *args))


def with_mistake(function: Callable[..., Result], *args: Any) -> tuple[Result | None, str | None]:
    """Call a function; return its result, and the user's mistake where that is why it has none."""
    try:
        return function(*args), None
    except Exception as error:
        mistake = user_mistake(error)
        if mistake is None:
            raise
        return None, str(mistake)
