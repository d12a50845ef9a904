"""An experiment that is killed anywhere goes on, where the same command is given again, to the same results."""

import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from integration_helpers import ForkServer, metrics_of, predictions_of, serving

from datamodules.splits import SPLITS
from influence_masking import Mask

HALFWAY = "SIGKILL halfway"
BASELINE, TUNED = "docstrings/baseline/seed0", "docstrings/influence+all/seed0"
WRITTEN, RENAMED = "pathlib:Path.write_text", "pathlib:Path.replace"
CLASSIFIER, TRAINED = (
    "modules.classifier:Classifier",
    "lightning_app.run.checkpoints:LastCheckpoint.on_train_batch_start",
)


def at(where: str, call: int = 1, of: str = "", act: str = "SIGKILL") -> dict[str, Any]:
    return {"where": where, "call": call, "of": of, "act": act}


MOMENTS = {
    "half of the splits are written": at("datamodules.cache:pq.write_table", of="/splits/", act=HALFWAY),
    "the splits are renamed": at(RENAMED, of="/splits/"),
    "half of the tokens are written": at("datamodules.cache:pq.write_table", of="/tokens/", act=HALFWAY),
    "the baseline begins to train": at(TRAINED, of="Baseline"),
    "half of the baseline's last.ckpt is written": at("torch:save", of=f"{BASELINE}/checkpoints/.last", act=HALFWAY),
    "half of the start is written": at("pathlib:Path.write_bytes", of=f"{BASELINE}/.start", act=HALFWAY),
    "the start is renamed": at(RENAMED, of=f"{BASELINE}/.start"),
    "the baseline is measured": at(
        "lightning_app.run.recorder:Recorder.on_validation_batch_end", call=4, of="Baseline"
    ),
    "half of the baseline's metrics are written": at(WRITTEN, of=f"{BASELINE}/.metrics", act=HALFWAY),
    "the baseline's last.ckpt is deleted": at("pathlib:Path.unlink", of=f"{BASELINE}/checkpoints/last.ckpt"),
    "the gradient is taken": at(f"{CLASSIFIER}.training_step", call=2, of="Influence"),
    "the mask is chosen": at("influence_masking.snapshot:Snapshot.select"),
    "influence+all is in its first epoch": at(TRAINED, call=3, of="Influence"),
    "half of the first best.ckpt is written": at("torch:save", of=f"{TUNED}/checkpoints/.best", act=HALFWAY),
    "half of the first last.ckpt is written": at("torch:save", of=f"{TUNED}/checkpoints/.last", act=HALFWAY),
    "influence+all is in its second epoch": at(TRAINED, call=6, of="Influence"),
    "dev is measured after the second epoch": at(
        "modules.classifier:Classifier.on_validation_epoch_end", 2, "Influence"
    ),
    "half of the second last.ckpt is written": at("torch:save", 2, f"{TUNED}/checkpoints/.last", HALFWAY),
    "the second last.ckpt is renamed": at(RENAMED, call=2, of=f"{TUNED}/checkpoints/.last"),
    "the mask is renamed": at(RENAMED, of=f"{TUNED}/mask.safetensors"),
    "what is known of the training is renamed": at(RENAMED, of=f"{TUNED}/.fit.json"),
    "influence+all is measured": at("lightning_app.run.recorder:Recorder.on_validation_batch_end", 4, "Influence"),
    "half of the predictions are written": at("pyarrow.parquet:write_table", of=f"{TUNED}/.predictions", act=HALFWAY),
    "the metrics are renamed": at(RENAMED, of=f"{TUNED}/.metrics"),
    "half of the report is written": at(WRITTEN, of=".report.html", act=HALFWAY),
}


NO_REPORT = at("lightning_app.report:write_report", act="leave out")
"""It takes more time than all the rest."""


