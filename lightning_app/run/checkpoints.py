"""Checkpoints of a run: the weights that are evaluated, and the full state from which a stopped fit resumes."""

from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_app.results.files import write_atomically
from lightning_app.results.metrics import HEADLINE, METRICS
from lightning_app.signals import sigterm


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint completely or not at all, through a temporary file in the same folder.

    Lightning's own (`lightning.fabric.utilities.cloud_io._atomic_save`) uses the system's folder for temporary files,
    which may be smaller or on another disk: its last step is then a copy, which can be interrupted.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file.

        Raises:
            OSError: If it cannot be written; it names the file.
        """

        def save(temporary: Path) -> None:
            try:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # raised in turn when torch's writer closes the file
                    raise error.__context__ from None
                raise

        write_atomically(Path(path), save)


CHEAP_SECONDS = 1.0
"""Checkpoints that are written faster than this are written after every epoch."""


class BestCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/best.ckpt`, the weights of the epoch with the best validation metric.

    A fit without an optimization step (`tune: none`) has no such epoch: its weights are saved when it ends. Every fit
    in the same run folder replaces the file.

    Args:
        monitor: Logged metric that is compared.
        mode: `max` if a larger value is better, `min` if a smaller one is.
    """

    def __init__(self, monitor: str = f"val/{HEADLINE}", mode: str = METRICS[HEADLINE].mode) -> None:
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_weights_only=True, enable_version_counter=False
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights if no epoch has saved them."""
        if not self.best_model_path and not cast(Any, trainer).fast_dev_run:
            self.best_model_path = f"{trainer.default_root_dir}/checkpoints/best.ckpt"
            trainer.save_checkpoint(self.best_model_path, weights_only=True)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/last.ckpt`: weights, optimizer and counters after the last whole epoch, or at SIGTERM.

    `influence fit ... --ckpt_path .../last.ckpt` resumes from it, with results equal to the bit to those of a fit that
    was never stopped. `influence experiment` does so by itself, and deletes the file when the condition is complete.

    If writing takes seconds (all of Qwen2-0.5B is 6 GB, and one of its epochs on a GPU takes no longer), some epochs
    are not saved, so that writing takes at most a tenth of the time.

    SIGTERM saves after the current batch, with the state of the random numbers for dropout. On several devices, on a
    TPU, within accumulated gradients and during validation it saves nothing: the file of the last epoch stays.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self._random: dict[str, Tensor] = {}
        self._written_at, self._seconds = 0.0, 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch unless the last save was too recent for its cost."""
        start = perf_counter()
        if trainer.strategy.broadcast(self._seconds > CHEAP_SECONDS and start - self._written_at < 9 * self._seconds):
            return
        super().on_train_epoch_end(trainer, pl_module)
        self._written_at = perf_counter()
        self._seconds = self._written_at - start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further epoch if early stopping had already ended the fit that is resumed."""
        super().on_train_start(trainer, pl_module)
        # Lightning skips this if `estimated_stepping_batches` made the loader before the checkpoint was read
        # (`FitLoop.setup_data` returns early), and the loader would start its epoch again
        trainer.fit_loop._load_combined_loader_states()
        stoppers = trainer.early_stopping_callbacks
        if any(isinstance(stopper, EarlyStopping) and stopper.wait_count >= stopper.patience for stopper in stoppers):
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let SIGTERM wait for the end of a batch from now on, and restore the random state of a resumed fit.

        It is restored here because the loader draws a random number before it returns its first batch.
        """
        sigterm.can_wait = trainer.world_size == 1
        if self._random:
            _set_random_state(self._random, trainer.strategy.root_device)
            self._random = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End now if SIGTERM came after the Trainer's last check."""
        sigterm.can_wait = False
        if sigterm.asked:
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if SIGTERM ends a fit within an epoch. After SIGTERM, an error does not let other conditions run."""
        sigterm.can_wait = False
        if sigterm.asked and not isinstance(exception, SystemExit):
            raise SIGTERMException from exception
        if isinstance(exception, SIGTERMException) and _can_be_resumed(trainer):
            self._random = _random_state(trainer.strategy.root_device)
            try:
                trainer.save_checkpoint(Path(cast(str, self.dirpath)) / "last.ckpt")
            except OSError as error:
                rank_zero_warn(f"Cannot save the state at SIGTERM: {error}. The last whole epoch's stays.")

    def state_dict(self) -> dict[str, Any]:
        """Add the state of the random numbers if a fit was stopped within an epoch."""
        return super().state_dict() | ({"random": self._random} if self._random else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of the random numbers, to be restored at the next batch."""
        super().load_state_dict(state_dict)
        self._random = state_dict.get("random", {})


def _can_be_resumed(trainer: Trainer) -> bool:
    """Return whether a fit is between two batches of an epoch, without state that a checkpoint does not hold."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    within = trainer.training and not progress.is_last_batch
    alone = trainer.world_size == 1 and trainer.strategy.root_device.type in ("cpu", "cuda")
    return within and alone and progress.current.completed % trainer.accumulate_grad_batches == 0


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
