"""What goes wrong around an experiment: told in one message, without loss, and mended by the same command."""

import json
import os
import shutil
import subprocess
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from integration_helpers import metrics_of, predictions_of, serving

from datamodules.splits import SPLITS
from lightning_app.grid import experiment
from lightning_app.grid.workers import InProcess

TUNED = "docstrings/influence+all/seed0"
STEP = "modules.classifier:Classifier.optimizer_step"
GOES_ON = "the same command goes on from what is complete."


def at(where: str, act: str, of: str = "", call: int = 1, times: int = 1) -> dict[str, Any]:
    return {"where": where, "act": act, "of": of, "call": call, "times": times}


NO_REPORT = at("lightning_app.report:write_report", "leave out")
NO_PAUSE = at("time:sleep", "leave out", times=10**9)
"""Clients of the hub pause between their attempts."""


@pytest.fixture(scope="module")
def words(tiny_qwen: str) -> list[str]:
    """Return an experiment of a second: the baseline, influence+all, lora."""
    grid = ["--datasets", "docstrings", "--backbone", tiny_qwen, "--arms", "baseline", "influence+all", "lora"]
    sizes = [f"data.{split}_size=48" for split in SPLITS]
    sets = ["--set", *sizes, "data.cache_dir=cache", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    return ["experiment", *grid, "--name", "study", *sets]


def results_of(folder: Path) -> dict[str, Any]:
    """Return what each condition measured and predicted."""
    runs = [path.parent for path in folder.rglob("metrics.json")]
    return {run.parent.name: (metrics_of(run), predictions_of(run)) for run in runs}


@pytest.fixture(scope="module")
def whole(forks, words, tmp_path_factory) -> dict[str, Any]:
    """Return the results of an experiment that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    done = forks.run(*words, cwd=folder, faults=[NO_REPORT])
    assert done.returncode == 0, done.stderr
    return results_of(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 4 MB at `outputs`."""
    (tmp_path / "outputs").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path / "outputs")]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path / "outputs"
    subprocess.run(["umount", str(tmp_path / "outputs")], check=True)


