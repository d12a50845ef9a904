"""How a command ends that did not do what was asked: by a signal, or because nobody reads what it prints."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lightning_app import __main__
from lightning_app.__main__ import COMMANDS, main
from lightning_app.signals import Stopped


def run(monkeypatch, command: str, function) -> int:
    """Run a command that does no more than call a function."""
    monkeypatch.setattr(__main__, "import_module", lambda name: SimpleNamespace(main=lambda *_: function()))
    return main([command])


def raise_(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("error", "number"), [(KeyboardInterrupt(), signal.SIGINT), (Stopped(143), signal.SIGTERM)])
def test_a_command_that_is_stopped_says_what_is_left_and_how_it_resumes(error, number, command, monkeypatch, capsys):
    assert run(monkeypatch, command, lambda: raise_(error)) == 128 + number
    told = capsys.readouterr().err
    assert told.startswith(f"influence {command}: stopped by {number.name}; nothing that was complete is lost. ")
    end = {
        "experiment": "Run the same command to resume.\n",
        "fit": "Run the same command with --ckpt_path=RUN/checkpoints/last.ckpt, if it is there, to resume.\n",
    }
    assert told.endswith(end.get(command, "Run the same command to start again.\n"))


def test_a_broken_pipe_that_is_not_of_the_terminal_is_an_error(monkeypatch):
    with pytest.raises(BrokenPipeError):
        run(monkeypatch, "report", lambda: raise_(BrokenPipeError(32, "Broken pipe")))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_whose_output_is_read_no_further_ends_without_a_word(stream):
    script = (
        "import sys; from lightning_app import __main__; from types import SimpleNamespace\n"
        f"def talk(argv):\n  while True: print('word' * 1000, file=sys.{stream}, flush=True)\n"
        "__main__.import_module = lambda name: SimpleNamespace(main=talk)\n"
        "sys.exit(__main__.main(['report']))\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as process:
        streams = {"stdout": process.stdout, "stderr": process.stderr}
        closed = streams.pop(stream)
        closed.read(10)
        closed.close()
        (other,) = streams.values()
        assert other.read() == ""
    assert process.returncode == 141
