"""An experiment on a Ray cluster of two nodes of this machine."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from integration_helpers import ARMS, environment, metrics_of, predictions_of, run_influence, table_of

from lightning_app.errors import UsageError
from lightning_app.grid.cluster import RayCluster, Storage
from lightning_app.grid.condition import Condition

ray_exceptions = pytest.importorskip("ray", reason="needs the extra `cluster`").exceptions


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yield a cluster whose head runs nothing, and two nodes that run a condition each."""
    from ray.cluster_utils import Cluster

    here = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache_of_nodes"))}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1", **here).items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


def assert_equal_results(ours: Path, theirs: Path, arms: tuple[str, ...] = ARMS) -> None:
    for arm in arms:
        here, there = (folder / "docstrings" / arm / "seed0" for folder in (ours, theirs))
        assert metrics_of(here) == metrics_of(there), arm
        assert predictions_of(here) == predictions_of(there), arm


def test_a_node_that_dies_costs_nothing(nodes, study, study_words, tmp_path):
    words = [sys.executable, "-m", "lightning_app", *study_words, "--engine", "ray", "--address", nodes.address]
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        folder = tmp_path / "outputs" / study.name
        while run.poll() is None and len(list(folder.rglob("condition.json"))) < 3:
            time.sleep(0.05)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        printed, errors = run.communicate(timeout=600)
    nodes.add_node(num_cpus=1)
    assert run.returncode == 0, printed + errors
    assert table_of(printed) == table_of((study.parents[1] / "printed.txt").read_text())
    assert_equal_results(folder, study)


def test_results_travel_through_a_storage_that_no_node_sees_as_a_folder(nodes, study, study_words, tmp_path):
    words = [
        *study_words[: study_words.index("--arms")],
        "--arms",
        "influence",
        *study_words[study_words.index("--backbone") :],
    ]
    engine = ["--engine", "ray", "--address", nodes.address, "--storage", (tmp_path / "bucket").as_uri()]
    done = run_influence(*words, *engine, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    here = tmp_path / "outputs" / study.name
    assert_equal_results(here, study, ("baseline", "influence"))
    assert not list(here.rglob("*.ckpt"))
    assert len(list((tmp_path / "bucket").rglob("best.ckpt"))) == 2
    again = run_influence(*words, *engine, "--outputs", "elsewhere", cwd=tmp_path)
    assert "2 conditions, 2 of them complete" in again.stdout


def test_a_file_in_the_storage_cannot_be_written_outside_of_the_folder(tmp_path):
    storage = Storage("memory://bucket")
    storage._files.pipe({"/bucket/study/report.md": b"fine", "/bucket/study/sst2/checkpoints/best.ckpt": b"large"})
    storage.fetch("study", tmp_path / "study")
    storage.fetch("nothing", tmp_path / "nothing")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["report.md"]
    storage._files.store["/bucket/study/../climbed"] = storage._files.store["/bucket/study/report.md"]
    with pytest.raises(UsageError, match=r"has a file '/bucket/study/\.\./climbed', which leads out"):
        storage.fetch("study", tmp_path / "study")
    assert not (tmp_path / "climbed").exists()


class Unreliable:
    """A file system whose calls fail; the rest are those of another."""

    def __init__(self, files: Any, action: str, failures: int, error: Exception) -> None:
        self.files, self.action, self.failures, self.error = files, action, failures, error

    def __getattr__(self, name: str) -> Any:
        def fail_or_call(*args: Any, **kwargs: Any) -> Any:
            if name == self.action and self.failures:
                self.failures -= 1
                raise self.error
            return getattr(self.files, name)(*args, **kwargs)

        return fail_or_call


ERRORS = [BrokenPipeError(32, "Broken pipe"), TimeoutError(), RuntimeError("503 Service Unavailable")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("action", ["find", "get_file", "exists", "makedirs", "put_file"])
def test_a_storage_that_fails_for_a_while_is_asked_again(action, error, monkeypatch, tmp_path):
    pauses: list[float] = []
    monkeypatch.setattr("lightning_app.grid.cluster.sleep", pauses.append)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("{}")
    storage = Storage(f"memory://{action}-{type(error).__name__}")
    storage._files = Unreliable(storage._files, action, 2, error)
    storage.store(tmp_path / "run", "study")
    storage.fetch("study", tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["metrics.json"]
    assert pauses == [1.0, 2.0]


def test_a_storage_that_stays_away_fails_a_condition_and_leaves_what_was_there(monkeypatch, tmp_path):
    """The second file cannot be had, so that the first changes nothing."""
    monkeypatch.setattr("lightning_app.grid.cluster.sleep", lambda seconds: None)
    condition = Condition("sst2", "lora", 0, tmp_path / "study" / "sst2" / "lora" / "seed0", (), ())
    condition.folder.mkdir(parents=True)
    for name in ("metrics.json", "fit.json"):
        (condition.folder / name).write_text("old")
    storage = Storage("memory://away")
    for name in ("fit.json", "metrics.json"):
        storage._files.pipe(f"/away/study/sst2/lora/seed0/{name}", b"new")
    get_file = storage._files.get_file

    def get_all_but_metrics(path: str, local: str) -> None:
        if path.endswith("metrics.json"):
            raise BrokenPipeError(32, "Broken pipe")
        get_file(path, local)

    monkeypatch.setattr(storage._files, "get_file", get_all_but_metrics)
    cluster = object.__new__(RayCluster)
    cluster._ray = SimpleNamespace(
        wait=lambda tasks, num_returns: (tasks[:1], tasks[1:]), get=lambda task: None, exceptions=ray_exceptions
    )
    cluster._storage, cluster._running = storage, {"task": condition}
    ended, failure = cluster.wait()
    assert ended == condition
    assert failure == (
        "--storage memory://away failed 5 times to get_file '/away/study/sst2/lora/seed0/metrics.json' "
        "(BrokenPipeError: [Errno 32] Broken pipe). Run the same command when it answers."
    )
    assert {path.name: path.read_text() for path in condition.folder.iterdir()} == {
        "metrics.json": "old",
        "fit.json": "old",
    }


def test_what_is_complete_here_is_not_replaced_by_what_a_storage_has(tmp_path):
    storage = Storage("memory://other")
    for arm in ("lora", "full_ft"):
        for name in ("fit.json", "metrics.json"):
            storage._files.pipe(f"/other/study/sst2/{arm}/seed0/{name}", b"theirs")
    ours, theirs = (tmp_path / "sst2" / arm / "seed0" for arm in ("lora", "full_ft"))
    ours.mkdir(parents=True)
    for name in ("fit.json", "metrics.json"):
        (ours / name).write_text("ours")
    storage.fetch("study", tmp_path, keep_complete=True)
    assert {path.read_text() for path in ours.iterdir()} == {"ours"}
    assert {path.name: path.read_text() for path in theirs.iterdir()} == {
        "fit.json": "theirs",
        "metrics.json": "theirs",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "ray", "--address", "127.0.0.1:9"], "--address is '127.0.0.1:9', found no Ray cluster there"),
        (["--engine", "ray", "--devices", "2"], "--devices has no meaning with --engine ray"),
        (["--storage", "s3://bucket/study"], "--storage has no meaning with --engine local"),
        (["--engine", "ray", "--storage", "what://is/this"], "--storage is 'what://is/this': Protocol not known: what"),
    ],
)
def test_a_cluster_that_is_not_there_and_options_without_effect_are_told(words, message, tiny_qwen, influence, capsys):
    assert influence("experiment", "--datasets", "docstrings", "--backbone", tiny_qwen, *words) == 2
    assert message in capsys.readouterr().err
