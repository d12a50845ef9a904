"""An image classifier on scikit-learn's digits, trained with a twentieth of its weights frozen.

python examples/digits.py
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from influence_masking import InfluenceMasking


class DigitsClassifier(LightningModule):
    """A small convolutional network that knows nothing of masks."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(16 * 4 * 4, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def digits() -> tuple[DataLoader, DataLoader]:
    """Return 1,400 training images and 397 others, 8 by 8 pixels between 0 and 1."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    rows = TensorDataset(images, torch.tensor(data.target))
    train, held_out = (torch.utils.data.Subset(rows, range(*bounds)) for bounds in ((0, 1400), (1400, len(rows))))
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(held_out, batch_size=256)


def main(**trainer_options: Any) -> tuple[DigitsClassifier, InfluenceMasking, Trainer]:
    """Train with the lowest 5 % by SNIP held at the value that they were drawn with."""
    seed_everything(0)
    masking = InfluenceMasking(
        fraction=0.05, score="snip", targets=r"(features|head)\..*weight", num_samples=1000, action="freeze"
    )
    model, (train, held_out) = DigitsClassifier(), digits()
    options: dict[str, Any] = {"max_epochs": 5, "accelerator": "cpu", "callbacks": masking}
    trainer = Trainer(**options | trainer_options)
    trainer.fit(model, train, held_out)
    return model, masking, trainer


if __name__ == "__main__":
    main()
