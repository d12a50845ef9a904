"""A process that has imported everything, run nothing and started no thread; each run of `influence` is a fork of it.

A run costs a tenth of a second this way, where an interpreter of its own takes five to import what it needs. Faults are
put into the run alone: at a call of a function, a signal, an error, or half a file.

    python fork_server.py SOCKET          # prints a line when it listens
"""

import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from socketserver import ForkingMixIn, StreamRequestHandler, UnixStreamServer
from typing import Any

import datasets  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.backends.backend_pdf
import matplotlib.backends.backend_svg  # noqa: F401
import peft  # noqa: F401
import torch

from lightning_app.__main__ import COMMANDS, main


class Server(ForkingMixIn, UnixStreamServer):
    """Answers every request from a fork, so that several runs go on at once."""


class Handler(StreamRequestHandler):
    """Reads a run as a line of JSON, runs it in a process of its own, and answers with its exit status."""

    def handle(self) -> None:
        """Serve one run."""
        run = json.loads(self.rfile.readline())
        pid = os.fork()
        if pid == 0:
            _run(**run)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.wfile.write(f"{status}\n".encode())


def _run(words: list[str], cwd: str, out: str, err: str, faults: list[dict[str, Any]]) -> None:
    """Do what `python -m lightning_app` does, in a folder, and end the process."""
    os.chdir(cwd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.modules["__main__"] = import_module("lightning_app.__main__")  # processes that it starts would import this file
    sys.argv[1:] = words
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    for fault in faults:
        inject(**fault)
    status: Any = 1
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def inject(where: str, act: str, call: int = 1, of: str = "", times: int = 1) -> None:
    """Put a fault into a function.

    Args:
        where: The function, as `module:name` or `module:Class.name`.
        act: One of `ACTS`; `replace` puts another function, `of`, in its place, for processes that it starts as well.
        call: The fault comes with this call of those that count.
        of: Those calls count whose arguments have this in their representation.
        times: How many calls the fault lasts.
    """
    module, _, path = where.partition(":")
    owner_path, _, name = path.rpartition(".")
    owner = getattr(import_module(module), owner_path) if owner_path else import_module(module)
    whole, calls = getattr(owner, name), 0
    if act == "replace":
        stand_in, _, function = of.partition(":")
        setattr(owner, name, getattr(import_module(stand_in), function))
        return

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += of in repr((args, kwargs))
        if of in repr((args, kwargs)) and call <= calls < call + times:
            return ACTS[act](whole, *args, **kwargs)
        return whole(*args, **kwargs)

    setattr(owner, name, faulty)


def _send(number: int) -> Callable[..., Any]:
    def act(whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return whole(*args, **kwargs)

    return act


def _send_after(number: int) -> Callable[..., Any]:
    def act(whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        done = whole(*args, **kwargs)
        os.kill(os.getpid(), number)
        return done

    return act


def _raise(error: BaseException) -> Callable[..., Any]:
    def act(whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        raise error

    return act


def _fill_disk(whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Leave no room below `outputs`, which should be a small disk."""
    with contextlib.suppress(OSError), Path("outputs/filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return whole(*args, **kwargs)


def _wait(whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make the file `waiting`, and go on when there is a file `go`."""
    Path("waiting").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return whole(*args, **kwargs)


def _stall(whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stop the process whose number is in the file `hub`: it takes connections, and answers no more."""
    os.kill(int(Path("hub").read_text()), signal.SIGSTOP)
    return whole(*args, **kwargs)


def _kill_halfway(whole: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Leave what a kill in the middle of a write leaves: the first half of the file."""
    whole(*args, **kwargs)
    file = next(arg for arg in args if isinstance(arg, Path) or hasattr(arg, "flush"))
    if not isinstance(file, Path):
        file.flush()
        file = Path(file.name)
    os.truncate(file, file.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


ACTS: dict[str, Callable[..., Any]] = {
    "SIGKILL": _send(signal.SIGKILL),
    "SIGTERM": _send(signal.SIGTERM),
    "SIGINT": _send(signal.SIGINT),
    "SIGKILL after": _send_after(signal.SIGKILL),
    "SIGTERM after": _send_after(signal.SIGTERM),
    "SIGINT after": _send_after(signal.SIGINT),
    "SIGKILL halfway": _kill_halfway,
    "wait": _wait,
    "stall hub": _stall,
    "leave out": lambda whole, *args, **kwargs: "",
    "fill disk": _fill_disk,
    "allocate 1 PiB": lambda whole, *args, **kwargs: torch.empty(2**50, dtype=torch.uint8),
    "OutOfMemoryError": _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
}


if __name__ == "__main__":
    for command in set(COMMANDS.values()):
        import_module(command)
    gc.collect()
    gc.freeze()  # what is imported here need not be looked at, and so copied, in each fork
    with Server(sys.argv[1], Handler) as server:
        print("ready", flush=True)
        server.serve_forever()
