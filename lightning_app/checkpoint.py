"""What a run keeps of its weights: those that are measured, and all that a stopped fit needs to go on."""

from time import perf_counter
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

SECONDS = 1.0
"""What may be spent on writing after every epoch."""


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
        if not self.best_model_path and not cast(Any, trainer).fast_dev_run:
            self.best_model_path = f"{trainer.default_root_dir}/checkpoints/best.ckpt"
            trainer.save_checkpoint(self.best_model_path, weights_only=True)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/last.ckpt`: weights, optimizer and counters after the last whole epoch.

    `influence fit ... --ckpt_path .../last.ckpt` goes on from it to the same result, to the bit, as if the fit had
    never been stopped. `influence experiment` does so itself, and deletes the file when the condition is complete.

    Where writing takes seconds (6 GB for all of Qwen2-0.5B, whose epoch takes a GPU no longer), epochs are left out so
    that it takes no more than a tenth of the time.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self._written_at, self._seconds = 0.0, 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the epoch, or leaves it out."""
        start = perf_counter()
        if trainer.strategy.broadcast(self._seconds > SECONDS and start - self._written_at < 9 * self._seconds):
            return
        super().on_train_epoch_end(trainer, pl_module)
        self._written_at = perf_counter()
        self._seconds = self._written_at - start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trains no further epoch where early stopping had already ended the fit that is resumed."""
        super().on_train_start(trainer, pl_module)
        stoppers = trainer.early_stopping_callbacks
        if any(isinstance(stopper, EarlyStopping) and stopper.wait_count >= stopper.patience for stopper in stoppers):
            trainer.should_stop = True