@pytest.mark.parametrize(
    ("moment", "file"),
    [
        (at("torch:save", "fill disk", f"{TUNED}/checkpoints/.last", call=2), "checkpoints/last.ckpt"),
        (at("influence_masking.masks.mask:Mask.save", "fill disk"), "mask.safetensors"),
        (at("pathlib:Path.write_text", "fill disk", f"{TUNED}/.metrics"), "metrics.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_disk_that_fills_up_leaves_what_was_whole(moment, file, small_disk, forks, words, whole, tmp_path):
    failed = forks.run(*words, cwd=tmp_path, faults=[moment, NO_REPORT])
    assert failed.returncode == 1
    told = failed.stderr.splitlines()
    assert [line.partition(": [")[0] for line in told] == [
        "failed: docstrings/influence+all/seed0",
        "failed: docstrings/lora/seed0",
    ]
    assert "[Errno 28] No space left on device" in told[0]
    assert f"{TUNED}/{file}'. Make room; {GOES_ON}" in told[0]
    assert results_of(tmp_path) == {"baseline": whole["baseline"]}
    assert not list(tmp_path.rglob("*.tmp"))

    (small_disk / "filler").unlink()
    again = forks.run(*words, cwd=tmp_path, faults=[NO_REPORT])
    assert again.returncode == 0, again.stderr
    assert "resuming from its last checkpoint" in again.stdout
    assert results_of(tmp_path) == whole


def test_a_folder_that_turns_read_only_keeps_its_results(small_disk, forks, words, whole, tmp_path):
    begun = forks.run(*words, "--arms", "baseline", cwd=tmp_path, faults=[NO_REPORT])
    assert begun.returncode == 0, begun.stderr
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = forks.run(*words, cwd=tmp_path)
    assert refused.returncode == 2
    (told,) = refused.stderr.splitlines()
    assert told.startswith("influence experiment: error: [Errno 30] Read-only file system: 'outputs/study")
    assert told.endswith(f"Make it writable, or choose another folder by --outputs; {GOES_ON}")
    assert results_of(tmp_path) == {"baseline": whole["baseline"]}
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert forks.run(*words, cwd=tmp_path, faults=[NO_REPORT]).returncode == 0
    assert results_of(tmp_path) == whole


PLACES = {"nowhere": "/proc/out", "a file": "taken", "a read-only disk": "outputs"}
WRITERS = {
    "experiment": ("--outputs={}", "or choose another folder by --outputs; the same command goes on"),
    "fit": ("--outputs={}", "or choose another folder by --outputs."),
    "predict": ("--output={}/labelled.csv", "or choose another file by --output."),
    "export": ("--out={}/exported", "or choose another folder by --out."),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", WRITERS)
def test_what_cannot_be_written_is_told_before_any_work_with_advice_for_the_command(
    command, place, small_disk, forks, words, study, condition_words, tmp_path
):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    (tmp_path / "taken").write_text("")
    (tmp_path / "table.csv").write_text("text\nreturn the sum\n")
    checkpoint = f"--ckpt={study / 'docstrings' / 'lora' / 'seed0' / 'checkpoints' / 'best.ckpt'}"
    options = {
        "experiment": words[1:],
        "fit": condition_words("baseline", "mine"),
        "predict": [checkpoint, "--input=table.csv"],
        "export": [checkpoint],
    }
    option, advice = WRITERS[command]
    refused = forks.run(command, *options[command], option.format(PLACES[place]), cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    told = refused.stderr.splitlines()[-1]
    assert told.startswith(f"influence {command}: error: [Errno ")
    assert PLACES[place] in told
    assert f"Make it writable, {advice}" in told
    assert (tmp_path / "taken").read_text() == ""


@pytest.mark.parametrize(("option", "value"), [("datasets", "docstrings"), ("arms", "lora"), ("seeds", "0")])
def test_a_value_that_is_given_twice_is_refused(option, value, forks, words, tmp_path):
    refused = forks.run(*words, f"--{option}", value, value, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"--{option} has {value} more than once. Give each value once." in refused.stderr


@pytest.mark.parametrize(
    ("error", "found"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 GiB."),
        ("allocate 1 PiB", "you tried to allocate 1125899906842624 bytes"),
    ],
)
def test_a_condition_without_memory_is_told_and_the_others_go_on(error, found, forks, words, whole, tmp_path):
    failed = forks.run(*words, cwd=tmp_path, faults=[at(STEP, error, "Influence", call=2), NO_REPORT])
    assert failed.returncode == 1
    (told,) = failed.stderr.splitlines()
    assert told.startswith("failed: docstrings/influence+all/seed0: Out of memory (")
    assert found in told
    assert "Lower data.batch_size" in told
    assert results_of(tmp_path) == {arm: whole[arm] for arm in ("baseline", "lora")}
    if error == "OutOfMemoryError":
        assert forks.run(*words, cwd=tmp_path, faults=[NO_REPORT]).returncode == 0
        assert results_of(tmp_path) == whole


def test_what_a_condition_without_memory_held_is_free_for_the_next(monkeypatch, tmp_path):
    """A Tensor's own weak reference tells whether it lives."""
    held: list[weakref.ref] = []
    free: list[bool] = []

    def without_memory(condition, caches, verbose):
        free.extend(reference() is None for reference in held)
        weights = torch.zeros(10)
        held.append(weakref.ref(weights))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("lightning_app.grid.condition.run_condition", without_memory)
    options = experiment.parse_options(["--outputs", str(tmp_path), "--datasets", "sst2", "yelp", "--arms", "baseline"])
    conditions = experiment.build_conditions(options, tmp_path / "study")
    assert len(experiment.run_conditions(conditions, conditions, {}, InProcess())) == 2
    assert free == [True]


@contextmanager
def waiting(forks, words: list[str], fault: dict[str, Any], cwd: Path) -> Iterator[Callable[[], Any]]:
    """Yield a function that lets a run continue which waits at a fault of act `wait`, and returns it when it ends."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(forks.run, *words, cwd=cwd, faults=[fault, NO_REPORT])
        try:
            while not (cwd / "waiting").exists() and not run.done():
                sleep(0.01)

            def finish() -> Any:
                (cwd / "go").touch()
                return run.result()

            yield finish
        finally:
            (cwd / "go").touch()


def test_a_second_experiment_in_a_folder_is_refused_and_the_first_is_unharmed(forks, words, whole, tmp_path):
    with waiting(forks, words, at(STEP, "wait", "Influence", call=2), tmp_path) as finish:
        second = forks.run(*words, cwd=tmp_path)
        assert second.returncode == 2
        assert second.stderr == (
            "influence experiment: error: Another experiment is running in outputs/study. Wait for it, or give this "
            "one a --name.\n"
        )
        first = finish()
    assert first.returncode == 0, first.stderr
    assert results_of(tmp_path) == whole


def test_a_second_fit_of_a_condition_is_refused_and_the_first_is_unharmed(forks, condition_words, tmp_path):
    words = ["fit", *condition_words("baseline", "twice")]
    run = tmp_path / "outputs" / "twice" / "docstrings" / "baseline" / "seed0"
    with waiting(forks, words, at(STEP, "wait", "Baseline", call=2), tmp_path) as finish:
        before = (run / "config.yaml").read_text()
        second = forks.run(*words, "--trainer.max_epochs=1", cwd=tmp_path)
        assert second.returncode == 2
        assert second.stderr.splitlines()[-1] == (
            f"influence fit: error: Another fit is running in {run.relative_to(tmp_path)}. Wait for it, or give this "
            "one an --experiment of its own."
        )
        first = finish()
    assert first.returncode == 0, first.stderr
    assert (run / "config.yaml").read_text() == before
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("file", ["splits", "tokens"])
def test_two_processes_may_write_a_cache_at_once(file, forks, words, whole, tmp_path):
    words = [*words, "--arms", "baseline"]
    with waiting(forks, words, at("pathlib:Path.replace", "wait", f"cache/{file}/"), tmp_path) as finish:
        second = forks.run(*words, "--name", "second", cwd=tmp_path, faults=[NO_REPORT])
        assert second.returncode == 0, second.stderr
        assert results_of(tmp_path / "outputs" / "second") == {"baseline": whole["baseline"]}
        first = finish()
    assert first.returncode == 0, first.stderr
    assert results_of(tmp_path / "outputs" / "study") == {"baseline": whole["baseline"]}
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == 3  # with the source


@pytest.fixture(scope="module")
def hub_words() -> list[str]:
    """Return a baseline whose data and model come from the hub."""
    sizes = [f"data.{split}_size=48" for split in SPLITS]
    grid = ["--datasets", "sst2", "--arms", "baseline", "--name", "study"]
    return ["experiment", *grid, "--set", *sizes, "trainer.max_epochs=1", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def from_hub(hub_roots, forks, hub_words, tmp_path_factory) -> dict[str, Any]:
    """Return the results of a run with a hub that is well."""
    folder = tmp_path_factory.mktemp("hub-is-well")
    with serving(*hub_roots, *forks.port):
        done = forks.run(*hub_words, cwd=folder, faults=[NO_REPORT])
    assert done.returncode == 0, done.stderr
    return results_of(folder)


def test_a_hub_that_recovers_is_waited_for(hub_roots, forks, hub_words, from_hub, tmp_path):
    shutil.rmtree(forks.home)
    cut, log = ["--truncate", "model.safetensors", "--truncate-times", "2"], tmp_path / "log"
    with serving(*hub_roots, *forks.port, "--fail-after", "26", "--fail-for", "3", *cut, "--log", str(log)):
        done = forks.run(*hub_words, cwd=tmp_path, faults=[NO_PAUSE, NO_REPORT])
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(answer["status"] == 503 for answer in answers) == 3
    weights = [a for a in answers if a["method"] == "GET" and a["path"].endswith("model.safetensors")]
    assert len(weights) == 3
    assert results_of(tmp_path) == from_hub


HTTP_GET = "huggingface_hub.file_download:http_get"
HUB_FAULTS = {
    "503 for the model": (["--fail-after", "3"], [], "The backbone 'Qwen/Qwen2-0.5B' could not be loaded", "503"),
    "503 for the data": (["--fail-after", "14"], [], "The dataset 'stanfordnlp/sst2'", "503"),
    "model cut short": (["--truncate", "model.safetensors"], [], "The backbone 'Qwen/Qwen2-0.5B'", "peer closed"),
    "data cut short": (["--truncate", "train*.parquet"], [], "The dataset 'stanfordnlp/sst2'", "peer closed"),
    "tokenizer cut short": (["--truncate", "tokenizer.json"], [], "The tokenizer 'Qwen/Qwen2-0.5B'", "OSError"),
    "hub that stalls in the model": ([], [at(HTTP_GET, "stall hub", "safetensors")], "The backbone", "timed out"),
    "hub that stalls in the data": ([], [at(HTTP_GET, "stall hub", "parquet")], "The dataset", "timed out"),
}


@pytest.mark.parametrize("fault", HUB_FAULTS)
def test_a_hub_that_does_not_recover_is_told_and_the_same_command_goes_on_with_one_that_is_well(
    fault, hub_roots, forks, hub_words, from_hub, tmp_path
):
    options, faults, asked, found = HUB_FAULTS[fault]
    shutil.rmtree(forks.home)
    with serving(*hub_roots, *forks.port, *options) as (_, pid):
        (tmp_path / "hub").write_text(str(pid))
        refused = forks.run(*hub_words, cwd=tmp_path, faults=[*faults, NO_PAUSE])
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    told = refused.stderr.splitlines()[-1]
    assert told.startswith(f"influence experiment: error: {asked}")
    assert found in told
    assert forks.endpoint in told
    with serving(*hub_roots, *forks.port):
        done = forks.run(*hub_words, cwd=tmp_path, faults=[NO_REPORT])
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path) == from_hub


def test_a_hub_that_answers_503_does_not_matter_where_there_is_a_local_copy(
    hub_roots, forks, hub_words, from_hub, tmp_path
):
    with serving(*hub_roots, *forks.port, "--fail-after", "0"):
        done = forks.run(*hub_words, cwd=tmp_path, faults=[NO_PAUSE, NO_REPORT])
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path) == from_hub
