"""SIGTERM: ends a command at once or, in the middle of training, after the batch at hand."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(SystemExit):
    """Another process asked this one to end."""


class Sigterm:
    """The handler of SIGTERM. The signal ends the process through every `finally`, whatever is being done.

    While `can_wait`, the first one only notes that it was `asked`: the Trainer, whose own handler is called as well,
    raises `SIGTERMException` after the batch. A second one does not wait.
    """

    def __init__(self) -> None:
        self.can_wait = self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """End the process, or lets the Trainer do so."""
        if self.can_wait and not self.asked:
            self.asked = True
            return
        raise Stopped(128 + number)


sigterm = Sigterm()
"""That of this process."""


@contextmanager
def held() -> Iterator[None]:
    """Keep SIGINT and SIGTERM back until the end of a block, which should be short.

    Processes that begin in it never get SIGINT, so that Ctrl-C cannot reach one before it has a handler.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for kind in before:
            signal.signal(kind, lambda number, frame: came.append(number))
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for kind, handler in before.items():
            signal.signal(kind, handler)
        for number in came:
            signal.raise_signal(number)
