"""What a mask looks like, for the loggers of a Trainer: numbers for all of them, pictures for TensorBoard."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

from influence_masking.holding import Hold
from influence_masking.masks import Mask, Share

PREFIX = "masking"
CELL = 16  # pixels
COLOURS = ((1.0, 1.0, 1.0), (0.03, 0.19, 0.42))  # of the smallest and of the largest share
MISSING = 0.85  # grey of a layer that lacks a projection
BINS = 100


def log_mask(loggers: Iterable[Logger], mask: Mask, numbers: Mapping[str, float], scores: Tensor, step: int) -> None:
    """Sends a mask to loggers.

    Args:
        loggers: All get the numbers and the share masked of each projection of each layer; TensorBoard also gets the
            shares as a picture and a histogram of the scores.
        mask: The mask.
        numbers: Numbers by name.
        scores: A sample of the scores, shape (n,).
        step: The optimizer step to log them at.
    """
    shares = mask.summary()
    metrics = {f"{PREFIX}/{name}": value for name, value in numbers.items()}
    metrics |= {f"{PREFIX}/share/{s.layer}/{s.projection}": s.masked / s.candidates for s in shares}
    for logger in loggers:
        logger.log_metrics(metrics, step)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"{PREFIX}/share", picture_of(shares), step)
            logger.experiment.add_histogram_raw(f"{PREFIX}/scores", global_step=step, **histogram_of(scores))


def log_held_gradient(trainer: Trainer, hold: Hold) -> None:
    """Sends the norm of the held weights' gradient, averaged over processes, to the loggers at their interval: 0."""
    interval = getattr(trainer, "log_every_n_steps", 0)
    if trainer.loggers and interval and trainer.global_step % interval == 0:
        norm = trainer.strategy.reduce(torch.tensor(hold.gradient_norm(), device=trainer.strategy.root_device))
        for logger in trainer.loggers:
            logger.log_metrics({f"{PREFIX}/held_gradient_norm": float(norm)}, trainer.global_step)


def picture_of(shares: Sequence[Share]) -> Tensor:
    """Draws the share masked by layer (down) and projection (across), white for none, dark blue for the largest.

    Returns:
        An image of float32 between 0 and 1, shape (3, height, width).
    """
    layers = list(dict.fromkeys(share.layer for share in shares))
    projections = list(dict.fromkeys(share.projection for share in shares))
    cells = torch.full((len(layers), len(projections)), torch.nan)
    for share in shares:
        cells[layers.index(share.layer), projections.index(share.projection)] = share.masked / share.candidates
    strength = cells / cells.nan_to_num().max().clamp(min=1e-12)
    lightest, darkest = (torch.tensor(colour).view(3, 1, 1) for colour in COLOURS)
    image = torch.lerp(lightest, darkest, strength.unsqueeze(0)).nan_to_num(MISSING)
    return image.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)


def histogram_of(scores: Tensor) -> dict[str, float | list[float]]:
    """Counts scores in equal bins between their 0.1 % and 99.9 % quantiles; those outside are in the end bins.

    Returns:
        The arguments of TensorBoard's ``add_histogram_raw``.
    """
    scores = scores.double().sort().values
    cut = len(scores) // 1000
    low, high = scores[cut].item(), scores[-1 - cut].item()
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(scores.clamp(low, high), BINS, low, high)
    limits = torch.linspace(low, high, BINS + 1, dtype=torch.float64)[1:]
    return {
        "min": scores[0].item(),
        "max": scores[-1].item(),
        "num": float(len(scores)),
        "sum": scores.sum().item(),
        "sum_squares": scores.square().sum().item(),
        "bucket_limits": limits.tolist(),
        "bucket_counts": counts.tolist(),
    }
