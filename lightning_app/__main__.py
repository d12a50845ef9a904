"""`influence` and `python -m lightning_app`: picks the command, and loads only what that command needs."""

import argparse
import sys
from importlib import import_module

from lightning_app import __version__

COMMANDS = {
    "fit": ("lightning_app.cli", "train one condition: a dataset, an arm, a seed"),
    "validate": ("lightning_app.cli", "measure a checkpoint on the eval split; writes metrics and predictions"),
    "test": ("lightning_app.cli", "the same measurement by the Trainer's test loop"),
    "predict": ("lightning_app.cli", "write the logits of the eval split"),
    "experiment": ("lightning_app.experiment", "run datasets x arms x seeds, and compare them"),
    "report": ("lightning_app.report", "tables and plots of an experiment's results"),
}


def build_parser() -> argparse.ArgumentParser:
    """The outer parser: it knows the commands, each command's own parser knows its options."""
    parser = argparse.ArgumentParser(
        prog="influence",
        description="Does removing the weights that one gradient calls detrimental make a text classifier better?",
        epilog="Options of a command: influence COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, help_text) in COMMANDS.items():
        commands.add_parser(name, help=help_text, add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0 if it did what was asked, 1 if a condition failed, 2 if it was asked for something that cannot be done.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = build_parser().parse_known_args(argv[:1])[0].command
    from lightning_app.errors import UsageError

    known: tuple[type[Exception], ...] = (UsageError,)
    try:
        if command != "report":
            from lightning_app.errors import user_errors

            known = user_errors()
        return import_module(COMMANDS[command][0]).main(argv[1:] if command in ("experiment", "report") else argv)
    except known as error:
        print(f"influence {command}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
