"""The script that a shell reads completes what the commands take."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_app.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_influence influence "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    """Return the script for bash, made once: it takes seconds."""
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    path = tmp_path_factory.mktemp("completion") / "influence"
    with path.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("", set(COMMANDS)),
        ("predict --acc", {"--accelerator"}),
        ("predict --accelerator ", {"auto", "cpu", "gpu", "mps", "tpu"}),
        ("fit --trainer.prec", {"--trainer.precision"}),
        ("fit --model modules.L", {"modules.LoRA"}),
        ("fit --model.ra", {"--model.rank"}),
        ("experiment --datasets a", {"agnews"}),
        ("completion b", {"bash"}),
    ],
)
def test_bash_completes(typed, completed, script):
    words = ["bash", "-c", ASK, "bash", str(script), "influence", *typed.split(" ")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == completed


def test_without_the_package_that_writes_scripts_its_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr("lightning_app.completion.find_spec", lambda name: None)
    assert main(["completion", "bash"]) == 2
    assert "pip install -e ./callbacks -e '.[completion]'" in capsys.readouterr().err


def test_the_outer_help_loads_nothing_heavy():
    code = "import sys; from lightning_app.__main__ import build_parser; build_parser().format_help()\n"
    code += "print(sorted({'torch', 'lightning', 'jsonargparse', 'transformers', 'pyarrow'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
