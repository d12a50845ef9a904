"""Arm B: set the weights with the lowest scores to zero. Control arms are configurations of this one."""

from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch import Callback

from influence_masking import Mask, MaskingOptions, find_candidates
from modules.classifier import Classifier
from modules.errors import CheckpointError
from modules.masking import DEFAULT_OPTIONS, mask_identity, masking_of


class Influence(Classifier):
    """Mask attention and MLP weights by their score, then train nothing, the head, or everything.

    The `InfluenceMasking` callback, which this module brings along, does the masking: one gradient over the training
    split when the fit starts, and the mask held while the Trainer trains.

    Args:
        masking: Which weights are masked. Its `seed` is the condition's, its `targets` are the classifier's, and its
            `num_samples` is by default all calibration rows of the datamodule.
        tune: What trains under the mask: `none` takes no optimization step, `head`, or `all`.
        **kwargs: As `Classifier`.

    Raises:
        MaskingError: If the masking options are out of range, or `targets` match nothing.
        BackboneError: If the weights to mask are not known and not named.
        OptionError: If `masking` sets what a condition decides otherwise.
    """

    trains = "none"

    def __init__(
        self,
        *,
        masking: MaskingOptions = DEFAULT_OPTIONS,
        tune: Literal["none", "head", "all"] = "none",
        **kwargs: Any,
    ) -> None:
        self.tune = self.trains = tune
        self.masking = masking_of(masking, kwargs.get("seed", 0))
        self._restored: Mask | None = None
        super().__init__(**kwargs)

    def adapt(self) -> None:
        """Check that there are weights to mask, then freeze what `tune` leaves out."""
        self.masking.options = replace(self.masking.options, targets=self.candidate_targets())
        find_candidates(self, self.masking.options.targets)
        if self.tune != "all":
            self.backbone.requires_grad_(False)
        if self.tune == "none":
            self.head.requires_grad_(False)
        self.train()

    def checkpoint_identity(self) -> dict[str, Any]:
        """Add the options that decide the mask."""
        made_by = mask_identity(self.masking.options) | {"targets": self.targets}
        return super().checkpoint_identity() | made_by | {"tune": self.tune}

    def configure_callbacks(self) -> list[Callback]:
        """Add the masking, after the check of the start that its gradient is taken at."""
        return [*super().configure_callbacks(), self.masking]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the mask, from which the masked weights of a frozen backbone are restored.

        A full checkpoint has it in the state of the callback already.
        """
        super().on_save_checkpoint(checkpoint)
        if self.masking.mask and "callbacks" not in checkpoint:
            checkpoint["mask"] = self.masking.mask.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mask the weights that the checkpoint left out.

        Raises:
            CheckpointError: As `Classifier`, and if there is no mask.
            MaskingError: If the mask is damaged or over other weights.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("callbacks", {}).get(self.masking.state_key, checkpoint)
        if not isinstance(state, dict) or "mask" not in state:
            raise CheckpointError(
                "The checkpoint holds no mask, without which its weights are not the arm's. Fit the condition again."
            )
        mask, weights = Mask.from_state_dict(state["mask"]), checkpoint["state_dict"]
        mask.check(self)
        self._restored = mask
        for name in mask.shapes:
            weights[name] = weights[name].masked_fill(mask.flags(name, weights[name].device), 0)

    def backbone_state(self) -> str:
        """Add the mask."""
        mask = self._restored or self.masking.mask
        return f"{super().backbone_state()}-{mask.digest if mask else 'unmasked'}"

    def setup(self, stage: str) -> None:
        """With `tune: none`, end the fit after the mask is applied: there is nothing to train."""
        super().setup(stage)
        if stage == "fit" and self.tune == "none":
            self.trainer.fit_loop.max_epochs = 0
