"""A module that optimizes by hand, two steps a batch, clipping its gradients itself.

python examples/manual.py
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from influence_masking import InfluenceMasking


class ManualRegressor(LightningModule):
    """Fit a curve with two optimizers and a schedule; it knows nothing of masks."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.decoder = nn.Linear(64, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        encoder, decoder = self.optimizers()
        encoder.zero_grad()
        decoder.zero_grad()
        loss = nn.functional.mse_loss(self.decoder(self.encoder(x)), y)
        self.manual_backward(loss)
        self.clip_gradients(encoder, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        encoder.step()
        encoder.step()  # momentum moves the weights once more
        decoder.step()
        self.lr_schedulers().step()
        self.log("train_loss", loss, prog_bar=True)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list]:
        encoder = torch.optim.SGD(self.encoder.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
        decoder = torch.optim.AdamW(self.decoder.parameters(), lr=0.01, weight_decay=0.1)
        return [encoder, decoder], [torch.optim.lr_scheduler.ExponentialLR(encoder, 0.99)]


def curve() -> DataLoader:
    """Return 256 points of a sine."""
    x = torch.linspace(-3, 3, 256).unsqueeze(1)
    return DataLoader(TensorDataset(x, x.sin()), batch_size=32, shuffle=True)


def main(**trainer_options: Any) -> tuple[ManualRegressor, InfluenceMasking, Trainer]:
    """Train with the 200 weights of the highest theta * gradient held at zero."""
    seed_everything(0)
    masking = InfluenceMasking(
        count=200, score="taylor", tail="highest", targets=["encoder.2", "decoder"], num_samples=256
    )
    options: dict[str, Any] = {"max_epochs": 10, "accelerator": "cpu", "callbacks": masking}
    trainer = Trainer(**options | trainer_options)
    model = ManualRegressor()
    trainer.fit(model, curve())
    return model, masking, trainer


if __name__ == "__main__":
    main()
