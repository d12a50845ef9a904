"""Loss and predictions under masks of many sizes, all made from one gradient."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from tqdm.auto import tqdm

from influence_masking import MaskingOptions, SweepPoint, find_candidates, sweep
from influence_masking.selection.scores import RANDOM_MATCHED, resolve_score
from modules.classifier import Classifier
from modules.errors import require
from modules.masking import DEFAULT_OPTIONS, SET_ELSEWHERE, masking_of

Predictions = tuple[Tensor, Tensor]
"""Labels [rows] and logits [rows, classes], on the CPU."""

FRACTIONS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2)

SWEPT = SET_ELSEWHERE | {
    "fraction": "model.fractions",
    "count": "model.fractions",
    "tail": "model.tails",
    "score": "model.scores",
    "matched_score": "model.scores",
    "mask_path": "the sweep itself, which makes its masks",
}
"""Options of a mask that a sweep decides by another key."""


@dataclass(frozen=True)
class SweepResult:
    """Measurements of a sweep.

    Attributes:
        loss: Mean loss (nats) on the calibration samples without a mask.
        unmasked: Predictions for the dev split without a mask.
        points: One per mask.
        predictions: For the dev split, one per mask.
    """

    loss: float
    unmasked: Predictions
    points: list[SweepPoint]
    predictions: list[Predictions]


class Sweep(Classifier):
    """Measure masks of several scores, tails and fractions; train nothing.

    Predictions are those of the dev split, because only arms may read eval. `validate` evaluates the unmasked model.

    Args:
        fractions: Shares of the candidates, between 0 and 1. Those that select no weight are skipped.
        tails: Ends of the scores to mask.
        scores: Names of scores.
        masking: As for `Influence`, without the options that the lists above replace.
        **kwargs: As `Classifier`.

    Attributes:
        result: What was measured; None before a fit.

    Raises:
        OptionError: If a list is empty, a fraction is out of range, or `masking` sets what is decided otherwise.
        MaskingError: If a score is unknown or `targets` match nothing.
        BackboneError: As `Influence`.
    """

    trains = "none"

    def __init__(
        self,
        *,
        fractions: Sequence[float] = FRACTIONS,
        tails: Sequence[Literal["lowest", "highest"]] = ("lowest", "highest"),
        scores: Sequence[str] = ("sign_gradient",),
        masking: MaskingOptions = DEFAULT_OPTIONS,
        **kwargs: Any,
    ) -> None:
        shares = bool(fractions) and all(0 < fraction < 1 for fraction in fractions)
        require(shares, "fractions", fractions, "a list of numbers between 0 and 1")
        require(bool(tails), "tails", tails, "a list of lowest and highest")
        require(bool(scores), "scores", scores, "a list of names of scores")
        self.fractions, self.tails, self.scores = fractions, tails, scores
        for score in set(scores) - {RANDOM_MATCHED}:
            # before the backbone, which takes seconds to load: an unknown one is reported at once
            resolve_score(score, option="scores")
        self.masking = masking_of(masking, kwargs.get("seed", 0), SWEPT)
        self.result: SweepResult | None = None
        super().__init__(**kwargs)

    def adapt(self) -> None:
        """Check that there are weights to mask, then freeze everything."""
        self.masking.options = replace(self.masking.options, targets=self.candidate_targets())
        find_candidates(self, self.masking.options.targets)
        self.requires_grad_(False)
        self.train()

    def setup(self, stage: str) -> None:
        """End the fit after the sweep: there is nothing to train."""
        super().setup(stage)
        if stage == "fit":
            self.trainer.fit_loop.max_epochs = 0

    def configure_callbacks(self) -> list[Callback]:
        """Add the sweep, after the check of the start that its gradient is taken at."""
        return [*super().configure_callbacks(), RunSweep()]


class RunSweep(Callback):
    """Make and measure the masks of a `Sweep` when its fit begins."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the gradient, then measure one mask after the other; afterwards the weights are unchanged."""
        module, predictions = cast(Sweep, pl_module), list[Predictions]()

        def measure() -> dict[str, float]:
            predictions.append(predict_dev(trainer, module))
            return {}

        with isolate_rng():
            snapshot = module.masking.snapshot(trainer, module)
            module.eval()
            unmasked = predict_dev(trainer, module)
            scope, lists = module.masking.options.scope, (module.fractions, module.tails, module.scores)
            points = sweep(snapshot, *lists, scope=scope, seed=module.seed, measure=measure)
            total = prod(map(len, lists))
            bar = trainer.progress_bar_callback is not None
            made = list(tqdm(points, "Sweep", total, unit="mask", leave=False, disable=not bar))
        module.train()
        module.result = SweepResult(snapshot.loss, unmasked, made, predictions)


@torch.no_grad()
def predict_dev(trainer: Trainer, module: Classifier) -> Predictions:
    """Return labels and logits of the dev split with the current weights, without padding rows."""
    plugin, batches = trainer.precision_plugin, list[Predictions]()
    for batch in cast(Any, trainer).datamodule.ordered_dataloader("dev", shared=False):
        batch = trainer.strategy.batch_to_device(plugin.convert_input(batch))
        with plugin.val_step_context():
            logits = module(batch["input_ids"], batch["attention_mask"]).cpu()
        labels = batch["labels"].cpu()
        batches.append((labels[labels >= 0], logits[labels >= 0]))
    labels, logits = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return labels, logits
