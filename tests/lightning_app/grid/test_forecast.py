import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lightning_app.grid.condition import Condition
from lightning_app.grid.experiment import main
from lightning_app.grid.forecast import Load, Rates, Work, corrections, describe, rates_of, shared_gradients, work_of

TOKENS = {"train": 1000, "head_init": 500, "dev": 400, "eval": 3000}
SIZES = {"train": 50, "head_init": 25, "dev": 20, "eval": 150}
RATES = Rates(flops=1e9, bytes=1e9)


def load(role: str, trains: str, epochs: int = 0, masks: int = 0, trained: int = 0) -> Load:
    return Load(role, trains, epochs, masks, 10_000, 300, 20_000, trained, 64)


def data(train_on: str = "train") -> SimpleNamespace:
    return SimpleNamespace(num_tokens=TOKENS.get, train_on=train_on, split_sizes=SIZES, batch_size=16)


def condition(tmp_path, arm: str, seed: int = 0) -> Condition:
    return Condition("films", arm, seed, tmp_path / "x" / "films" / arm / f"seed{seed}", (), (), starts_from="baseline")


@pytest.mark.parametrize(
    ("arm", "train_on", "work"),
    [
        (load("baseline", "head", epochs=1), "head_init", (3000 + 500 + 400, 0, 0, 0, 2)),
        (load("baseline", "head", epochs=9), "train", (3000 + 1000 + 400, 0, 0, 0, 9 * 4)),
        (load("mask", "none", masks=1), "train", (3000 + 1000, 0, 0, 1000, 0)),
        (load("mask", "all", epochs=2, masks=1), "train", (3000 + 1000 + 800, 0, 2000, 1000, 8)),
        (load("sweep", "none", masks=5), "train", (3000 + 5 * 1400, 0, 0, 1000, 0)),
        (load("adapter", "adapter", epochs=3), "train", (3000 + 1200, 3000, 0, 0, 12)),
        (load("full", "all", epochs=3), "train", (3000 + 1200, 0, 3000, 0, 12)),
    ],
)
def test_a_condition_computes_its_epochs_its_masks_and_its_evaluations(arm, train_on, work):
    found = work_of(arm, data(train_on))
    assert (found.forward, found.adapter, found.gradient, found.masked, found.steps) == work


def test_seconds_are_those_of_the_products_and_of_the_optimizers_bytes():
    work = Work(load("full", "all", trained=20_000), forward=10, adapter=20, gradient=30, masked=40, steps=5)
    products = 2 * 10_000 * (10 + 40 + 90 + 120) / (0.4 * 1e9)
    assert work.seconds(RATES) == pytest.approx(5 + products + 28 * 20_000 * 5 / 1e9)


def test_one_gradient_serves_all_masks_of_a_start(tmp_path):
    mask = work_of(load("mask", "none", masks=1), data())
    tuned = work_of(load("mask", "all", epochs=1, masks=1), data())
    names = [("a", 0), ("b", 0), ("a", 1)]
    works = {condition(tmp_path, arm, seed): mask for arm, seed in names}
    assert [work.masked for work in shared_gradients(works).values()] == [1000, 0, 1000]
    works = {condition(tmp_path, "a"): mask, condition(tmp_path, "b"): tuned}
    assert [(work.gradient, work.masked) for work in shared_gradients(works).values()] == [(0, 1000), (1000, 0)]


def test_what_is_complete_corrects_the_arithmetic(tmp_path, monkeypatch):
    arm = load("full", "all", epochs=4, trained=20_000)
    works = {condition(tmp_path, "full_ft", seed): work_of(arm, data()) for seed in range(3)}
    done, *todo = works
    half = replace(works[done], forward=2300, gradient=2000, steps=8)
    done.folder.mkdir(parents=True)
    record = {"epochs": 2, "seconds": {"fit": 2 * half.seconds(RATES), "evaluate": 1.0 * half.seconds(RATES)}}
    (done.folder / "metrics.json").write_text(json.dumps(record))
    monkeypatch.setattr(Condition, "is_complete", property(lambda self: (self.folder / "metrics.json").exists()))
    assert corrections(works, RATES) == {"all": pytest.approx(3.0)}
    printed = describe(works, todo, RATES, devices=2)
    minutes = 3 * works[done].seconds(RATES) / 60
    assert f"| films | full_ft | 2 | {minutes:.1f} | complete conditions |" in printed
    assert "To run: 2 conditions, at most 0 minutes on 2 devices." in printed
    assert "for an unknown time" in describe(works, todo, None, devices=1)


def test_rates_of_a_device_are_measured():
    rates = rates_of("cpu", "32-true")
    assert rates is not None
    assert 1e8 < rates.flops < 1e16
    assert 1e7 < rates.bytes < 1e14
    assert rates_of("xla", "32-true") is None


def test_memory_of_full_fine_tuning_is_weights_and_adamw_and_what_a_batch_keeps():
    arm = load("full", "all", epochs=1, trained=20_000)
    assert arm.memory_bytes == 600_000_000 + 16 * 20_000 + 6 * 300 * 64
    assert arm.disk_bytes == 4 * 20_000


def test_a_dry_run_checks_and_counts_everything_and_runs_nothing(tiny_qwen, data_cache, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--datasets", "docstrings", "--backbone", tiny_qwen, "--quick", "--arms", "influence", "sweep", "lora"]
    words += ["--set", f"data.cache_dir={data_cache}", "trainer.accelerator=cpu"]
    assert main([*words, "--dry-run"], lambda folder: "") == 0
    printed = capfd.readouterr().out
    for arm in ("baseline", "influence", "sweep", "lora"):
        assert f"| docstrings | {arm} | 1 |" in printed
    assert "To run: 4 conditions, at most" in printed
    assert not list(tmp_path.rglob("condition.json"))


def test_an_import_of_the_grid_does_not_load_torch():
    code = "import sys, lightning_app.grid.experiment; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
