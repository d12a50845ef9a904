"""`influence completion`: a script with which a shell completes commands, options and their values."""

from importlib import import_module
from importlib.util import find_spec
from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_app.__main__ import COMMANDS, OTHER_COMMANDS
from lightning_app.errors import UsageError
from lightning_app.messages import parse
from lightning_app.run.cli import InfluenceCLI
from lightning_app.run.configs import configs_folder

SHIPPED = {"datasets": "data", "arms": "arms", "accelerator": "accelerator"}
"""Options of `influence experiment` whose values are names of shipped files, and the folders of these files."""

Shell = Literal["bash", "zsh", "tcsh"]


class Commands(InfluenceCLI):
    """The parsers of LightningCLI's commands; no command runs."""

    def __init__(self) -> None:
        super().__init__([])

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Set what LightningCLI reads, without arguments."""
        self.config = Namespace(subcommand=None, seed_everything=False)

    def before_instantiate_classes(self) -> None:
        """Skip the folder of a run."""

    def instantiate_classes(self) -> None:
        """Skip model, data and Trainer."""


def build_parser() -> ArgumentParser:
    """Return the options of `influence completion`."""
    parser = ArgumentParser(
        prog="influence completion",
        description="Prints a script. bash: influence completion bash > ~/.local/share/bash-completion/completions/"
        "influence; zsh: the same into a file _influence in a folder of $fpath.",
        exit_on_error=False,
    )
    parser.add_argument("shell", type=Shell, help="The shell that reads the script.")
    return parser


def all_commands() -> ArgumentParser:
    """One parser with every option of every command; making it takes seconds."""
    parsers: dict[str, ArgumentParser] = {**Commands().command_parsers}
    parsers |= {name: import_module(COMMANDS[name]).build_parser() for name in OTHER_COMMANDS}
    for action in parsers["experiment"]._actions:
        if action.dest in SHIPPED:
            action.choices = sorted(path.stem for path in (configs_folder() / SHIPPED[action.dest]).glob("*.yaml"))
    parser = ArgumentParser(prog="influence")
    commands = parser.add_subcommands()
    for name, command in parsers.items():
        commands.add_subcommand(name, command)
    return parser


def main(argv: list[str]) -> int:
    """Print the script."""
    shell = parse(build_parser(), argv).shell
    if find_spec("shtab") is None:
        raise UsageError(
            "Completion scripts need the package shtab, which is not installed. Install it: "
            "pip install -e ./callbacks -e '.[completion]'"
        )
    print(all_commands().get_completion_script(f"shtab-{shell}"))
    return 0
