"""A Hugging Face encoder in a user's own LightningModule, whose training step logs and takes a dictionary.

python examples/encoder.py
"""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import BertConfig, BertForSequenceClassification

from influence_masking import InfluenceMasking

VOCABULARY = 100


class SentenceClassifier(LightningModule):
    """A tiny BERT, with random weights so that nothing is downloaded; it knows nothing of masks."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            num_labels=2,
        )
        self.model = BertForSequenceClassification(config)
        self.accuracy = MulticlassAccuracy(2)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        output = self.model(**batch)
        self.accuracy(output.logits, batch["labels"])
        self.log_dict({"train_loss": output.loss, "train_accuracy": self.accuracy}, prog_bar=True, on_epoch=True)
        return {"loss": output.loss}

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LinearLR(optimizer)}


class Sentences(LightningDataModule):
    """Token numbers of which the label says whether the larger ones are in the majority."""

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(1, VOCABULARY, (400, 12), generator=generator)
        length = torch.randint(4, 13, (400, 1), generator=generator)
        attention = (torch.arange(12) < length).long()
        labels = (((tokens > VOCABULARY // 2) * attention).sum(1) * 2 > length.squeeze(1)).long()
        columns = {"input_ids": tokens * attention, "attention_mask": attention, "labels": labels}
        self.rows = [{name: column[i] for name, column in columns.items()} for i in range(400)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=32, shuffle=True)


def main(**trainer_options: Any) -> tuple[SentenceClassifier, InfluenceMasking, Trainer]:
    """Train with the default targets, the attention and MLP matrices, 5 % of them held at zero."""
    seed_everything(0)
    masking = InfluenceMasking(fraction=0.05, num_samples=250)
    model = SentenceClassifier()
    options: dict[str, Any] = {"max_epochs": 5, "accelerator": "cpu", "callbacks": masking}
    trainer = Trainer(**options | trainer_options)
    trainer.fit(model, datamodule=Sentences())
    return model, masking, trainer


if __name__ == "__main__":
    main()
