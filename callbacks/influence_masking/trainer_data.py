"""The calibration data of a Trainer's run, and the loss on it as the training loop would compute it."""

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from influence_masking.gradients.batches import CalibrationBatch, take_samples
from influence_masking.gradients.mean_gradient import Calibration, Progress
from influence_masking.gradients.training_step import muted
from influence_masking.options import MaskingOptions
from influence_masking.runtime.processes import Ranks
from influence_masking.runtime.strategies import gradient_processes


def trainer_calibration(
    trainer: Trainer,
    module: LightningModule,
    stream: Iterable[Any],
    compute_loss: Callable[[LightningModule, Any, int], Tensor],
    options: MaskingOptions,
) -> Calibration:
    """Return the calibration of a run under a Trainer's device, precision and processes.

    Args:
        trainer: The Trainer.
        module: The module that is trained.
        stream: All calibration batches, the same on every process.
        compute_loss: Returns the mean loss of the module on a batch; the third argument is the batch's index.
        options: Number of samples and size of micro-batches.
    """
    precision = trainer.precision_plugin
    # without the loss scaling of training, gradients in float16 would underflow: they are computed in float32
    needs_scaling = precision.precision == "16-mixed"

    def loss_function(batch: CalibrationBatch) -> Tensor:
        data = module._on_before_batch_transfer(precision.convert_input(batch.data))  # as the training loop does
        data = trainer.strategy.batch_to_device(data)
        with contextlib.nullcontext() if needs_scaling else precision.train_step_context(), muted(module):
            return compute_loss(module, data, batch.index)

    processes = gradient_processes(trainer)
    batches = _share_of_batches(stream, options.num_samples, processes)
    return Calibration(batches, loss_function, processes, options.micro_batch_size, _progress_of(trainer))


def _share_of_batches(stream: Iterable[Any], num_samples: int | None, processes: Ranks) -> list[CalibrationBatch]:
    """Return this process's share of the batches: every n-th one."""
    iterator = iter(stream)
    try:
        return [b for b in take_samples(iterator, num_samples) if b.index % processes.count == processes.rank]
    finally:
        if isinstance(iterator, Generator):
            iterator.close()  # restores the loader's random generators now, not when it is garbage-collected


def _progress_of(trainer: Trainer) -> Progress:
    """Return a progress bar over the micro-batches if the Trainer shows one, on the first process."""
    bar = trainer.progress_bar_callback
    if bar is None or not trainer.is_global_zero or getattr(bar, "is_disabled", False):
        return iter
    return lambda batches: iter(tqdm(batches, desc="Gradient for the mask", unit="batch", leave=False))
