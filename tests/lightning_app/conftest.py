"""Experiments whose results are known: folders as the recorder leaves them, made without a model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from influence_masking import Mask
from lightning_app.results.files import read_json, write_json, write_parquet
from lightning_app.results.predictions import evaluate

ROWS = 1000

ARMS = {
    "baseline": {"role": "baseline", "starts_from": None, "trains": "head", "color": "#000000"},
    "baseline_converged": {"role": "baseline", "starts_from": None, "trains": "head"},
    "influence": {"control": "random_matched", "color": "#D55E00"},
    "influence+head": {"trains": "head", "color": "#D55E00"},
    "lora": {"role": "adapter", "trains": "adapter"},
    "full_ft": {"role": "full", "trains": "all"},
    "sweep": {"role": "sweep"},
}
"""What the configurations of arms say; other arms mask and train nothing."""


def write_condition(folder: Path, dataset: str, arm: str, seed: int, accuracy: float, **more) -> Path:
    """Write `metrics.json` of a complete condition; return its folder."""
    run = folder / dataset / arm / f"seed{seed}"
    metrics = {
        "dataset": dataset,
        "arm": arm,
        "seed": seed,
        "role": "mask",
        "starts_from": "baseline",
        "control": None,
        "color": None,
        "trains": "none",
        **ARMS.get(arm, {}),
        "backbone": "some/backbone",
        "accuracy": accuracy,
        "macro_f1": accuracy - 0.01,
        "nll": 0.5,
        "ece": 0.1,
        "trainable_parameters": 1000,
        "optimisation_steps": 30,
        "epochs": 2,
        "eval_split": "test",
        "early_stop_on": "dev",
        "split_sizes": {"train": 10},
        "seconds": {"fit": 1.0, "evaluate": 2.0},
        "peak_memory_bytes": 2**30,
        "device": "cpu",
        "precision": "32-true",
        "versions": {"torch": "2.13.0"},
        "dataset_fingerprint": "f" * 64,
        "backbone_fingerprint": "b" * 64,
    }
    write_json(run / "metrics.json", metrics | more)
    return agree(run)


def agree(run: Path) -> Path:
    """Make the metrics of a condition those of its predictions, where both are there; return its folder."""
    if (run / "predictions.parquet").is_file() and (run / "metrics.json").is_file():
        metrics, table = read_json(run / "metrics.json"), pq.read_table(run / "predictions.parquet").to_pydict()
        evaluation = evaluate("", "", 0, *(np.array(table[name]) for name in ("row", "label", "logits")))
        write_json(run / "metrics.json", metrics | evaluation.metrics)
    return run


def write_predictions(run: Path, accuracy: float, rows: int = ROWS) -> None:
    """Leave predictions that are right in this share of the rows, the same rows first in every condition."""
    right = (np.arange(rows) + 0.5) / rows < accuracy
    logits = np.where(right[:, None], [2.0, 0.0], [0.0, 2.0])
    columns = {"row": np.arange(rows), "label": np.zeros(rows, int), "logits": list(logits)}
    write_parquet(run / "predictions.parquet", pa.table(columns))
    agree(run)


def write_study(folder: Path, dataset: str = "sst2", seeds: int = 3, **accuracy: float) -> Path:
    """Leave arms with metrics and predictions; seeds differ by a row or two."""
    for arm, share in accuracy.items():
        for seed in range(seeds):
            own = share + seed / ROWS
            write_predictions(write_condition(folder, dataset, arm, seed, own), own)
    return folder


def write_mask(run: Path, flags: Mapping[str, torch.Tensor]) -> str:
    """Leave a mask; return its digest."""
    mask = Mask.from_flags(flags)
    mask.save(run / "mask.safetensors")
    return mask.digest


def write_curves(run: Path, **curves: Mapping[int, float]) -> None:
    """Leave an event file; `val__accuracy` stands for `val/accuracy`."""
    with SummaryWriter(str(run)) as writer:
        for name, points in curves.items():
            for step, value in points.items():
                writer.add_scalar(name.replace("__", "/"), value, step)


def write_sweep(folder: Path, dataset: str, seed: int = 0, points: int = 3, arm: str = "sweep") -> None:
    """Leave a sweep of both tails: fractions 1e-5, 1e-4, ..., predictions of 1,000 times the fraction.

    The two smallest masks change the loss half as much as predicted, larger ones raise it.
    """
    run = write_condition(folder, dataset, arm, seed, 0.77, role="sweep")
    made = [
        {
            "score": "sign_gradient",
            "tail": tail,
            "fraction": 10.0 ** (k - 5),
            "num_masked": 100 * 10**k,
            "predicted_change": sign * 10.0 ** (k - 2),
            "measured_change": (sign if k < 2 else 1) * 0.5 * 10.0 ** (k - 2),
            "accuracy": 0.7 - 0.05 * k,
            "macro_f1": 0.69 - 0.05 * k,
            "nll": 0.5 + 0.1 * k,
            "ece": 0.1,
            "digest": "d",
        }
        for tail, sign in (("lowest", 1), ("highest", -1))
        for k in range(points)
    ]
    baseline = {"loss": 0.46, "accuracy": 0.77, "macro_f1": 0.76, "nll": 0.48, "ece": 0.1}
    write_json(run / "sweep.json", {"split": "dev", "baseline": baseline, "points": made})


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Three baselines, one LoRA, one mask on another dataset; nobody's predictions."""
    folder = tmp_path / "outputs" / "study"
    for seed, accuracy in enumerate((0.70, 0.72, 0.77)):
        write_condition(folder, "sst2", "baseline", seed, accuracy)
    write_condition(folder, "sst2", "lora", 0, 0.8)
    write_condition(folder, "agnews", "influence", 0, 0.6, predicted_change=11.8, measured_change=0.25)
    return folder


@pytest.fixture(scope="session")
def write() -> type:
    """Return the writers of this file."""

    class Write:
        condition, predictions, study = map(staticmethod, (write_condition, write_predictions, write_study))
        mask, curves, sweep = map(staticmethod, (write_mask, write_curves, write_sweep))
        agreement = staticmethod(agree)

    return Write
