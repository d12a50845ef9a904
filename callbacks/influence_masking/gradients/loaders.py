"""Where the samples for the gradient come from by default."""

import contextlib
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, DistributedSampler

from influence_masking.errors import MaskingError


def default_loader(trainer: Trainer) -> Any:
    """Returns the datamodule's ``calibration_dataloader()`` if it has one, else the training dataloader.

    The training dataloader is the one that ``Trainer.fit`` was given or that the datamodule or the module makes, before
    Lightning divides it over processes.

    Raises:
        MaskingError: If there is no training dataloader, or if it gives each process other samples.
    """
    if callable(make := getattr(getattr(trainer, "datamodule", None), "calibration_dataloader", None)):
        loader = make()
    else:
        source = trainer.fit_loop._data_source  # the one place that knows a loader passed to `fit`
        if not source.is_defined():
            raise MaskingError(
                "Asked for calibration data, found no training dataloader. Pass one to `Trainer.fit`, or override "
                "`calibration_batches`."
            )
        loader = source.dataloader()
    if any(isinstance(s, DistributedSampler) and s.num_replicas > 1 for s in _samplers(loader)):
        raise MaskingError(
            "Asked for calibration data, found a dataloader with a DistributedSampler: each process would see other "
            "samples. Give the datamodule a `calibration_dataloader()` without one, or override `calibration_batches`."
        )
    return loader


def iterate(loader: Any) -> Iterator[Any]:
    """Yields batches of a loader or of a collection of loaders, and puts back the generators that it shuffles with."""
    generators = [g for g in (getattr(s, "generator", None) for s in _samplers(loader)) if g is not None]
    states = [generator.get_state() for generator in generators]
    collection = isinstance(loader, dict | list | tuple | CombinedLoader)
    with contextlib.ExitStack() as stack:
        for generator, state in zip(generators, states, strict=True):
            stack.callback(generator.set_state, state)
        if not collection:
            yield from loader
            return
        combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
        yield from (batch for batch, _, _ in combined)


def _samplers(loader: Any) -> list[Any]:
    """Returns a loader, its samplers and theirs: whatever may hold a generator or divide the samples."""
    if isinstance(loader, CombinedLoader):
        return [holder for part in loader.flattened for holder in _samplers(part)]
    if isinstance(loader, dict | list | tuple):
        parts = loader.values() if isinstance(loader, dict) else loader
        return [holder for part in parts for holder in _samplers(part)]
    if not isinstance(loader, DataLoader):
        return []
    batch_sampler = loader.batch_sampler
    return [loader, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)]
