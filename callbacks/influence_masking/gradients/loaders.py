"""The default source of the samples for the gradient."""

import contextlib
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, DistributedSampler

from influence_masking.errors import MaskingError


def default_loader(trainer: Trainer) -> Any:
    """Return the datamodule's `calibration_dataloader()` if it has one, otherwise the training dataloader.

    The training dataloader is the one passed to `Trainer.fit` or made by the datamodule or the module, before Lightning
    divides it over processes.

    Raises:
        MaskingError: If there is no training dataloader, or if it gives each process different samples.
    """
    if callable(make := getattr(getattr(trainer, "datamodule", None), "calibration_dataloader", None)):
        loader = make()
    else:
        source = trainer.fit_loop._data_source  # private, but nothing else has a loader passed to `fit`
        if not source.is_defined():
            raise MaskingError(
                "There is no calibration data: found neither `calibration_dataloader` nor a training dataloader. Pass "
                "one to `Trainer.fit`, or override `calibration_batches`."
            )
        loader = source.dataloader()
    # Lightning adds its DistributedSampler later, so one that is here is the user's: every process must see all batches
    if any(isinstance(s, DistributedSampler) and s.num_replicas > 1 for s in _samplers(loader)):
        raise MaskingError(
            "The calibration dataloader has a DistributedSampler, so each process would see different samples. Add a "
            "`calibration_dataloader()` without one to the datamodule, or override `calibration_batches`."
        )
    return loader


def iterate(loader: Any) -> Iterator[Any]:
    """Yield the batches of a loader or a collection of loaders, then restore the generators that it shuffles with."""
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
    """Return a loader, its samplers and theirs: everything that may have a generator or divide the samples."""
    if isinstance(loader, CombinedLoader):
        return [holder for part in loader.flattened for holder in _samplers(part)]
    if isinstance(loader, dict | list | tuple):
        parts = loader.values() if isinstance(loader, dict) else loader
        return [holder for part in parts for holder in _samplers(part)]
    if not isinstance(loader, DataLoader):
        return []
    batch_sampler = loader.batch_sampler
    return [loader, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)]
