"""One gradient of a model, and the masks, predictions and measurements made from it."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from influence_masking.errors import MaskingError
from influence_masking.gradients.batches import take_samples
from influence_masking.gradients.mean_gradient import Calibration, MeanGradient, calibrating, mean_loss, take_gradient
from influence_masking.masks import bits
from influence_masking.masks.enforcer import zeroed
from influence_masking.masks.mask import Mask
from influence_masking.runtime.processes import Ranks
from influence_masking.runtime.sharding import local_part, sharding_group
from influence_masking.selection.candidates import find_candidates
from influence_masking.selection.lowest import (
    Scope,
    Scores,
    Tail,
    Weights,
    first_order_change,
    sample_scores,
    select,
)
from influence_masking.selection.matching import select_matched
from influence_masking.selection.scores import RANDOM_MATCHED, ScoreFunction, resolve_score


class Snapshot:
    """The gradient of a module's mean loss with respect to its candidates, at its current weights.

    The snapshot refers to the module's own weights: it is out of date when they change.

    Args:
        module: The model.
        candidates: Its parameters that may be masked, by name.
        calibration: The data that the gradient was taken over.
        gradient: The result of `take_gradient` at these weights, now or earlier.
    """

    def __init__(
        self,
        module: nn.Module,
        candidates: Mapping[str, nn.Parameter],
        calibration: Calibration,
        gradient: MeanGradient,
    ) -> None:
        self.module = module
        self.candidates = candidates
        self.gradient = gradient
        self._calibration = calibration
        group = sharding_group(list(candidates.values()))
        self._processes = Ranks(group, next(iter(candidates.values())).device)

    @property
    def loss(self) -> float:
        """Mean loss at the current weights."""
        return self.gradient.loss

    @property
    def num_candidates(self) -> int:
        """Number of weights that may be masked."""
        return sum(parameter.numel() for parameter in self.candidates.values())

    @cached_property
    def weights(self) -> list[Weights]:
        """Local parts of the candidates with their gradients, flat."""
        parts, before = [], 0
        for name, parameter in self.candidates.items():
            local = local_part(name, parameter)
            theta, grad = local.tensor.reshape(-1), self.gradient.grads[name].reshape(-1)
            # selection has shapes that depend on the data, and XLA would compile a program for each
            if theta.device.type == "xla":
                theta, grad = theta.cpu(), grad.cpu()
            parts.append(Weights(name, theta, grad, before + local.start))
            before += parameter.numel()
        return parts

    def select(
        self,
        k: int,
        score: str | ScoreFunction = "sign_gradient",
        tail: Tail = "lowest",
        scope: Scope = "global",
        seed: int = 0,
        matched_score: str | ScoreFunction = "sign_gradient",
    ) -> Mask:
        """Select exactly k weights at one tail of a score.

        Args:
            k: Number of weights.
            score: A name of `SCORES`, `random_matched`, the path of a function, or a function.
            tail: Which end of the scores.
            scope: Rank globally, within each layer or within each tensor.
            seed: Seed for random scores.
            matched_score: Score of the informed mask that `random_matched` follows.

        Raises:
            MaskingError: If k is not between 1 and the number of candidates, a score is not a number, or the gradient
                is zero everywhere and gives all candidates the same score.
        """
        if not 0 < k <= self.num_candidates:
            raise MaskingError(
                f"Cannot select {k} weights of {self.num_candidates} candidates. Change `fraction`, `count` or "
                "`targets` to select at least one and at most all."
            )
        is_matched = score == RANDOM_MATCHED
        function = resolve_score(matched_score if is_matched else score, seed)
        if self._has_no_gradient and k < self.num_candidates and len(self.sample_scores(function).unique()) == 1:
            raise MaskingError(
                f"The gradient of all {self.num_candidates} candidates is zero, and the score {score!r} is the same "
                "for all. Check that the loss depends on them: below a layer whose weights are all zero, such as a "
                "new head, every gradient is zero. Train that layer first."
            )
        selected = select(self.weights, k, function, tail, scope, self._processes)
        if is_matched:
            selected = select_matched(self.weights, selected, seed, self._processes)
        return Mask(*self._whole(selected))

    @cached_property
    def _has_no_gradient(self) -> bool:
        """Whether the gradient of every candidate is zero, over all processes."""
        here = any(bool(part.grad.any()) for part in self.weights)
        return not self._processes.sum(torch.tensor(int(here)))

    def match(self, mask: Mask, seed: int = 0) -> Mask:
        """Return a random mask with as many weights of each tensor and of each decile of |theta| as a given mask.

        It is the control for the selection itself: it shares the tensors and weight sizes of the given mask and nothing
        else. `select(..., "random_matched")` matches the mask of `matched_score`.

        Raises:
            MaskingError: If the mask was made over other candidates; names the first that differs.
        """
        selected = [packed.to(part.theta.device) for packed, part in zip(self._local(mask), self.weights, strict=True)]
        return Mask(*self._whole(select_matched(self.weights, selected, seed, self._processes)))

    def sample_scores(self, score: str | ScoreFunction = "sign_gradient", seed: int = 0) -> Tensor:
        """Return about 260,000 scores drawn at random, to show their distribution."""
        function = resolve_score(score, seed)
        return sample_scores([Scores(part, function) for part in self.weights], self._processes)

    def predicted_change(self, mask: Mask) -> float:
        """Return the first-order change of the loss when the mask is zeroed: minus the sum of theta * grad.

        Raises:
            MaskingError: If the mask was made over other candidates; names the first that differs.
        """
        return first_order_change(self.weights, self._local(mask), self._processes)

    def measured_loss(self, mask: Mask, alpha: float = 1.0) -> float:
        """Return the mean loss with the selected weights times `1 - alpha`, and restore the weights."""
        with self.masked(mask, alpha):
            return mean_loss(self._calibration, self.gradient.micro_batch_size)

    @contextlib.contextmanager
    def masked(self, mask: Mask, alpha: float = 1.0) -> Iterator[None]:
        """Put the module into evaluation mode with the selected weights times `1 - alpha` inside, and restore it."""
        with calibrating(self.module, {}), zeroed(self.module, mask, alpha):
            yield

    def measured_change(self, mask: Mask) -> float:
        """Return the change of the loss on the same samples when the mask is zeroed."""
        return self.measured_loss(mask) - self.loss

    def _whole(self, selected: Sequence[Tensor]) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
        """Return the shapes and the packed bits of the whole candidates, joined from all processes, on the CPU."""
        shapes = {name: tuple(parameter.shape) for name, parameter in self.candidates.items()}
        if self._processes.count == 1:
            return shapes, {part.name: packed.cpu() for part, packed in zip(self.weights, selected, strict=True)}
        whole = {}
        for (name, shape), part, packed in zip(shapes.items(), self.weights, selected, strict=True):
            start = local_part(name, self.candidates[name]).start
            flags = torch.zeros(math.prod(shape), dtype=torch.bool, device=packed.device)
            flags[start : start + len(part)] = bits.unpack(packed, len(part))
            whole[name] = self._processes.sum(bits.pack(flags)).cpu()
        return shapes, whole

    def _local(self, mask: Mask) -> list[Tensor]:
        """Return this process's part of a mask over the same candidates, packed."""
        mask.check_shapes({name: tuple(parameter.shape) for name, parameter in self.candidates.items()})
        parts = [local_part(name, parameter) for name, parameter in self.candidates.items()]
        return [bits.pack(p.cut(mask.flags(name)).reshape(-1)) for name, p in zip(self.candidates, parts, strict=True)]


def take_snapshot(
    module: nn.Module,
    loader: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    targets: Sequence[str] | str | None = None,
    num_samples: int | None = None,
    micro_batch_size: int | None = None,
    seed: int = 0,
) -> Snapshot:
    """Take the gradient of any module without a Trainer.

    Args:
        module: The model, on its device.
        loader: Batches of samples.
        loss: Returns the mean loss of the module on a batch. The batch is already on the module's device.
        targets: Which parameters may be masked, as for `find_candidates`.
        num_samples: Number of samples; None takes all.
        micro_batch_size: Largest number of samples in one forward and backward pass.
        seed: Seed while samples are drawn and the loss is computed.

    Raises:
        MaskingError: If nothing matches, there are too few samples, or a gradient is not finite.
    """
    candidates = find_candidates(module, targets)
    device = next(iter(candidates.values())).device
    with isolate_rng():
        torch.manual_seed(seed)
        calibration = Calibration(
            list(take_samples(loader, num_samples)),
            lambda batch: loss(module, move_data_to_device(batch.data, device)),
            micro_batch_size=micro_batch_size,
        )
        return Snapshot(module, candidates, calibration, take_gradient(module, candidates, calibration))
