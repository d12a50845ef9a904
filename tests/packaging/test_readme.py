"""The commands that the README and the configs print are commands that exist."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from lightning_app.__main__ import COMMANDS, OTHER_COMMANDS, main
from lightning_app.grid.experiment import build_conditions, experiment_folder, parse_options
from lightning_app.run.cli import InfluenceCLI

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "configs").rglob("*.yaml"))]


def commands() -> set[str]:
    """Every line of a code block, or of a config's header, that begins with `influence`."""
    lines = [line for path in TEXTS for line in path.read_text().replace("\\\n", " ").splitlines()]
    found = [re.match(r"(?:#\s+)?(influence (?:\w+).*?)(?:\s{2,}# .*|\s+#.*)?$", line) for line in lines]
    return {" ".join(match[1].split()) for match in found if match and match[1].split()[1] in COMMANDS}


class ParseOnly(InfluenceCLI):
    """Parses, and neither builds nor runs anything."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, run=False)

    def instantiate_classes(self) -> None:
        """Build nothing."""


def test_commands_are_found():
    assert len(commands()) > 15


@pytest.mark.parametrize("command", sorted(commands()))
def test_a_printed_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, name, *words = shlex.split(command)
    if name == "experiment":
        options = parse_options(words)
        assert build_conditions(options, experiment_folder(options))
    elif name in OTHER_COMMANDS:
        words = words[: words.index(">")] if ">" in words else words
        assert import_module(COMMANDS[name]).build_parser().parse_args(words)
    else:
        if "--ckpt_path" in words:
            del words[words.index("--ckpt_path") : words.index("--ckpt_path") + 2]
        assert ParseOnly(words).config.model.class_path.startswith("modules.")


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
