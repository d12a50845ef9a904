"""The checkpoint that a condition is measured at."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/best.ckpt`, the weights of the epoch with the best validation metric.

    A fit without an optimisation step (`tune: none`) has no such epoch: its weights are saved when it ends. The file
    is written anew by every fit of the same run folder.

    Args:
        monitor: Logged metric that is compared.
        mode: Whether more (`max`) or less (`min`) of it is better.
    """

    def __init__(self, monitor: str = "val/accuracy", mode: str = "max") -> None:
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_weights_only=True, enable_version_counter=False
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what no epoch has saved."""
        if not self.best_model_path:
            self.best_model_path = f"{trainer.default_root_dir}/checkpoints/best.ckpt"
            trainer.save_checkpoint(self.best_model_path, weights_only=True)
