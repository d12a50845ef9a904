"""The callback: when a mask is made, held and released in a Trainer's run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from influence_masking.errors import MaskingError
from influence_masking.gradients.loaders import default_loader, iterate
from influence_masking.gradients.mean_gradient import Calibration, MeanGradient, take_gradient
from influence_masking.gradients.training_step import training_loss
from influence_masking.making import MEASUREMENT_FIELDS, make_mask
from influence_masking.masks.enforcer import Action, MaskEnforcer
from influence_masking.masks.mask import Mask
from influence_masking.options import MaskingOptions
from influence_masking.reporting import TAG_PREFIX, held_gradient, log_held_gradient, report_mask
from influence_masking.runtime.strategies import check_strategy, gradient_processes
from influence_masking.runtime.xla import run_pending
from influence_masking.selection.candidates import find_candidates
from influence_masking.selection.lowest import Scope, Tail
from influence_masking.selection.scores import ScoreFunction
from influence_masking.snapshot import Snapshot
from influence_masking.trainer_data import trainer_calibration


class InfluenceMasking(Callback):
    """Select weights by one gradient over the training data, then zero them, freeze them or train only them.

    When `Trainer.fit` begins, the callback takes the gradient of the mean loss over exactly `num_samples` samples,
    scores every candidate weight and selects exactly the requested number. `action` is applied to them and held, bit
    for bit, after every optimizer step. Checkpoints contain the mask: a resumed run uses it and computes nothing.

    The default score, sign(theta) * gradient, comes from the influence view of Chhabra et al., "What Data Benefits My
    Classifier?", ICLR 2024. Note its sign: zeroing a weight changes the loss, to first order, by -|theta| * score, so
    the *lowest* scores are the weights whose removal *raises* the loss. `predicted_change` is what first-order theory
    expects of zeroing the mask, `measured_change` what zeroing it really does.

    Several of these callbacks act in their order; for a later one, the gradient of weights that an earlier one holds
    is zero. A single one logs under `masking/`, the first of several under `masking_0/`, the next under `masking_1/`.

    Example::

        trainer = Trainer(callbacks=InfluenceMasking(fraction=0.05, num_samples=1000))
        trainer.fit(model, train_dataloader)

    The arguments are the fields of `MaskingOptions`, which describes them.

    Attributes:
        options: The options.
        mask: The mask; None before it is made.
        predicted_change, measured_change, loss_before, loss_after, seconds: The fields of `Measurement`: the effect of
            zeroing the mask, whatever the action.

    Raises:
        MaskingError: If an option is out of its range, or both a fraction and a count are given.
    """

    def __init__(
        self,
        fraction: float | None = None,
        score: str | ScoreFunction = "sign_gradient",
        tail: Tail = "lowest",
        scope: Scope = "global",
        targets: Sequence[str] | str | None = None,
        num_samples: int | None = 1000,
        action: Action = "zero",
        mask_path: str | Path | None = None,
        seed: int = 0,
        *,
        count: int | None = None,
        micro_batch_size: int | None = None,
        matched_score: str | ScoreFunction = "sign_gradient",
    ) -> None:
        self.options = MaskingOptions(
            *(fraction, score, tail, scope, targets, num_samples, action, mask_path, seed),
            *(count, micro_batch_size, matched_score),
        )
        self.mask: Mask | None = None
        self.predicted_change: float | None = None
        self.measured_change: float | None = None
        self.loss_before: float | None = None
        self.loss_after: float | None = None
        self.seconds: dict[str, float] = {}
        self._enforcer: MaskEnforcer | None = None
        self._unlogged: list[tuple[int, Tensor]] = []  # step, and norm of the held weights' gradient

    @classmethod
    def from_options(cls, options: MaskingOptions) -> Self:
        """Make a callback from an options object."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(options)})

    @property
    def num_candidates(self) -> int | None:
        """Number of weights that could have been selected; None before the mask is made."""
        return self.mask.num_candidates if self.mask else None

    @property
    def num_masked(self) -> int | None:
        """Number of selected weights; None before the mask is made."""
        return self.mask.num_masked if self.mask else None

    def calibration_batches(self, trainer: Trainer) -> Iterable[Any]:
        """Yield the batches that the gradient is taken over; override it to choose others.

        Every process must yield the same batches in the same order: they are divided between processes afterwards. By
        default they come from the datamodule's `calibration_dataloader()` if it has one, otherwise from the training
        dataloader.
        """
        yield from iterate(default_loader(trainer))

    def compute_loss(self, module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean loss over the samples of a batch; override it where `training_step` returns something else.

        By default it is the loss of `training_step`, with `log` and `log_dict` muted: the tensor that it returns, the
        `"loss"` of the dictionary that it returns, or the tensor that it passes to `manual_backward`.
        """
        return training_loss(module, batch, batch_idx)

    def take_gradient(
        self, module: LightningModule, candidates: Mapping[str, nn.Parameter], calibration: Calibration
    ) -> MeanGradient:
        """Return the gradient; override it to reuse one that was taken at these weights over these samples."""
        return take_gradient(module, candidates, calibration)

    def snapshot(self, trainer: Trainer, module: LightningModule) -> Snapshot:
        """Take the gradient that masks are made from; a sweep can make many masks from it."""
        candidates = find_candidates(module, self.options.targets)
        calibration = trainer_calibration(
            trainer, module, self.calibration_batches(trainer), self.compute_loss, self.options
        )
        return Snapshot(module, candidates, calibration, self.take_gradient(module, candidates, calibration))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse untested strategies and targets that match nothing, before anything costs time."""
        if stage != "fit":
            return
        check_strategy(trainer.strategy)
        # a callback's `setup` runs before the module's own, which may be what makes the parameters
        is_built_later = is_overridden("configure_model", pl_module) or is_overridden("setup", pl_module)
        if not is_built_later and next(pl_module.parameters(), None) is not None:
            find_candidates(pl_module, self.options.targets)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the mask unless there is one, and hold it from now on.

        `setup` is too early: only now a checkpoint has been read and parameters are final. The move to XLA makes new
        parameters, on which hooks of `setup` would be missing, and `configure_model` shards them.
        """
        # with sharded models a checkpoint is read after this hook
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._begin(trainer, pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin here where the checkpoint is read after `on_fit_start`, so that validation sees the masked model."""
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin here where the checkpoint is read after `on_fit_start` and there is no sanity check."""
        self._begin(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that ended before a mask could be made.

        Raises:
            MaskingError: If there is no mask.
        """
        if self.mask is None:
            raise MaskingError(
                f"No mask was made: under {type(trainer.strategy).__name__} it is made when training or validation "
                "begins, and the run had neither. Set `max_epochs` to 1 or more, or pass validation data."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Measure the held gradient; with `train_only`, keep parameters that are not candidates from training."""
        if self._enforcer:
            self._enforcer.drop_other_gradients()
            norm = held_gradient(trainer, self._enforcer)
            self._unlogged += [] if norm is None else [(trainer.global_step, norm)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Restore the held weights, whatever changed them, and log the held gradient."""
        if self._enforcer:
            self._enforcer.restore()
            run_pending(trainer.strategy.root_device)
        for step, norm in self._unlogged:
            log_held_gradient(trainer, step, norm, self._log_prefix(trainer))
        self._unlogged = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks: Lightning calls no `teardown` after an exception."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hooks."""
        self._release()

    @property
    def state_key(self) -> str:
        """Key of the callback's state in a checkpoint, with every option that the mask depends on."""
        return self._generate_state_key(**self.options.as_record())

    def state_dict(self) -> dict[str, Any]:
        """Return the mask as packed bits, and its measurement."""
        if self.mask is None:
            return {}
        return {"mask": self.mask.state_dict()} | {name: getattr(self, name) for name in MEASUREMENT_FIELDS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the mask from a checkpoint.

        Raises:
            MaskingError: If the state lacks a part, or its mask is damaged.
        """
        if missing := [name for name in ("mask", *MEASUREMENT_FIELDS) if name not in state_dict]:
            raise MaskingError(
                f"The checkpoint's state of InfluenceMasking is damaged: it has no {missing[0]!r}. Use another "
                "checkpoint."
            )
        self.mask = Mask.from_state_dict(state_dict["mask"])  # keeps its tensors: Lightning passes a deep copy
        vars(self).update({name: state_dict[name] for name in MEASUREMENT_FIELDS})

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        if self._enforcer is None:
            if self.mask is None:
                path = self.options.mask_path
                self.mask = Mask.load(path) if path else self._make_mask(trainer, module)
            self._enforcer = MaskEnforcer(module, self.mask, self.options.action, trainer.optimizers)

    def _make_mask(self, trainer: Trainer, module: LightningModule) -> Mask:
        if trainer.ckpt_path:
            rank_zero_warn(
                f"The checkpoint {trainer.ckpt_path} has no mask made with these options. A new mask is made from the "
                "weights in the checkpoint."
            )
        with isolate_rng():  # training draws the same numbers with and without this callback
            torch.manual_seed(self.options.seed)
            processes = gradient_processes(trainer)
            mask, measurement, snapshot = make_mask(lambda: self.snapshot(trainer, module), self.options, processes)
            report_mask(trainer, mask, measurement, snapshot, self.options, self._log_prefix(trainer))
        vars(self).update(vars(measurement))
        return mask

    def _log_prefix(self, trainer: Trainer) -> str:
        alike = [callback for callback in trainer.callbacks if isinstance(callback, InfluenceMasking)]  # type: ignore[attr-defined]
        return TAG_PREFIX if len(alike) == 1 else f"{TAG_PREFIX}_{alike.index(self)}"

    def _release(self) -> None:
        if self._enforcer:
            self._enforcer.release()
        self._enforcer = None
