"""Arm A: the frozen backbone with a trained head, from which the other arms start."""

from pathlib import Path
from typing import Any

import torch

from modules.checkpoints import read_checkpoint
from modules.classifier import Classifier
from modules.start import Start, StartReference


class Baseline(Classifier):
    """Train the head alone, and save it as `start.safetensors` in the run's folder."""

    trains = "head"

    def adapt(self) -> None:
        """Freeze the backbone."""
        self.backbone.requires_grad_(False)
        self.train()

    def on_fit_end(self) -> None:
        """Save the head that is evaluated: arms of the same dataset and seed start from it."""
        trainer: Any = self.trainer
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self._as_start(trainer).save()

    def _as_start(self, trainer: Any) -> Start:
        reference = StartReference(
            backbone=self.backbone_name,
            backbone_fingerprint=self.backbone_fingerprint,
            num_labels=self.num_labels,
            dataset=trainer.datamodule.name,
            data_fingerprint=trainer.datamodule.fingerprint,
            tokenizer_digest=trainer.datamodule.tokenizer_digest,
            seed=self.seed,
            train_on=trainer.datamodule.train_on,
            epochs=trainer.current_epoch,
            learning_rate=float(self.learning_rate),
        )
        return Start(Path(trainer.default_root_dir) / "start.safetensors", self._best_head(trainer), reference)

    def _best_head(self, trainer: Any) -> dict[str, torch.Tensor]:
        """Return the head of the best checkpoint, or the current one if no checkpoint was kept."""
        checkpoint = trainer.checkpoint_callback
        if checkpoint is None or not checkpoint.best_model_path:
            return {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        weights = read_checkpoint(checkpoint.best_model_path)["state_dict"]
        return {name: weights[f"head.{name}"].contiguous() for name in self.head.state_dict()}
