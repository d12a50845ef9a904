"""Two processes on the CPU give the mask of one, under DDP and under FSDP2, and hold it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import Classifier, loader, quiet_trainer

from influence_masking import InfluenceMasking

HERE = Path(__file__).parent
CASES = [
    ("ddp", {"fraction": 0.1}),
    ("fsdp2", {"fraction": 0.1}),
    ("fsdp2", {"fraction": 0.3, "score": "random_matched", "scope": "layer", "action": "freeze"}),
    ("ddp", {"count": 50, "tail": "highest", "action": "train_only"}),
]


def run(case: str, options: dict, folder: Path) -> list:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"MASKING_OPTIONS": json.dumps(options), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    worker = str(HERE / "distributed_worker.py")
    result = subprocess.run(
        [*command, worker, case, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("case", "options"), CASES)
def test_two_processes_give_the_mask_and_the_changes_of_one(case: str, options: dict, tmp_path: Path) -> None:
    ranks = run(case, options, tmp_path)
    alone = InfluenceMasking(targets=["0", "3"], num_samples=90, **options)
    torch.set_num_threads(1)
    quiet_trainer(alone).fit(Classifier(width=33), loader(100, 16), loader(32, 16))

    for rank in ranks:
        assert rank["digest"] == alone.mask.digest
        assert rank["num_masked"] == alone.num_masked
        assert rank["loss_before"] == pytest.approx(alone.loss_before, abs=1e-7)
        assert rank["predicted_change"] == pytest.approx(alone.predicted_change, abs=1e-7)
        assert rank["measured_change"] == pytest.approx(alone.measured_change, abs=1e-6)
    for rank in ranks:
        action = options.get("action", "zero")
        assert rank["held_at_zero" if action == "zero" else "held"] == (action != "train_only")
        weights = ["net.0.weight", "net.3.weight"]
        assert rank["trained"] == (
            weights if action == "train_only" else sorted([*weights, "net.0.bias", "net.3.bias"])
        )


def test_a_resumed_run_with_sharded_parameters_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    for found in run("resumed", {}, tmp_path):
        assert found == {"computed": 0, "same_mask": True, "same_weights": True, "held": True}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nothing", "No mask was made: under ModelParallelStrategy"),
        ("memory", "With sharded parameters one process cannot start again alone. Set `micro_batch_size`"),
    ],
)
def test_what_cannot_be_done_with_sharded_parameters_is_an_error_on_every_rank(
    case: str, message: str, tmp_path: Path
) -> None:
    for found in run(case, {}, tmp_path):
        assert message in " ".join(found)