@pytest.fixture(scope="module")
def words(tiny_qwen: str) -> list[str]:
    """Return an experiment of a second: three arms, three batches an epoch, two epochs, dropout."""
    grid = ["--datasets", "docstrings", "--backbone", tiny_qwen, "--name", "study"]
    sizes = [f"data.{split}_size=48" for split in SPLITS]
    return ["experiment", *grid, "--set", *sizes, "trainer.max_epochs=2", "trainer.accelerator=cpu"]


ARMS = ["--arms", "baseline", "influence+all"]
STEP = f"{CLASSIFIER}.optimizer_step"
STOPPED = (
    "influence experiment: stopped by SIGTERM; nothing that was complete is lost. Run the same command to resume.\n"
)
LORA = ["lora:model.dropout=0.5", "--arms", "baseline", "lora"]


def results_of(folder: Path) -> dict[str, Any]:
    """Return what each condition measured and predicted."""
    runs = [path.parent for path in folder.rglob("metrics.json")]
    return {run.parent.name: (metrics_of(run), predictions_of(run)) for run in runs}


@pytest.fixture(scope="module")
def made(forks: ForkServer, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs that nobody stopped are complete."""
    folder = tmp_path_factory.mktemp("whole")
    for arms in (ARMS, LORA):
        done = forks.run(*words, *arms, cwd=folder, faults=[NO_REPORT])
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def whole(made: Path) -> dict[str, Any]:
    """Return the results of those runs."""
    return results_of(made)


Ends = tuple[CompletedProcess[str], CompletedProcess[str], Path]


@pytest.fixture(scope="module")
def ends(
    request: pytest.FixtureRequest, forks: ForkServer, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Future[Ends]]]:
    """Of each moment that is tested: the run that was killed then, the one after it, and their folder."""

    def kill_and_start(moment: str) -> Ends:
        folder, faults = tmp_path_factory.mktemp("killed"), [] if "report" in moment else [NO_REPORT]
        killed = forks.run(*words, *ARMS, cwd=folder, faults=[MOMENTS[moment], *faults])
        return killed, forks.run(*words, *ARMS, cwd=folder, faults=faults), folder

    with ThreadPoolExecutor(2) as pool:
        here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
        moments = [item.callspec.params["moment"] for item in here if "moment" in item.callspec.params]
        runs = {moment: pool.submit(kill_and_start, moment) for moment in moments}
        yield lambda moment: runs[moment]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_experiment_is_killed_as(moment: str, ends, whole):
    killed, again, folder = ends(moment).result()
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert again.returncode == 0, again.stderr
    assert results_of(folder) == {arm: whole[arm] for arm in ("baseline", "influence+all")}


@pytest.mark.parametrize(("arms", "of"), [(ARMS, "Influence"), (LORA, "LoRA")], ids=["influence+all", "lora"])
@pytest.mark.parametrize("batch", [1, 5], ids=["in its first epoch", "in its second epoch"])
def test_sigterm_saves_after_the_batch_and_the_same_command_ends_with_the_same_results(
    batch, arms, of, forks, words, whole, tmp_path
):
    stopped = forks.run(*words, *arms, cwd=tmp_path, faults=[at(STEP, batch, of, "SIGTERM")])
    assert stopped.returncode == 128 + signal.SIGTERM
    assert stopped.stderr.endswith(STOPPED)
    assert "Traceback" not in stopped.stderr
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == batch
    again = forks.run(*words, *arms, cwd=tmp_path, faults=[NO_REPORT])
    assert again.returncode == 0, again.stderr
    assert "resuming from its last checkpoint" in again.stdout
    assert results_of(tmp_path) == {arm: whole[arm] for arm in ("baseline", arms[-1])}


def test_a_second_sigterm_does_not_wait_and_leaves_the_checkpoint_of_the_last_whole_epoch(
    forks, words, whole, tmp_path
):
    twice = [at(STEP, 5, "Influence", "SIGTERM"), at("torch:save", 2, f"{TUNED}/checkpoints/.last", "SIGTERM")]
    stopped = forks.run(*words, *ARMS, cwd=tmp_path, faults=twice)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert stopped.stderr.endswith(STOPPED)
    (last,) = tmp_path.rglob("*last.ckpt*")
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert forks.run(*words, *ARMS, cwd=tmp_path, faults=[NO_REPORT]).returncode == 0
    assert results_of(tmp_path) == {arm: whole[arm] for arm in ("baseline", "influence+all")}


@pytest.mark.parametrize("moment", ["the gradient is taken", "influence+all is measured"])
def test_outside_training_sigterm_ends_an_experiment_at_once(moment: str, forks, words, whole, tmp_path):
    stopped = forks.run(*words, *ARMS, cwd=tmp_path, faults=[MOMENTS[moment] | {"act": "SIGTERM"}])
    assert stopped.returncode == 128 + signal.SIGTERM
    assert stopped.stderr.endswith(STOPPED)
    assert results_of(tmp_path).keys() == {"baseline"}
    assert forks.run(*words, *ARMS, cwd=tmp_path, faults=[NO_REPORT]).returncode == 0
    assert results_of(tmp_path) == {arm: whole[arm] for arm in ("baseline", "influence+all")}


@pytest.mark.parametrize("arm", ["influence+all", "full_ft"])
def test_a_killed_fit_goes_on_from_its_checkpoint_to_the_same_weights(arm, condition_words, forks, made, tmp_path):
    sizes = [f"--data.{split}_size=48" for split in SPLITS]
    start = made / "outputs" / "study" / BASELINE / "start.safetensors"
    words = ["fit", *condition_words(arm, "whole"), *sizes, "--trainer.max_epochs=3", f"--model.start={start}"]
    whole, killed = (tmp_path / "outputs" / name / "docstrings" / arm / "seed0" for name in ("whole", "killed"))
    assert forks.run(*words, cwd=tmp_path).returncode == 0
    words.append("--experiment=killed")
    third_epoch = at("lightning_app.run.checkpoints:LastCheckpoint.on_train_epoch_end", 3)
    assert forks.run(*words, cwd=tmp_path, faults=[third_epoch]).returncode == -signal.SIGKILL
    assert torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    assert forks.run(*words, f"--ckpt_path={killed / 'checkpoints' / 'last.ckpt'}", cwd=tmp_path).returncode == 0

    for file in ("best.ckpt", "last.ckpt"):
        one, other = (torch.load(run / "checkpoints" / file, weights_only=True) for run in (whole, killed))
        assert one["state_dict"].keys() == other["state_dict"].keys()
        for name, tensor in one["state_dict"].items():
            assert torch.equal(tensor, other["state_dict"][name]), name
    mask = Mask.load(killed / "mask.safetensors") if arm == "influence+all" else None
    for name in mask.shapes if mask else []:
        assert torch.count_nonzero(other["state_dict"][name][mask.flags(name)]) == 0
    assert "ckpt_path: null" in (killed / "config.yaml").read_text()


@pytest.mark.parametrize("file", ["parquet", "model.safetensors"])
def test_an_experiment_is_killed_within_a_download(file, hub_roots, forks, tmp_path_factory):
    """The client goes on with the half that is there."""
    sizes = [f"data.{split}_size=48" for split in SPLITS]
    words = ["experiment", "--datasets", "sst2", "--arms", "baseline", "--set", *sizes, "trainer.max_epochs=1"]
    halfway = at("huggingface_hub.file_download:http_get", of=file, act=HALFWAY)
    killed, whole = (tmp_path_factory.mktemp(name) for name in ("killed", "whole"))
    shutil.rmtree(forks.home, ignore_errors=True)
    with serving(*hub_roots, *forks.port):
        assert forks.run(*words, cwd=killed, faults=[halfway]).returncode == -signal.SIGKILL
        (half,) = (path for path in forks.home.rglob("*.incomplete") if path.is_file())
        assert half.stat().st_size > 10_000
        for folder in (killed, whole):
            done = forks.run(*words, cwd=folder, faults=[NO_REPORT])
            assert done.returncode == 0, done.stderr
            shutil.rmtree(forks.home)
    assert results_of(killed).keys() == {"baseline"}
    assert results_of(killed) == results_of(whole)
