"""The callback: what the pure parts of this package do, at the right moments of a Trainer's run."""

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from tqdm.auto import tqdm

from influence_masking.errors import MaskingError
from influence_masking.gradients.batches import Batch, take_samples
from influence_masking.gradients.loaders import default_loader, iterate
from influence_masking.gradients.mean_gradient import Calibration, MeanGradient, Progress, take_gradient
from influence_masking.gradients.training_step import muted, training_loss
from influence_masking.masks.holding import Action, Hold
from influence_masking.masks.mask import Mask
from influence_masking.reporting import PREFIX, held_gradient, log_held_gradient, log_mask
from influence_masking.runtime.processes import Processes
from influence_masking.runtime.strategies import check_strategy, gradient_processes, restores_late, run_pending
from influence_masking.selection.candidates import find_candidates
from influence_masking.selection.counts import exact_count
from influence_masking.selection.lowest import Scope, Tail
from influence_masking.selection.scores import ScoreFunction, resolve_score, score_name
from influence_masking.snapshot import MATCHED, Snapshot

DEFAULT_FRACTION = 0.05
RESULTS = ("predicted_change", "measured_change", "loss_before", "loss_after", "seconds")


class InfluenceMasking(Callback):
    """Selects weights by one gradient over the training data, and zeroes, freezes or alone trains them.

    When ``Trainer.fit`` begins, the gradient of the mean loss over exactly ``num_samples`` samples is taken, every
    candidate weight gets a score, exactly the asked number of weights is selected, and what ``action`` says is done to
    them and held, bit for bit, after every optimizer step. A checkpoint carries the mask: a resumed run goes on with it
    and computes nothing.

    The score by default, sign(theta) * gradient, comes from the influence view of Chhabra et al., "What Data Benefits
    My Classifier?", ICLR 2024. Mind its sign: zeroing a weight changes the loss, to first order, by
    -|theta| * score, so the *lowest* scores are the weights whose removal *raises* the loss. `predicted_change` and
    `measured_change` say what the first-order theory expects of zeroing the mask and what zeroing it really does.

    The mask is made in ``on_fit_start``, where the weights are the ones that will be trained: a checkpoint is read, the
    module's own ``setup`` and ``configure_model`` have run, and parameters are on their device, in their type, sharded
    or equal on all processes. ``setup`` finds mistakes before that costs anything. Several of these callbacks act in
    their order; for a later one, the gradient of weights that an earlier one holds is zero. Alone it logs under
    ``masking/``, the first of several under ``masking_0/``, the next under ``masking_1/``.

    Example::

        trainer = Trainer(callbacks=InfluenceMasking(fraction=0.05, num_samples=1000))
        trainer.fit(model, train_dataloader)

    Args:
        fraction: Share of the candidates to select, between 0 and 1: exactly floor(fraction * candidates). 0.05 unless
            ``count`` is given.
        score: ``sign_gradient``, ``taylor``, ``snip``, ``gradient``, ``magnitude``, ``random``, ``random_matched``, the
            path of a function (``package.module.function``) or a function; see `scores`.
        tail: ``lowest`` or ``highest`` scores.
        scope: Rank over all candidates (``global``), or within each ``layer`` or ``tensor``.
        targets: Which parameters are candidates: suffixes of names, a regular expression of whole names, or None for
            the attention and MLP matrices of common transformers; see `find_candidates`.
        num_samples: The gradient is over exactly so many samples; None takes all calibration data.
        action: ``zero`` sets the selected weights to zero and holds them there, ``freeze`` holds them at their value,
            ``train_only`` trains nothing but them.
        mask_path: Take the mask of this file instead of making one: no gradient is taken, nothing is measured.
        seed: Of the order of shuffled calibration data and of the random scores.
        count: How many weights to select, instead of a fraction.
        micro_batch_size: Most samples in one forward and backward pass of the gradient; None takes the batches as the
            loader gives them.
        matched_score: The score of the mask that ``random_matched`` follows in tensors and sizes.

    Attributes:
        mask: The mask, once it is made.
        predicted_change: To first order, the change of the mean loss when the mask is zeroed.
        measured_change: The real change on the same samples, also when the action is not to zero.
        loss_before: The mean loss before.
        loss_after: The mean loss with the mask zeroed.
        seconds: Duration of ``gradient``, ``selection`` and ``measure``.

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
        self.fraction = DEFAULT_FRACTION if fraction is None and count is None else fraction
        self.count = count
        self.score, self.tail, self.scope = score, tail, scope
        self.targets = targets
        self.num_samples = num_samples
        self.action = action
        self.mask_path = mask_path
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.matched_score = matched_score
        self._check_options()
        self.mask: Mask | None = None
        self.predicted_change: float | None = None
        self.measured_change: float | None = None
        self.loss_before: float | None = None
        self.loss_after: float | None = None
        self.seconds: dict[str, float] = {}
        self._hold: Hold | None = None
        self._unlogged: list[tuple[int, Tensor]] = []  # steps, and norms of the held gradient

    @property
    def num_candidates(self) -> int | None:
        """How many weights could have been selected; None before the mask is made."""
        return self.mask.num_candidates if self.mask else None

    @property
    def num_masked(self) -> int | None:
        """How many weights are selected; None before the mask is made."""
        return self.mask.num_masked if self.mask else None

    def calibration_batches(self, trainer: Trainer) -> Iterable[Any]:
        """Yields the batches that the gradient is taken over; override it to choose others.

        Every process must see the same batches in the same order; they are divided afterwards. By default: those of the
        datamodule's ``calibration_dataloader()`` if it has one, else of the training dataloader.
        """
        yield from iterate(default_loader(trainer))

    def compute_loss(self, module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
        """Returns the mean loss over the samples of a batch; override it where ``training_step`` is not that.

        By default the loss of ``training_step``, with ``log`` and ``log_dict`` muted: the tensor that it returns, the
        ``"loss"`` of its dictionary, or the one that it gives to ``manual_backward``.
        """
        return training_loss(module, batch, batch_idx)

    def take_gradient(
        self, module: LightningModule, candidates: Mapping[str, nn.Parameter], calibration: Calibration
    ) -> MeanGradient:
        """Returns the gradient; override it to give one that was taken before, at these weights over these samples."""
        return take_gradient(module, candidates, calibration)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses, before anything costs time, a strategy that was not tested and targets that match nothing."""
        if stage != "fit":
            return
        check_strategy(trainer.strategy)
        if next(pl_module.parameters(), None) is not None and not _is_built_later(pl_module):
            find_candidates(pl_module, self.targets)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the mask unless there is one, and begins to hold it."""
        if not restores_late(trainer):
            self._begin(trainer, pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does the same where a checkpoint is read only after ``on_fit_start``."""
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does the same where no validation comes before."""
        self._begin(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a run that ended before it came to where the mask is made.

        Raises:
            MaskingError: If there is no mask.
        """
        if self.mask is None:
            raise MaskingError(
                f"Asked for a mask under {type(trainer.strategy).__name__}, found a run that neither trained nor "
                "validated: with this strategy the mask is made after the checkpoint is read, when either begins. Set "
                "`max_epochs` to 1 or more, or pass validation data."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """With ``train_only``, keeps parameters that are no candidates from training; logs what held weights get."""
        if self._hold:
            self._hold.drop_other_gradients()
            norm = held_gradient(trainer, self._hold)
            self._unlogged += [] if norm is None else [(trainer.global_step, norm)]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Gives the held weights their values again, whoever changed them; sends what was kept to the loggers."""
        if self._hold:
            self._hold.restore()
            run_pending(trainer.strategy.root_device)
        for step, norm in self._unlogged:
            log_held_gradient(trainer, step, norm, self._log_prefix(trainer))
        self._unlogged = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the hooks away when a run breaks off."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the hooks away."""
        self._release()

    @property
    def state_key(self) -> str:
        """Names the state by every option that the mask depends on."""
        return self._generate_state_key(**self._options())

    def state_dict(self) -> dict[str, Any]:
        """Returns the mask, as packed bits, and what is known of it."""
        if self.mask is None:
            return {}
        return {"mask": self.mask.state_dict()} | {name: getattr(self, name) for name in RESULTS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the mask of a checkpoint.

        Raises:
            MaskingError: If the state lacks a part, or its mask is damaged.
        """
        missing = [name for name in ("mask", *RESULTS) if name not in state_dict]
        if missing:
            raise MaskingError(
                f"Asked for the state of InfluenceMasking in a checkpoint, found no {missing[0]!r} in it."
            )
        self.mask = Mask.from_state_dict(state_dict["mask"])
        for name in RESULTS:
            setattr(self, name, state_dict[name])

    def snapshot(self, trainer: Trainer, module: LightningModule) -> Snapshot:
        """Takes the gradient that masks are made of; from it a sweep can go on to many masks."""
        candidates = find_candidates(module, self.targets)
        processes = gradient_processes(trainer)
        precision = trainer.precision_plugin
        # float16 has too narrow a range for a gradient whose loss is not scaled
        widest = precision.precision == "16-mixed"

        def loss_function(batch: Batch) -> Tensor:
            data = module._on_before_batch_transfer(precision.convert_input(batch.data))  # as the training loop does
            data = trainer.strategy.batch_to_device(data)
            with contextlib.nullcontext() if widest else precision.train_step_context(), muted(module):
                return self.compute_loss(module, data, batch.index)

        batches = self._take_batches(trainer, processes)
        calibration = Calibration(batches, loss_function, processes, self.micro_batch_size, _progress_of(trainer))
        return Snapshot(module, candidates, calibration, self.take_gradient(module, candidates, calibration))

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        if self._hold is not None:
            return
        if self.mask is None:
            self.mask = Mask.load(self.mask_path) if self.mask_path else self._make_mask(trainer, module)
        self._hold = Hold(module, self.mask, self.action, trainer.optimizers)

    def _make_mask(self, trainer: Trainer, module: LightningModule) -> Mask:
        if trainer.ckpt_path:
            rank_zero_warn(
                f"The checkpoint {trainer.ckpt_path} holds no mask of a callback with these options; a new one is made "
                "from the weights that it holds."
            )
        with isolate_rng():
            torch.manual_seed(self.seed)
            with self._timed("gradient"):
                snapshot = self.snapshot(trainer, module)
            with self._timed("selection"):
                mask = self._select(snapshot)
                _compare_digests(mask, gradient_processes(trainer))
            with self._timed("measure"):
                self.predicted_change = snapshot.predicted_change(mask)
                self.loss_before, self.loss_after = snapshot.loss, snapshot.measured_loss(mask)
                self.measured_change = self.loss_after - self.loss_before
            mask = replace(mask, provenance=self._provenance(mask, module, snapshot))
            self._report(trainer, mask, snapshot)
        return mask

    def _select(self, snapshot: Snapshot) -> Mask:
        k = self.count if self.fraction is None else exact_count(self.fraction, snapshot.num_candidates)
        assert k is not None
        return snapshot.select(k, self.score, self.tail, self.scope, self.seed, self.matched_score)

    def _report(self, trainer: Trainer, mask: Mask, snapshot: Snapshot) -> None:
        rank_zero_info(
            f"InfluenceMasking selected {mask.num_masked:,} of {mask.num_candidates:,} weights ({self.tail} "
            f"{score_name(self.score)}). Zeroing them: loss {self.loss_before:.6g} -> {self.loss_after:.6g} "
            f"({self.measured_change:+.3g}; first-order prediction {self.predicted_change:+.3g})."
        )
        if trainer.loggers:
            numbers = {name: getattr(self, name) for name in RESULTS if name != "seconds"}
            numbers |= {"masked": mask.num_masked, "candidates": mask.num_candidates}
            scores = snapshot.sample_scores(self.matched_score if self.score == MATCHED else self.score, self.seed)
            log_mask(trainer.loggers, mask, numbers, scores, trainer.global_step, self._log_prefix(trainer))

    def _log_prefix(self, trainer: Trainer) -> str:
        """Returns what the tags of this callback begin with: with a number if the Trainer has several of its kind."""
        callbacks = cast(Any, trainer).callbacks  # set where a type checker does not look
        alike = [callback for callback in callbacks if isinstance(callback, InfluenceMasking)]
        return PREFIX if len(alike) == 1 else f"{PREFIX}_{alike.index(self)}"

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[phase] = perf_counter() - start

    def _take_batches(self, trainer: Trainer, processes: Processes) -> list[Batch]:
        """Returns this process's share of the calibration data: every n-th batch of all."""
        stream = iter(self.calibration_batches(trainer))
        try:
            return [b for b in take_samples(stream, self.num_samples) if b.index % processes.count == processes.rank]
        finally:
            if isinstance(stream, Generator):
                stream.close()  # puts the loader's random generators back now

    def _provenance(self, mask: Mask, module: LightningModule, snapshot: Snapshot) -> dict[str, Any]:
        return self._options() | {
            "module": type(module).__qualname__,
            "num_samples": snapshot.gradient.num_samples,
            "num_masked": mask.num_masked,
            "num_candidates": mask.num_candidates,
            "predicted_change": self.predicted_change,
            "measured_change": self.measured_change,
        }

    def _release(self) -> None:
        if self._hold:
            self._hold.release()
        self._hold = None

    def _options(self) -> dict[str, Any]:
        targets = self.targets if isinstance(self.targets, str | None) else list(self.targets)
        options = {
            "fraction": self.fraction,
            "count": self.count,
            "score": score_name(self.score),
            "tail": self.tail,
            "scope": self.scope,
            "targets": targets,
            "num_samples": self.num_samples,
            "action": self.action,
            "mask_path": str(self.mask_path) if self.mask_path else None,
            "seed": self.seed,
        }
        return options | ({"matched_score": score_name(self.matched_score)} if self.score == MATCHED else {})

    def _check_options(self) -> None:
        if self.count is not None and self.fraction is not None:
            raise MaskingError(
                f"Asked for fraction={self.fraction} and count={self.count}: they are two ways to say one thing. "
                "Leave one out."
            )
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise MaskingError(f"Asked for fraction={self.fraction}, which is not between 0 and 1. Choose one that is.")
        for name in ("count", "num_samples", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise MaskingError(f"Asked for {name}={value!r}, which is not a whole number above 0. Choose one.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise MaskingError(f"Asked for seed={self.seed!r}, which is not a whole number. Choose one.")
        for name, allowed in (("tail", Tail), ("scope", Scope), ("action", Action)):
            if getattr(self, name) not in get_args(allowed):
                raise MaskingError(
                    f"Asked for {name}={getattr(self, name)!r}. Choose one of {list(get_args(allowed))}."
                )
        resolve_score(self.matched_score if self.score == MATCHED else self.score)


def _is_built_later(module: LightningModule) -> bool:
    return is_overridden("configure_model", module) or is_overridden("setup", module)


def _compare_digests(mask: Mask, processes: Processes) -> None:
    gathered = processes.gather(torch.tensor(list(bytes.fromhex(mask.digest)), dtype=torch.uint8))
    digests = [bytes(digest.tolist()).hex() for digest in gathered]
    if len(set(digests)) > 1:
        raise MaskingError(
            f"Asked for one mask on {processes.count} processes, found different ones: {[d[:12] for d in digests]}. "
            "Check that every process has the same weights and that `calibration_batches` yields the same batches."
        )


def _progress_of(trainer: Trainer) -> Progress:
    """Returns a progress bar over the micro-batches if the trainer shows one, on the first process."""
    bar = trainer.progress_bar_callback
    if bar is None or not trainer.is_global_zero or getattr(bar, "is_disabled", False):
        return iter
    return lambda batches: iter(tqdm(batches, desc="Gradient for the mask", unit="batch", leave=False))
