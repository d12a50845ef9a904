"""The masking callback of arms: options that fit a condition, and one gradient for all arms with the same start."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from time import perf_counter
from typing import Any, cast

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from influence_masking import Calibration, InfluenceMasking, MaskingOptions, MeanGradient
from modules.caches import TimedGradient
from modules.errors import OptionError
from modules.store import Content, weights_digest

DEFAULT_OPTIONS = MaskingOptions(num_samples=None)
"""The gradient is taken over all calibration rows of the datamodule: its `calibration_size`."""

SET_ELSEWHERE = {
    "targets": "model.targets",
    "seed": "seed_everything",
    "action": "the arm itself, which sets masked weights to zero",
}
"""Options that a condition decides by another key."""


def masking_of(
    options: MaskingOptions, seed: int, set_elsewhere: Mapping[str, str] = SET_ELSEWHERE
) -> "SharedGradientMasking":
    """Return the callback of an arm.

    Args:
        options: The arm's options.
        seed: Seed of the condition.
        set_elsewhere: Options that are decided by something else, and by what.

    Raises:
        OptionError: If one of these options is set.
    """
    for name, instead in set_elsewhere.items():
        value, default = getattr(options, name), getattr(DEFAULT_OPTIONS, name)
        if value != default:
            raise OptionError(f"model.masking.{name} is {value!r}, but this arm takes it from {instead}. Leave it out.")
    return SharedGradientMasking.from_options(replace(options, seed=seed))


def mask_identity(options: MaskingOptions) -> dict[str, Any]:
    """Return the options that decide which weights are masked, as JSON values, for the identity of a checkpoint."""
    known = {field.name for field in fields(MaskingOptions)} - SET_ELSEWHERE.keys()
    return {name: value for name, value in options.as_record().items() if name in known}


class SharedGradientMasking(InfluenceMasking):
    """`InfluenceMasking` that takes its gradient from the module's caches if it is there.

    Arms that differ in score, tail or in what they train need the same gradient.

    Attributes:
        gradient_shared: Whether an earlier condition took the gradient, in this process or an earlier one.
        gradient_seconds: Seconds that the gradient took, now or earlier; None before it is taken.
    """

    gradient_shared = False
    gradient_seconds: float | None = None

    def take_gradient(
        self, module: LightningModule, candidates: Mapping[str, nn.Parameter], calibration: Calibration
    ) -> MeanGradient:
        """Return the cached gradient, or a new one."""
        classifier, take = cast(Any, module), super().take_gradient
        self.gradient_shared = True

        def make() -> TimedGradient:
            self.gradient_shared, start = False, perf_counter()
            with classifier.arithmetic.unchanged():
                return take(module, candidates, calibration), perf_counter() - start

        key = gradient_key(classifier, candidates, calibration)
        is_stored = classifier.store is not None and calibration.processes.count == 1
        find = partial(_stored_gradient, classifier, key, make) if is_stored else make
        gradient, self.gradient_seconds = classifier.caches.gradients.get(key, find)
        return gradient


def _stored_gradient(module: Any, key: str, make: Callable[[], TimedGradient]) -> TimedGradient:
    """Return the gradient and its seconds, read from the module's store if they are there."""

    def content() -> Content:
        gradient, seconds = make()
        known = {name: getattr(gradient, name) for name in ("loss", "num_samples", "micro_batch_size")}
        return gradient.grads, known | {"seconds": seconds}

    grads, known = module.store.get(f"gradient/{key}/{weights_digest(module.backbone)}", content)
    seconds = known.pop("seconds")
    return MeanGradient({name: grad.to(module.device) for name, grad in grads.items()}, **known), seconds


def gradient_key(module: Any, candidates: Mapping[str, nn.Parameter], calibration: Calibration) -> str:
    """Return a SHA-256 of everything that a gradient depends on: weights, samples, how they are grouped, arithmetic.

    Args:
        module: A classifier of the study.
        candidates: Parameters that the gradient is taken for.
        calibration: Samples that it is taken over.
    """
    first = next(iter(candidates.values()))
    arithmetic = (module.trainer.precision, first.device, first.dtype, module.compiled, module.pooling)
    groups = (calibration.micro_batch_size, calibration.processes.count)
    digest = hashlib.sha256(f"{module.backbone_fingerprint} {arithmetic} {groups} {list(candidates)}".encode())
    tensors = [
        *module.head.state_dict().values(),
        *(tensor for batch in calibration.batches for tensor in batch.data.values()),
    ]
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
