"""An experiment on a Ray cluster of two nodes of this machine."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration_helpers import ARMS, environment, metrics_of, predictions_of, run_influence, table_of

from lightning_app.errors import UsageError
from lightning_app.grid.cluster import Storage

pytest.importorskip("ray", reason="needs the extra `cluster`")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster whose head runs nothing, and two nodes that run a condition each."""
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
