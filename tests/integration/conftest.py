"""Runs of the real command line: one small study, made once, that tests look at or repeat."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration_helpers import ARMS, ROOT, SHARED, ForkServer, environment, run_influence, serving

from lightning_app.run.configs import choose_arm

# a shell starts commands in the background with it ignored, and runs would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def study_words(tiny_qwen: str, data_cache: Path) -> list[str]:
    """`influence experiment` on a tiny Qwen2: all arms, 50 samples a split, 2 epochs, no download."""
    grid = ["--datasets", "docstrings", "--arms", *ARMS, "--backbone", tiny_qwen, "--name", "study", "--quick"]
    sets = [f"data.cache_dir={data_cache}", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    return ["experiment", *grid, "--set", *sets, "trainer.precision=32-true"]


@pytest.fixture(scope="session")
def study(study_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the experiment's folder, `outputs/study-quick`, of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("study")
    done = run_influence(*study_words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder / "outputs" / "study-quick"


@pytest.fixture(scope="session")
def hub_roots(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what a local hub serves: real data, and a tiny Qwen2 under its true name."""
    if not (SHARED / "hub" / "serve.py").is_file():
        pytest.skip("the local hub is not there: ../shared/hub/serve.py")
    models = tmp_path_factory.mktemp("hub") / "models"
    maker = [sys.executable, str(SHARED / "hub" / "make_models.py"), "--size", "tiny", str(models)]
    subprocess.run(maker, check=True, capture_output=True)
    return ["--root", str(SHARED / "hub" / "repos"), "--root", str(models)]


@pytest.fixture(scope="session")
def hub(hub_roots: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment for that hub."""
    with serving(*hub_roots) as (endpoint, _):
        yield {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path_factory.mktemp("home"))}


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Provide runs of the command line that cost no imports and take injected faults."""
    folder = tmp_path_factory.mktemp("forks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(folder / "socket")]
    short = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    env = environment(HF_ENDPOINT=endpoint, HF_HOME=str(folder / "home"), OMP_NUM_THREADS="1", **short)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            assert server.stdout.readline() == "ready\n"
            yield ForkServer(folder / "socket", endpoint, folder / "home")
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def condition_words(tiny_qwen: str, data_cache: Path) -> Callable[[str, str], list[str]]:
    """Return the words after `influence fit` that run one condition of the study, under another experiment's name."""

    def words(arm: str, experiment: str) -> list[str]:
        shared = [ROOT / "configs" / name for name in ("base.yaml", "data/docstrings.yaml")]
        sizes = [f"--data.{split}_size=50" for split in ("head_init", "train", "dev", "eval")]
        return [
            *[word for file in (*shared, *choose_arm(arm).files) for word in ("-c", str(file))],
            *[f"--model.backbone={tiny_qwen}", f"--data.cache_dir={data_cache}", *sizes],
            *[f"--experiment={experiment}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"],
            "--trainer.precision=32-true",
            "--trainer.enable_progress_bar=false",
        ]

    return words
