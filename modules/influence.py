"""Arm B: the weights that one gradient calls detrimental are set to zero. Control arms are configs of this one."""

from typing import Any, Literal

from jsonargparse.typing import OpenUnitInterval
from lightning.pytorch import Callback

from influence_masking import Mask, find_candidates
from modules.checkpoints import CheckpointError
from modules.classifier import Classifier
from modules.shared_gradient import SharedGradientMasking


class Influence(Classifier):
    """Masks `fraction` of the attention and MLP weights by their score, then trains nothing, the head, or everything.

    The masking is the work of the `InfluenceMasking` callback, which this module brings along: one gradient over the
    training split at setup, and the mask held while the Trainer trains.

    Args:
        fraction: Share of the candidates that is masked.
        score: Name of a score in `influence_masking` (`sign_gradient`: sign(theta) * dL/dtheta).
        tail: Which end of the scores is masked. Zeroing theta changes the loss to first order by -|theta| * score,
            so the source document's rule, `lowest`, takes the weights whose removal raises the loss.
        scope: Whether scores are ranked over all candidates, within each layer, or within each tensor.
        micro_batch_size: Most rows in one pass of the gradient; None takes the datamodule's groups. A smaller one saves
            memory.
        tune: What trains under the mask: `none` takes no optimisation step, `head`, or `all`.
        **kwargs: As `Classifier`.

    Raises:
        MaskingError: If the masking options are out of range, or `targets` match nothing.
        BackboneError: As `Classifier`, and if the weights to mask are not known and not named.
    """

    def __init__(
        self,
        *,
        fraction: OpenUnitInterval = 0.05,
        score: str = "sign_gradient",
        tail: Literal["lowest", "highest"] = "lowest",
        scope: Literal["global", "layer", "tensor"] = "global",
        micro_batch_size: int | None = None,
        tune: Literal["none", "head", "all"] = "none",
        **kwargs: Any,
    ) -> None:
        self.tune = tune
        # before the backbone is loaded, so that a wrong option is found at once
        self.masking = SharedGradientMasking(
            fraction=float(fraction),
            score=score,
            tail=tail,
            scope=scope,
            num_samples=None,  # all that the datamodule gives: its calibration_size
            micro_batch_size=micro_batch_size,
            seed=kwargs.get("seed", 0),
        )
        self._restored: Mask | None = None
        super().__init__(**kwargs)

    def adapt(self) -> None:
        """Leaves trainable what `tune` says, once it is certain that there are weights to mask."""
        self.masking.targets = self.candidate_targets()
        find_candidates(self, self.masking.targets)
        if self.tune != "all":
            self.backbone.requires_grad_(False)
        if self.tune == "none":
            self.head.requires_grad_(False)
        self.train()

    def identity(self) -> dict[str, Any]:
        """Adds what the mask was made by."""
        made_by = {name: getattr(self.masking, name) for name in ("fraction", "score", "tail", "scope")}
        return super().identity() | made_by | {"targets": self.targets, "tune": self.tune}

    def configure_callbacks(self) -> list[Callback]:
        """Adds the masking, after the check of the start that its gradient is taken at."""
        return [*super().configure_callbacks(), self.masking]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the mask, from which the masked weights of a frozen backbone are made again."""
        super().on_save_checkpoint(checkpoint)
        if self.masking.mask:
            checkpoint["mask"] = self.masking.mask.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Masks the weights that the checkpoint left out.

        Raises:
            CheckpointError: As `Classifier`, and if there is no mask.
            MaskingError: If the mask is damaged or over other weights.
        """
        super().on_load_checkpoint(checkpoint)
        if "mask" not in checkpoint:
            raise CheckpointError(
                "The checkpoint holds no mask, without which its weights are not the arm's. Fit again."
            )
        mask, weights = Mask.from_state_dict(checkpoint["mask"]), checkpoint["state_dict"]
        mask.check(self)
        self._restored = mask
        for name in mask.shapes:
            weights[name] = weights[name].masked_fill(mask.flags(name, weights[name].device), 0)

    def backbone_state(self) -> str:
        """Adds the mask."""
        mask = self._restored or self.masking.mask
        return f"{super().backbone_state()}-{mask.digest if mask else 'unmasked'}"

    def setup(self, stage: str) -> None:
        """With `tune: none` there is nothing to train: the fit ends after the mask is applied."""
        super().setup(stage)
        if stage == "fit" and self.tune == "none":
            self.trainer.fit_loop.max_epochs = 0
