"""One gradient for all arms that mask the same start: the masking callback, with the latest gradient kept."""

import hashlib
from collections.abc import Mapping
from time import perf_counter
from typing import Any, ClassVar

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from influence_masking import Calibration, InfluenceMasking, MeanGradient


class SharedGradientMasking(InfluenceMasking):
    """An `InfluenceMasking` that takes the gradient of the same weights over the same samples once a process.

    Arms that differ in score, tail or what they train afterwards begin from one gradient. The latest is kept, as large
    as the candidates in float32.

    Attributes:
        gradient_shared: Whether an earlier callback had taken the gradient.
        gradient_seconds: What it took, then or now; None before.
    """

    _latest: ClassVar[tuple[str, MeanGradient, float] | None] = None

    gradient_shared = False
    gradient_seconds: float | None = None

    @classmethod
    def forget(cls) -> None:
        """Gives the memory of the latest gradient back."""
        SharedGradientMasking._latest = None

    def take_gradient(
        self, module: LightningModule, candidates: Mapping[str, nn.Parameter], calibration: Calibration
    ) -> MeanGradient:
        """Returns the latest gradient where it is the one that is asked for, else a new one."""
        key, latest = gradient_key(module, candidates, calibration), SharedGradientMasking._latest
        self.gradient_shared = latest is not None and latest[0] == key
        if latest is None or latest[0] != key:
            SharedGradientMasking._latest = None  # before: there may not be memory for both
            start = perf_counter()
            gradient = super().take_gradient(module, candidates, calibration)
            latest = SharedGradientMasking._latest = (key, gradient, perf_counter() - start)
        self.gradient_seconds = latest[2]
        return latest[1]


def gradient_key(module: Any, candidates: Mapping[str, nn.Parameter], calibration: Calibration) -> str:
    """SHA-256 of all that a gradient depends on: the weights, the samples in their groups, and how it is computed.

    Args:
        module: A classifier of the study.
        candidates: What the gradient is taken of.
        calibration: What it is taken over.
    """
    first = next(iter(candidates.values()))
    arithmetic = (module.trainer.precision, first.device, first.dtype, module.compiled)
    groups = (calibration.micro_batch_size, calibration.processes.count)
    digest = hashlib.sha256(f"{module.backbone_fingerprint} {arithmetic} {groups} {list(candidates)}".encode())
    tensors = [*module.head.parameters(), *(tensor for batch in calibration.batches for tensor in batch.data.values())]
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
