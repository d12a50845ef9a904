"""The benchmark that a GPU machine runs, at a size for a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modules import FullFineTuning

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_it_measures_all_work_the_peer_and_the_command_and_projects_the_study(tmp_path):
    words = ["--size", "tiny", "--datasets", "sst2", "--train_rows", "32", "--eval_rows", "64", "--epochs", "2"]
    command = [sys.executable, BENCHMARKS / "gpu.py", *words, "--projected_epochs", "1", "--settings", "gpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    works = {row[1]: row for row in rows if row[0] == "sst2" and len(row) == 10}
    assert list(works) == ["full_ft", "lora", "gradient", "evaluation"]
    for work, row in works.items():
        rate, flops, _, first, seconds, memory = (float(cell.replace(",", "")) for cell in row[2:8])
        assert min(rate, flops, first, seconds, memory) >= 0
        assert rate > 0
        assert bool(row[8]) == (work != "gradient")
    (projected,) = (row for row in rows if row[0] == "sst2" and len(row) == 6)
    assert sum(map(float, projected[1:5])) == pytest.approx(float(projected[5]), abs=0.21)
    assert "influence experiment --datasets sst2: " in done.stdout


def test_flops_are_those_that_torch_counts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from generated import make_model
    from gpu import forward_flops

    module = FullFineTuning(backbone=make_model(tmp_path, "tiny"), num_labels=2)
    ids = torch.ones(3, 20, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        module.encode(ids, ids)
    counts = counter.get_flop_counts()["Global"]
    products = sum(flops for operator, flops in counts.items() if "attention" not in str(operator))
    attention = 2 * 64 * 2 * 3 * 20**2  # half of what a kernel that is not causal would need
    assert forward_flops([20] * 3, module) == products + attention
