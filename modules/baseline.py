"""Arm A: the frozen backbone with a head trained for one epoch. Its head is the start of every other arm."""

from pathlib import Path
from typing import Any

from modules.classifier import Classifier
from modules.start import Start, StartReference


class Baseline(Classifier):
    """Trains the head alone, and leaves it as `start.safetensors` in the run's folder."""

    needs_start = False

    def adapt(self) -> None:
        """Freezes the backbone."""
        self.backbone.requires_grad_(False)
        self.train()

    def on_fit_end(self) -> None:
        """Writes the start, from which the arms of the same dataset and seed begin."""
        if self.trainer.is_global_zero:
            self._as_start(self.trainer).save()

    def _as_start(self, trainer: Any) -> Start:
        reference = StartReference(
            backbone=self.backbone_name,
            backbone_fingerprint=self.backbone_fingerprint,
            num_labels=self.num_labels,
            dataset=trainer.datamodule.name,
            data_fingerprint=trainer.datamodule.fingerprint,
            seed=self.seed,
        )
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        return Start(Path(trainer.default_root_dir) / "start.safetensors", head, reference)
