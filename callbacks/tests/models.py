"""Small modules and data that the tests share."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from influence_masking import InfluenceMasking

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(LightningModule):
    """Two linear layers with dropout; its training step logs and returns a dictionary."""

    def __init__(self, seed: int = 0, width: int = 32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 4))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.net(inputs), labels)
        self.log("loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        inputs, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(inputs), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class Counting(InfluenceMasking):
    """Count the losses that it computes."""

    computed = 0

    def compute_loss(self, module: LightningModule, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.computed += 1
        return super().compute_loss(module, batch, batch_idx)


def dataset(samples: int = 100) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 16, generator=generator)
    return TensorDataset(inputs, torch.randint(0, 4, (samples,), generator=generator))


def loader(samples: int = 100, batch_size: int = 16, **kwargs: Any) -> DataLoader:
    return DataLoader(dataset(samples), batch_size=batch_size, **kwargs)


def quiet_trainer(*callbacks: Any, **kwargs: Any) -> Trainer:
    return Trainer(**QUIET | {"max_epochs": 2, "callbacks": list(callbacks)} | kwargs)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def quadratic(theta: Tensor) -> nn.Module:
    """Return a module whose parameter `weight` is given; its loss in the tests is made by hand."""
    module = nn.Module()
    module.weight = nn.Parameter(theta)
    return module
