"""A small study of real files that tests take copies of and damage, and payloads that would leave a trace."""

import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.__main__ import main

CONFIGS = Path(__file__).parents[2] / "configs"


class Payload:
    """An object that creates a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.trace), "w")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return the file that exists only if something was executed."""
    return tmp_path / "executed"


@pytest.fixture(params=["plain pickle", "archive"])
def malicious(request: pytest.FixtureRequest, trace: Path) -> Callable[..., Path]:
    """Write a file that carries a payload, as a pickle or as an archive that `torch.load` reads."""

    def write(path: Path, **content: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if request.param == "archive":
            torch.save({**content, "payload": Payload(trace)}, path)
        else:
            path.write_bytes(pickle.dumps(Payload(trace)))
        return path

    return write


@pytest.fixture(scope="session")
def experiment_words(tiny_qwen: str, data_cache: Path) -> list[str]:
    """Return the words after `influence experiment` that make the study."""
    arms = ["baseline", "influence", "lora", "sweep"]
    grid = ["--datasets", "docstrings", "--arms", *arms, "--backbone", tiny_qwen, "--name", "study", "--quick"]
    return [*grid, "--set", f"data.cache_dir={data_cache}", "trainer.max_epochs=1", "trainer.accelerator=cpu"]


@pytest.fixture(scope="session")
def original(experiment_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`outputs/study-quick` of an experiment with a start, checkpoints, a mask and a sweep."""
    folder = tmp_path_factory.mktemp("trust")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        assert main(["experiment", *experiment_words]) == 0
    return folder / "outputs" / "study-quick"


@pytest.fixture
def study(original: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be damaged."""
    return shutil.copytree(original, tmp_path / "outputs" / "study-quick")


@pytest.fixture
def words(tiny_qwen: str, data_cache: Path, original: Path) -> Callable[..., list[str]]:
    """Return the words after `influence fit` that run one condition as the experiment did, from its start."""

    def make(arm: str, *more: str) -> list[str]:
        files = [CONFIGS / name for name in ("base.yaml", "data/docstrings.yaml", f"arms/{arm}.yaml")]
        sizes = [f"--data.{split}_size=50" for split in ("head_init", "train", "dev", "eval")]
        start = original / "docstrings" / "baseline" / "seed0" / "start.safetensors"
        return [
            *[word for file in files for word in ("-c", str(file))],
            *[f"--model.backbone={tiny_qwen}", f"--data.cache_dir={data_cache}", *sizes, "--experiment=mine"],
            *["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"],
            *([] if arm == "baseline" else [f"--model.start={start}"]),
            *more,
        ]

    return make


@pytest.fixture
def refused(influence: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused: status 2, one message, no traceback; return the message."""

    def run(*command: object) -> str:
        capsys.readouterr()
        assert influence(*command) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert told.count("error: ") == 1
        return told.partition("error: ")[2]

    return run
