"""`--trainer.precision auto`: bf16 where the device multiplies it fast, float32 elsewhere."""

from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator

Precision = (
    Literal[64, 32, 16]
    | Literal["transformer-engine", "transformer-engine-float16", "16-true", "16-mixed", "bf16-true", "bf16-mixed"]
    | Literal["auto", "32-true", "64-true", "64", "32", "16", "bf16"]
)


class StudyTrainer(Trainer):
    """A Trainer that can choose its precision.

    Args:
        accelerator: As of the Trainer.
        precision: As of the Trainer, or `auto`: `bf16-mixed` on a CPU that has instructions for it (AVX-512 or AMX) and
            on a GPU that supports it, otherwise `32-true`. The results record which it is.
        **kwargs: As of the Trainer.
    """

    def __init__(
        self, *, accelerator: str | Accelerator = "auto", precision: Precision | None = None, **kwargs: Any
    ) -> None:
        chosen = automatic_precision(accelerator) if precision == "auto" else precision
        super().__init__(accelerator=accelerator, precision=chosen, **kwargs)


def automatic_precision(accelerator: str | Accelerator) -> Literal["bf16-mixed", "32-true"]:
    """Return the precision that is fast on a device and safe for training."""
    on_cpu = accelerator == "cpu"
    if accelerator == "auto":  # in the order in which the Trainer looks for them
        on_cpu = not (XLAAccelerator.is_available() or MPSAccelerator.is_available() or CUDAAccelerator.is_available())
    on_gpu = not on_cpu and CUDAAccelerator.is_available() and accelerator in ("auto", "gpu", "cuda")
    is_fast = (on_cpu and cpu_multiplies_bf16()) or (on_gpu and torch.cuda.is_bf16_supported(including_emulation=False))
    return "bf16-mixed" if is_fast else "32-true"


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bf16 matrices."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer torch has it
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
