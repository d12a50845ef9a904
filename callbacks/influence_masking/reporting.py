"""Reports of a mask to the loggers of a Trainer: numbers for all loggers, pictures for TensorBoard."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from influence_masking.making import Measurement
from influence_masking.masks.enforcer import MaskEnforcer
from influence_masking.masks.mask import Mask, Share
from influence_masking.options import MaskingOptions
from influence_masking.selection.scores import score_name
from influence_masking.snapshot import Snapshot

TAG_PREFIX = "masking"
CELL_SIZE = (60, 20)  # width and height of a cell in pixels
GAP = 8  # pixels around the cells and between cells and labels
FONT_SIZE = 13
COLOR_SCALE = ((255, 255, 255), (8, 48, 107))  # of a share of 0 and of the largest share
MISSING_COLOR = (217, 217, 217)  # color of a projection that a layer does not have
PICTURE_TITLE = "masked, %"
NUM_BINS = 100


def log_mask(
    loggers: Iterable[Logger],
    mask: Mask,
    numbers: Mapping[str, float],
    scores: Tensor,
    step: int,
    prefix: str = TAG_PREFIX,
) -> None:
    """Log a mask.

    Args:
        loggers: The loggers. All get the numbers and the masked share of each projection of each layer; TensorBoard
            also gets a picture of the shares and a histogram of the scores.
        mask: The mask.
        numbers: Numbers by name.
        scores: A sample of the scores, shape (n,).
        step: Optimizer step.
        prefix: Beginning of the tags.
    """
    shares = mask.summary()
    metrics = {f"{prefix}/{name}": value for name, value in numbers.items()}
    metrics |= {f"{prefix}/share/{share.layer}/{share.projection}": share.fraction for share in shares}
    for logger in loggers:
        logger.log_metrics(metrics, step)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"{prefix}/share", picture_of(shares), step)
            logger.experiment.add_histogram_raw(f"{prefix}/scores", global_step=step, **histogram_of(scores))


def report_mask(
    trainer: Trainer, mask: Mask, measurement: Measurement, snapshot: Snapshot, options: MaskingOptions, prefix: str
) -> None:
    """Report a mask and its effect in one line, and to the Trainer's loggers if it has any."""
    rank_zero_info(
        f"InfluenceMasking selected {mask.num_masked:,} of {mask.num_candidates:,} weights ({options.tail} "
        f"{score_name(options.score)}). Zeroing them: loss {measurement.loss_before:.6g} -> "
        f"{measurement.loss_after:.6g} ({measurement.measured_change:+.3g}; first-order prediction "
        f"{measurement.predicted_change:+.3g})."
    )
    if trainer.loggers:
        numbers = {name: value for name, value in vars(measurement).items() if name != "seconds"}
        numbers |= {"masked": mask.num_masked, "candidates": mask.num_candidates}
        scores = snapshot.sample_scores(options.ranking_score, options.seed)
        log_mask(trainer.loggers, mask, numbers, scores, trainer.global_step, prefix)


def held_gradient(trainer: Trainer, enforcer: MaskEnforcer) -> Tensor | None:
    """Return the norm of the held weights' gradient, a scalar tensor, at the loggers' interval; None at other steps.

    Its value is not read here: on XLA, reading would split the training step into two programs. On XLA it is also
    computed at every step, so that all steps are the same program.
    """
    interval = getattr(trainer, "log_every_n_steps", 0)
    if not trainer.loggers or not interval:
        return None
    is_due = trainer.global_step % interval == 0
    return enforcer.gradient_norm() if is_due or trainer.strategy.root_device.type == "xla" else None


def log_held_gradient(trainer: Trainer, step: int, norm: Tensor, prefix: str = TAG_PREFIX) -> None:
    """Log a norm from `held_gradient`, averaged over processes, if the step is at the loggers' interval."""
    if step % getattr(trainer, "log_every_n_steps", 1) == 0:
        value = float(trainer.strategy.reduce(norm.to(trainer.strategy.root_device)))
        for logger in trainer.loggers:
            logger.log_metrics({f"{prefix}/held_gradient_norm": value}, step)


def picture_of(shares: Sequence[Share]) -> Tensor:
    """Draw the masked share in percent by layer (rows) and projection (columns); larger shares are darker.

    Needs Pillow, which TensorBoard depends on.

    Returns:
        An image of bytes, shape (3, height, width).
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_SIZE)
    layers = list(dict.fromkeys(share.layer for share in shares))
    projections = list(dict.fromkeys(share.projection for share in shares))
    widths = [max(int(font.getlength(label)) for label in labels) for labels in ([PICTURE_TITLE, *layers], projections)]
    left, top = (2 * GAP + width for width in widths)
    size = (left + GAP + CELL_SIZE[0] * len(projections), top + GAP + CELL_SIZE[1] * len(layers))
    image = Image.new("RGB", size, COLOR_SCALE[0])
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, size[0] - GAP - 1, size[1] - GAP - 1), MISSING_COLOR)
    draw.text((left - GAP, top - GAP), PICTURE_TITLE, "black", font, "rs")
    for row, label in enumerate(layers):
        draw.text((left - GAP, top + (row + 0.5) * CELL_SIZE[1]), label, "black", font, "rm")
    for column, label in enumerate(projections):
        upright = Image.new("RGB", (top - GAP, CELL_SIZE[1]), COLOR_SCALE[0])
        ImageDraw.Draw(upright).text((0, CELL_SIZE[1] / 2), label, "black", font, "lm")
        place = (left + column * CELL_SIZE[0] + (CELL_SIZE[0] - CELL_SIZE[1]) // 2, 0)
        image.paste(upright.transpose(Image.Transpose.ROTATE_90), place)
    largest = max(share.fraction for share in shares) or 1.0
    for share in shares:
        x, y = left + projections.index(share.projection) * CELL_SIZE[0], top + layers.index(share.layer) * CELL_SIZE[1]
        strength = share.fraction / largest
        color = tuple(round(low + strength * (high - low)) for low, high in zip(*COLOR_SCALE, strict=True))
        draw.rectangle((x, y, x + CELL_SIZE[0] - 1, y + CELL_SIZE[1] - 1), color)
        text = "white" if strength > 0.5 else "black"
        draw.text((x + CELL_SIZE[0] / 2, y + CELL_SIZE[1] / 2), f"{100 * share.fraction:.3g}", text, font, "mm")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3).permute(2, 0, 1)


def histogram_of(scores: Tensor) -> dict[str, float | list[float]]:
    """Count scores in equal bins between their 0.1 % and 99.9 % quantiles; the end bins include those outside.

    Returns:
        The arguments of TensorBoard's `add_histogram_raw`.
    """
    scores = scores.double().sort().values
    cut = len(scores) // 1000
    low, high = scores[cut].item(), scores[-1 - cut].item()
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(scores.clamp(low, high), NUM_BINS, low, high)
    limits = torch.linspace(low, high, NUM_BINS + 1, dtype=torch.float64)[1:]
    return {
        "min": scores[0].item(),
        "max": scores[-1].item(),
        "num": float(len(scores)),
        "sum": scores.sum().item(),
        "sum_squares": scores.square().sum().item(),
        "bucket_limits": limits.tolist(),
        "bucket_counts": counts.tolist(),
    }
