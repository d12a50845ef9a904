"""Run by `test_xla` in a process of its own: trains on XLA's CPU runtime, which stands in for a TPU."""

import sys

import torch
import torch_xla._internal.tpu
import torch_xla.debug.metrics as metrics
from lightning.pytorch import Trainer
from models import QUIET, Classifier, loader, quiet_trainer, weights_of
from torch import nn

from influence_masking import InfluenceMasking


class Tied(Classifier):
    """Weights tied across layers: the move to XLA unties them unless they are tied again."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
        self.net[2].weight = self.net[0].weight

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        self.hooks = sum(len(p._post_accumulate_grad_hooks or {}) for p in self.parameters())

    def on_train_end(self) -> None:
        # now, because Lightning's move back to the CPU unties the weights
        self.after = {name: p.detach().cpu() for name, p in self.named_parameters()}


def main(action: str) -> None:
    """Compare a run on XLA with the mask made on the CPU."""
    torch_xla._internal.tpu.num_available_devices = lambda: 1
    module = Tied()
    before = weights_of(module)
    callback = InfluenceMasking(0.1, targets=["0", "3"], num_samples=90, action=action)
    trainer = Trainer(**QUIET | {"accelerator": "tpu", "max_epochs": 3, "callbacks": callback})
    trainer.fit(module, loader(96))
    assert type(trainer.strategy).__name__ == "SingleDeviceXLAStrategy"
    assert module.hooks == 2, module.hooks
    # after XLA: autograd makes its device threads at the first backward pass, for the devices known by then
    alone = InfluenceMasking(0.1, targets=["0", "3"], num_samples=90, action=action)
    quiet_trainer(alone, max_epochs=0).fit(Tied(), loader(96))
    assert callback.mask.digest == alone.mask.digest
    assert abs(callback.measured_change - alone.measured_change) < 1e-5
    assert list(module.after) == list(before)
    for name, after in module.after.items():
        assert not torch.equal(after, before[name]), name
        if name in callback.mask.shapes:
            flags = callback.mask.flags(name)
            assert torch.equal(after[flags], before[name][flags] * (action != "zero")), name
    assert not [name for name in metrics.counter_names() if name.startswith("aten::") and "local_scalar" not in name]
    print("all held", metrics.metric_data("CompileTime")[0], "compilations")


if __name__ == "__main__":
    main(sys.argv[1])
