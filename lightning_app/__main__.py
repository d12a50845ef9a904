"""`influence` and `python -m lightning_app`: picks the command, and loads only what that command needs."""

import argparse
import locale
import os
import select
import signal
import sys
from importlib import import_module
from pathlib import Path

from lightning_app import __version__
from lightning_app.errors import printable, user_mistake
from lightning_app.signals import Stopped, sigterm

LIGHTNING_COMMANDS = {
    "fit": "train one condition: a dataset, an arm, a seed",
    "validate": "measure a checkpoint on the eval split; writes metrics and predictions",
    "test": "the same measurement by the Trainer's test loop",
}
OTHER_COMMANDS = {
    "experiment": "run datasets x arms x seeds, and compare them",
    "report": "tables and plots of an experiment's results",
    "predict": "label the rows of a CSV, JSON lines or Parquet file by a run's model",
    "export": "write a run's model into a folder that transformers and peft load",
    "completion": "print the script by which a shell completes all this",
}
RESUMES = {
    "experiment": "Run the same command to resume.",
    "fit": "Run the same command with --ckpt_path=RUN/checkpoints/last.ckpt, if it is there, to resume.",
}
"""What to do after a signal; other commands keep nothing and start again."""
COMMANDS = dict.fromkeys(LIGHTNING_COMMANDS, "lightning_app.run.cli") | {
    "experiment": "lightning_app.grid.experiment",
    "report": "lightning_app.report",
    "predict": "lightning_app.deploy.predict",
    "export": "lightning_app.deploy.export",
    "completion": "lightning_app.completion",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the outer parser: it knows the commands, each command's own parser knows its options."""
    parser = argparse.ArgumentParser(
        prog="influence",
        description="Does removing the weights that one gradient calls detrimental make a text classifier better?",
        epilog="Options of a command: influence COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in (LIGHTNING_COMMANDS | OTHER_COMMANDS).items():
        commands.add_parser(name, help=help_text, add_help=False)
    return parser


def _run(command: str, argv: list[str]) -> int:
    """Run a command of its module; an experiment ends with its report, which the grid itself does not know."""
    module = import_module(COMMANDS[command])
    if command == "experiment":
        return module.main(argv[1:], _report)
    return module.main(argv if command in LIGHTNING_COMMANDS else argv[1:])


def _report(folder: Path) -> str:
    from lightning_app.report import write_report  # loads the plotting library, once there is something to plot

    return write_report(folder)


def ensure_utf8() -> None:
    """Start this process again in UTF-8 mode if the locale has another encoding.

    jsonargparse reads and saves configurations in the encoding of the locale.
    """
    if not sys.flags.utf8_mode and locale.getencoding().lower() not in ("utf-8", "utf8"):
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "lightning_app", *sys.argv[1:]])


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 if it did what was asked, 1 if a condition failed, 2 if it was asked for something that cannot be done, and
        128 plus the number of the signal that stopped it: 130 for Ctrl-C, 143 for SIGTERM, 141 where its output is
        read no further.
    """
    if argv is None:
        ensure_utf8()
        argv = sys.argv[1:]
    command = build_parser().parse_known_args(argv[:1])[0].command
    sigterm.can_wait = sigterm.asked = False
    before = signal.signal(signal.SIGTERM, sigterm)
    try:
        return _run(command, argv)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and (closed := _closed_outputs()):
            for descriptor in closed:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            return 128 + 13  # SIGPIPE, which Windows does not have
        mistake = user_mistake(error, command)
        if mistake is None:
            raise
        print(f"influence {command}: error: {printable(str(mistake))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning ends a fit that Ctrl-C interrupts by an exit status of 1
        interrupted = isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
        if not (interrupted or sigterm.asked or isinstance(stop, Stopped)):
            raise
        number = signal.SIGINT if interrupted else signal.SIGTERM
        resume = RESUMES.get(command, "Run the same command to start again.")
        print(
            f"influence {command}: stopped by {number.name}; nothing that was complete is lost. {resume}",
            file=sys.stderr,
        )
        return 128 + number
    finally:
        signal.signal(signal.SIGTERM, before)


def _closed_outputs() -> list[int]:
    """Return standard output and error, if whoever read them has ended, as `head` does: poll reports that of a pipe."""
    if sys.platform == "win32":
        return [1]  # it has no poll, and no other pipe raises BrokenPipeError there
    watch = select.poll()
    for descriptor in (1, 2):
        watch.register(descriptor, 0)
    return [descriptor for descriptor, _ in watch.poll(0)]


if __name__ == "__main__":
    sys.exit(main())
