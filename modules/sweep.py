"""Dose and response: the loss and the accuracy under masks of many sizes, all from one gradient."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from influence_masking import SweepPoint, find_candidates, sweep
from influence_masking.selection.scores import resolve_score
from influence_masking.snapshot import MATCHED
from modules.classifier import Classifier, OptionError
from modules.shared_gradient import SharedGradientMasking

FRACTIONS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2)


class Sweep(Classifier):
    """Measures masks of several scores, tails and fractions, and trains nothing.

    Accuracy and NLL are those of the dev split: eval is read once, by the arms. What `validate` evaluates is the model
    without a mask.

    Args:
        fractions: Shares of the candidates, between 0 and 1; those that select no weight are left out.
        tails: Ends of the scores.
        scores: Names of scores.
        targets: As for `Influence`.
        micro_batch_size: As for `Influence`.
        **kwargs: As `Classifier`.

    Attributes:
        sweep: What was found, once it is; see `sweep_record`.

    Raises:
        OptionError: If a list is empty or a fraction is out of range.
        MaskingError: If a score is unknown or `targets` match nothing.
    """

    def __init__(
        self,
        *,
        fractions: Sequence[float] = FRACTIONS,
        tails: Sequence[Literal["lowest", "highest"]] = ("lowest", "highest"),
        scores: Sequence[str] = ("sign_gradient",),
        targets: list[str] | str | None = None,
        micro_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not (fractions and tails and scores) or not all(0 < fraction < 1 for fraction in fractions):
            raise OptionError(
                "A sweep needs fractions between 0 and 1, tails and scores, found "
                f"{list(fractions)}, {list(tails)} and {list(scores)}."
            )
        self.fractions, self.tails, self.scores = fractions, tails, scores
        for score in set(scores) - {MATCHED}:
            resolve_score(score)  # before the backbone is loaded, so that an unknown one is found at once
        self.masking = SharedGradientMasking(
            targets=targets, num_samples=None, micro_batch_size=micro_batch_size, seed=kwargs.get("seed", 0)
        )
        self.sweep: dict[str, Any] | None = None
        super().__init__(**kwargs)

    def adapt(self) -> None:
        """Freezes everything, once it is certain that there are weights to mask."""
        find_candidates(self, self.masking.targets)
        self.requires_grad_(False)
        self.train()

    def setup(self, stage: str) -> None:
        """There is nothing to train: the fit ends after the sweep."""
        super().setup(stage)
        if stage == "fit":
            self.trainer.fit_loop.max_epochs = 0

    def configure_callbacks(self) -> list[Callback]:
        """Adds the sweep, after the check of the start that its gradient is taken at."""
        return [*super().configure_callbacks(), RunSweep()]


class RunSweep(Callback):
    """Makes and measures the masks of a `Sweep` when its fit begins."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the gradient, then goes through the masks; the weights are afterwards what they were."""
        module = cast(Sweep, pl_module)
        with isolate_rng():
            snapshot = module.masking.snapshot(trainer, module)
            with torch.no_grad():
                module.eval()
                unmasked = measure_dev(trainer, module)
            points = sweep(
                snapshot,
                module.fractions,
                module.tails,
                module.scores,
                seed=module.seed,
                measure=lambda: measure_dev(trainer, module),
            )
            total = len(module.fractions) * len(module.tails) * len(module.scores)
            bar = trainer.progress_bar_callback is not None
            found = list(tqdm(points, "Sweep", total, unit="mask", leave=False, disable=not bar))
        module.train()
        module.sweep = sweep_record(snapshot.loss, unmasked, found)


@torch.no_grad()
def measure_dev(trainer: Trainer, module: Classifier) -> dict[str, float]:
    """Accuracy and mean NLL (nats) of the module, as it is, on all of the dev split."""
    plugin, right, nll, rows = trainer.precision_plugin, 0.0, 0.0, 0
    for batch in cast(Any, trainer).datamodule.ordered_dataloader("dev", shared=False):
        batch = trainer.strategy.batch_to_device(plugin.convert_input(batch))
        with plugin.val_step_context():
            logits = module(batch["input_ids"], batch["attention_mask"]).cpu()
        labels = batch["labels"].cpu()
        right += float((logits.argmax(-1) == labels).sum())
        nll += float(cross_entropy(logits, labels, reduction="sum"))
        rows += int((labels >= 0).sum())
    return {"accuracy": right / rows, "nll": nll / rows}


def sweep_record(loss: float, unmasked: dict[str, float], points: Sequence[SweepPoint]) -> dict[str, Any]:
    """What `sweep.json` holds.

    Args:
        loss: Mean loss (nats) on the calibration samples without a mask.
        unmasked: Accuracy and NLL on dev without a mask.
        points: One a mask.
    """
    flat = [{name: value for name, value in asdict(p).items() if name != "metrics"} | dict(p.metrics) for p in points]
    return {"split": "dev", "baseline": {"loss": loss, **unmasked}, "points": flat}
