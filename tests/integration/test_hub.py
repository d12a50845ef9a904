"""The true loading code on real data: `load_dataset` and `from_pretrained` against a local hub."""

import json

from integration_helpers import run_influence

DATASETS = {"sst2": 2, "agnews": 4, "dbpedia": 14, "yelp": 5}


def test_all_sixteen_conditions_complete_and_again_offline(hub, tmp_path):
    words = ["experiment", "--datasets", *DATASETS, "--quick", "--set", "trainer.max_epochs=1"]
    done = run_influence(*words, cwd=tmp_path, **hub)
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted((tmp_path / "outputs" / "experiment-Qwen2-0.5B-quick").glob("*/*/seed0/metrics.json"))
    metrics = [json.loads(file.read_text()) for file in files]
    assert {(m["dataset"], m["arm"]) for m in metrics} == {
        (dataset, arm) for dataset in DATASETS for arm in ("baseline", "influence", "lora", "full_ft")
    }
    assert all(m["split_sizes"] == {"head_init": 50, "train": 50, "dev": 50, "eval": 50} for m in metrics)
    assert done.stdout.count("\n| ") == 17  # a heading and sixteen rows

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    offline = hub | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    again = run_influence(*words, "--datasets", "sst2", "--arms", "baseline", cwd=elsewhere, **offline)
    assert again.returncode == 0, again.stderr
    found = next(elsewhere.rglob("metrics.json"))
    first = next(m for m in metrics if (m["dataset"], m["arm"]) == ("sst2", "baseline"))
    assert json.loads(found.read_text())["accuracy"] == first["accuracy"]


def test_the_study_of_qwen2_is_known_before_it_is_paid_for_and_runs(hub, tmp_path):
    words = ["experiment", "-c", "configs/study-qwen2.yaml", "--quick"]
    known = run_influence(*words, "--dry-run", cwd=tmp_path, **hub)
    assert known.returncode == 0, known.stderr
    assert known.stdout.count("| 3 |") == 4 * 8  # datasets, arms; each with three seeds
    assert "To run: 96 conditions, at most" in known.stdout
    part = ["--datasets", "sst2", "--seeds", "0", "--set", "trainer.max_epochs=1"]
    done = run_influence(*words, *part, cwd=tmp_path, **hub)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.rglob("metrics.json"))) == 8
    left = run_influence(*words, *part, "--arms", "full_ft", "taylor_highest", "--dry-run", cwd=tmp_path, **hub)
    assert "3 conditions, 2 of them complete" in left.stdout
    assert "| sst2 | taylor_highest | 1 |" in left.stdout


def test_an_unreachable_hub_is_told_with_what_was_looked_for_and_how_to_work_offline(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    words = ["experiment", "--datasets", "sst2", "--backbone", "all-MiniLM-L6-v2", "--arms", "baseline"]
    done = run_influence(*words, cwd=tmp_path, **nowhere)
    assert done.returncode == 2
    assert "stanfordnlp/sst2" in done.stderr
    assert "http://127.0.0.1:9" in done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr
    assert "Traceback" not in done.stderr
