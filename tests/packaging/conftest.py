"""What the packaging tests need: pip, offline, and both wheels."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def pip() -> Callable[..., None]:
    """Run pip in the root folder, without the options that this machine gives it; fail with its message."""
    pytest.importorskip("hatchling", reason="hatchling, of the extra `test`, is not installed")

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="session")
def wheels(pip: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheels of both distributions."""
    folder = tmp_path_factory.mktemp("wheels")
    offline = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps"]
    pip("wheel", *offline, "--wheel-dir", str(folder), "./callbacks", ".")
    return folder
