"""Run by `test_distributed` in two processes: `distributed_worker.py CASE FOLDER`.

`ddp` and `fsdp2` train; `resumed` trains under FSDP2 in two parts; `nothing` and `memory` are runs under
FSDP2 that must be refused.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from models import QUIET, Classifier, Counting, loader
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from influence_masking import InfluenceMasking, MaskingError


class Sharded(Classifier):
    """The same module with its parameters sharded by rows: 33 rows do not divide evenly."""

    def configure_model(self) -> None:
        if not isinstance(self.net[0].weight, DTensor):
            for layer in (self.net[0], self.net[3]):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Hungry(InfluenceMasking):
    """Has memory for four samples at a time."""

    def compute_loss(self, module: LightningModule, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if len(batch[0]) > 4:
            raise torch.OutOfMemoryError("no memory left")
        return super().compute_loss(module, batch, batch_idx)


def trainer_of(case: str, callback: InfluenceMasking, epochs: int, *callbacks: Callback) -> Trainer:
    sharding = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    strategy = DDPStrategy() if case == "ddp" else sharding
    options = {"devices": 2, "strategy": strategy, "max_epochs": epochs, "callbacks": [callback, *callbacks]}
    return Trainer(**QUIET | options | {"enable_checkpointing": bool(callbacks)})


def refused(case: str, folder: Path) -> None:
    """Write the error that each rank met."""
    kind = Hungry if case == "memory" else InfluenceMasking
    trainer = trainer_of(case, kind(0.1, targets=["0", "3"], num_samples=90), epochs=int(case == "memory"))
    try:
        trainer.fit(Sharded(width=33), loader(100, 16))
    except (MaskingError, torch.OutOfMemoryError) as error:
        message = [str(error), *getattr(error, "__notes__", [])]
        (folder / f"{case}-{trainer.global_rank}.json").write_text(json.dumps(message))


def resumed(case: str, folder: Path) -> None:
    """Compare a run in two parts with one in one part, bit for bit."""

    def fit(epochs: int, **options: Any) -> tuple[Counting, dict[str, torch.Tensor], Trainer]:
        module, callback = Sharded(width=33), Counting(0.1, targets=["0", "3"], num_samples=90)
        module.net[2].p = 0.0
        keep = ModelCheckpoint(folder, filename=f"after-{epochs}")
        trainer = trainer_of(case, callback, epochs, keep)
        trainer.fit(module, loader(100, 16), **options)
        return callback, {name: p.full_tensor().detach() for name, p in module.named_parameters()}, trainer

    whole, expected, _ = fit(3)
    fit(2)
    second, found, trainer = fit(3, ckpt_path=folder / "after-2.ckpt")
    record = {
        "computed": second.computed,
        "same_mask": second.mask.digest == whole.mask.digest,
        "same_weights": all(torch.equal(found[name], value) for name, value in expected.items()),
        "held": all(bool((found[name][second.mask.flags(name)] == 0).all()) for name in second.mask.shapes),
    }
    (folder / f"{case}-{trainer.global_rank}.json").write_text(json.dumps(record))


def trained(case: str, folder: Path) -> None:
    """Train under the case's strategy and write the results of each rank."""
    options = json.loads(os.environ["MASKING_OPTIONS"])
    callback = InfluenceMasking(targets=["0", "3"], num_samples=90, **options)
    module = (Sharded if case == "fsdp2" else Classifier)(width=33)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = trainer_of(case, callback, epochs=2)
    trainer.fit(module, loader(100, 16), loader(32, 16))
    after = {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach() for n, p in module.named_parameters()}
    flags = {name: callback.mask.flags(name) for name in callback.mask.shapes}
    record = {
        "digest": callback.mask.digest,
        "num_masked": callback.num_masked,
        "predicted_change": callback.predicted_change,
        "measured_change": callback.measured_change,
        "loss_before": callback.loss_before,
        "held_at_zero": all(bool((after[name][flag] == 0).all()) for name, flag in flags.items()),
        "held": all(torch.equal(after[name][flag], before[name][flag]) for name, flag in flags.items()),
        "trained": sorted(name for name in after if not torch.equal(after[name], before[name])),
    }
    (folder / f"{case}-{trainer.global_rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"ddp": trained, "fsdp2": trained, "resumed": resumed}.get(sys.argv[1], refused)(sys.argv[1], Path(sys.argv[2]))
    # DTensor's cache of shardings keeps gloo's process groups alive, also after they are destroyed. If one of their
    # threads frees a tensor while the interpreter ends, it asks for the interpreter's lock, and the process aborts.
    os._exit(0)
