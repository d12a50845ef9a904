"""SIGTERM: ends a command at once or, in the middle of training, after the batch at hand."""

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
        """Ends the process, or lets the Trainer do so."""
        if self.can_wait and not self.asked:
            self.asked = True
            return
        raise Stopped(128 + number)


sigterm = Sigterm()
"""That of this process."""
