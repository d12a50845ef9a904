"""The gradient of the mean loss over many samples with respect to the candidates, one micro-batch at a time.

The gradient of each micro-batch, times its number of samples, is added to a float64 sum and freed at once, parameter by
parameter, during the backward pass. The product of a float32 gradient and a count is exact in float64, and a sum of a
few thousand products nearly so. After one rounding to float32 at the end, the result does not depend on the order of
the micro-batches or on how they are divided over processes. It does depend, in its last bits, on which samples share a
micro-batch, because the model computes in its own type: for masks equal to the bit, keep the micro-batches the same.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.memory import is_out_of_cpu_memory
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchmetrics import Metric

from influence_masking.errors import MaskingError
from influence_masking.gradients.batches import CalibrationBatch, split
from influence_masking.runtime.processes import SINGLE_PROCESS, Ranks
from influence_masking.runtime.sharding import local_part
from influence_masking.runtime.xla import run_pending

SUM_PIECE_SIZE = 1 << 17  # elements per addition on the CPU: torch first copies them to float64

LossFunction = Callable[[CalibrationBatch], Tensor]
Progress = Callable[[Sequence[CalibrationBatch]], Iterator[CalibrationBatch]]


@dataclass(frozen=True)
class Calibration:
    """The data that a gradient is taken over, and how it is taken.

    Attributes:
        batches: This process's share of the calibration data.
        loss_function: Returns the mean loss over the samples of a micro-batch, with its autograd graph.
        processes: The processes that the data is divided over.
        micro_batch_size: Largest number of samples in one forward and backward pass; None keeps the batches.
        progress: Iterates over the micro-batches and shows the progress.
    """

    batches: Sequence[CalibrationBatch]
    loss_function: LossFunction
    processes: Ranks = SINGLE_PROCESS
    micro_batch_size: int | None = None
    progress: Progress = iter


@dataclass(frozen=True)
class MeanGradient:
    """The result of one pass over the calibration data.

    Attributes:
        grads: Gradient of the mean loss by candidate, with the shape of the parameter's local part: float64 for a
            parameter in float64, float32 for all others.
        loss: Mean loss.
        num_samples: Number of samples.
        micro_batch_size: Largest number of samples in one forward and backward pass.
    """

    grads: dict[str, Tensor]
    loss: float
    num_samples: int
    micro_batch_size: int


def take_gradient(module: nn.Module, candidates: Mapping[str, nn.Parameter], calibration: Calibration) -> MeanGradient:
    """Return the `mean_gradient` of a module in evaluation mode, and restore the module."""
    with calibrating(module, candidates):
        return mean_gradient(candidates, calibration)


def mean_gradient(candidates: Mapping[str, nn.Parameter], calibration: Calibration) -> MeanGradient:
    """Return the gradient of the mean loss over all samples of all processes.

    It takes 8 bytes of memory per candidate for the sums (4 where the device has no float64), the gradients of one
    parameter, and what one micro-batch needs. If a micro-batch does not fit, the pass starts again with half the size,
    with a warning. With sharded parameters that is an error, because the other processes would wait for this one.

    Args:
        candidates: The parameters; each requires a gradient.
        calibration: The data and how to take the gradient.

    Raises:
        MaskingError: If a gradient is not finite (names the parameter), or if the loss is not finite, is not one number
            or has no gradient.
        RuntimeError: The device's own error, if not even one sample fits.
    """
    largest = max((batch.size for batch in calibration.batches), default=1)
    size = min(calibration.micro_batch_size or largest, largest)
    while True:
        try:
            sums, losses = _accumulate(candidates, calibration, size)
            break
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            _check_can_halve(error, size, candidates)
            size = math.ceil(size / 2)
        torch.cuda.empty_cache()  # after the `except`: the error's traceback keeps the pass's tensors alive
        for parameter in candidates.values():
            parameter.grad = None  # left by the interrupted backward pass
        rank_zero_warn(
            f"The device ran out of memory. The gradient pass starts again with at most {size} samples at a time. This "
            "changes the last bits of the gradient."
        )
    loss, num_samples = _mean(losses, calibration.processes)
    grads = _finish(candidates, sums, num_samples, calibration.processes)
    # after the gradients, whose error names a parameter
    _check_finite_loss(loss, num_samples)
    return MeanGradient(grads, loss, num_samples, size)


@torch.no_grad()
def mean_loss(calibration: Calibration, micro_batch_size: int) -> float:
    """Return the mean loss over all samples of all processes, without a gradient."""
    losses = []
    for piece in (piece for batch in calibration.batches for piece in split(batch, micro_batch_size)):
        losses.append((piece.size, calibration.loss_function(piece)))
        run_pending(losses[-1][1].device)
    loss, num_samples = _mean(losses, calibration.processes)
    _check_finite_loss(loss, num_samples)
    return loss


@contextlib.contextmanager
def calibrating(module: nn.Module, candidates: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Put a module into the state for taking the gradient, and restore it afterwards, also after an exception.

    Inside, the module is in evaluation mode, gradients are None and only the candidates require one. Afterwards modes,
    buffers, `requires_grad` and gradients are restored, and metrics are reset.
    """
    parameters = list(module.parameters())
    wanted = {id(parameter) for parameter in candidates.values()}
    states = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
    modes = [(child, child.training) for child in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        module.eval()
        for parameter in parameters:
            parameter.grad = None
            if parameter.is_floating_point():
                parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for child, mode in modes:
            child.training = mode
        for parameter, requires_grad, grad in states:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for child in module.modules():
            if isinstance(child, Metric):
                child.reset()


class _Sums:
    """Sums of the gradients that backward passes leave at parameters; each gradient is freed when it is added."""

    def __init__(self, candidates: Mapping[str, nn.Parameter]) -> None:
        self.weight = 1
        self.by_name: dict[str, Tensor] = {}
        self._handles = [
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: self._add(name, p))
            for name, parameter in candidates.items()
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _add(self, name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        grad = local_part(name, parameter.grad).tensor
        if name not in self.by_name:
            self.by_name[name] = torch.zeros(grad.shape, dtype=_sum_type(grad.device), device=grad.device)
        total, grad = self.by_name[name].view(-1), grad.reshape(-1)
        size = SUM_PIECE_SIZE if grad.device.type == "cpu" else max(grad.numel(), 1)
        for some_total, some_grad in zip(total.split(size), grad.split(size), strict=True):
            some_total.add_(some_grad, alpha=self.weight)
        parameter.grad = None


def _accumulate(
    candidates: Mapping[str, nn.Parameter], calibration: Calibration, size: int
) -> tuple[dict[str, Tensor], list[tuple[int, Tensor]]]:
    """Return the gradients summed over samples, by candidate, and the size and mean loss of each micro-batch."""
    pieces = [piece for batch in calibration.batches for piece in split(batch, size)]
    sums, losses = _Sums(candidates), []
    try:
        for piece in calibration.progress(pieces):
            loss = calibration.loss_function(piece)
            _check_loss(loss)
            sums.weight = piece.size
            loss.backward()
            losses.append((piece.size, loss.detach()))
            run_pending(loss.device)
    finally:
        sums.close()
    return sums.by_name, losses


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says that memory is full: on CUDA, on the CPU, or on XLA by its status code."""
    return (
        isinstance(error, torch.OutOfMemoryError) or is_out_of_cpu_memory(error) or "RESOURCE_EXHAUSTED" in str(error)
    )


def _check_can_halve(error: RuntimeError, size: int, candidates: Mapping[str, nn.Parameter]) -> None:
    if size == 1:
        error.add_note("Out of memory for the gradient of a single sample. Use a larger device or a smaller model.")
        raise error
    if any(isinstance(parameter, DTensor) for parameter in candidates.values()):
        error.add_note(
            f"Out of memory for the gradient of {size} samples. With sharded parameters one process cannot start again "
            f"alone. Set `micro_batch_size` to less than {size}."
        )
        raise error


def _finish(
    candidates: Mapping[str, nn.Parameter],
    sums: dict[str, Tensor],
    num_samples: int,
    processes: Ranks,
) -> dict[str, Tensor]:
    """Sum over processes, divide by the number of samples, round and check, one parameter at a time."""
    used = processes.sum(torch.tensor([name in sums for name in candidates], dtype=torch.int64)).tolist()
    grads = {}
    for name, parameter in candidates.items():
        local = local_part(name, parameter).tensor
        total = sums.pop(name, None)
        if total is None:
            total = torch.zeros(local.shape, dtype=_sum_type(local.device), device=local.device)
        mean = processes.sum(total).div_(num_samples)
        grads[name] = mean if local.dtype == torch.float64 else mean.float()
        _check_finite(name, grads[name])
    if unused := [name for name, times in zip(candidates, used, strict=True) if not times]:
        rank_zero_warn(
            f"The loss does not depend on {len(unused)} of {len(candidates)} candidates, whose gradient is taken as 0: "
            f"{unused[:5]}. Leave them out of `targets` if they are not part of the model that you train."
        )
    return grads


def _mean(losses: list[tuple[int, Tensor]], processes: Ranks) -> tuple[float, int]:
    """Return the mean over samples, rounded once so that it does not depend on their order, and their number."""
    here = torch.tensor([(size, float(loss)) for size, loss in losses], dtype=torch.float64)
    everyone = torch.cat(processes.gather(here.view(-1))).view(-1, 2)
    num_samples = int(everyone[:, 0].sum())
    return _sum(everyone[:, 0] * everyone[:, 1]) / num_samples, num_samples


def _sum(values: Tensor) -> float:
    """Return the sum, rounded once; `math.fsum` would raise on infinities."""
    return math.fsum(values.tolist()) if values.isfinite().all() else values.sum().item()


def _check_loss(loss: Tensor) -> None:
    if loss.numel() != 1 or not loss.requires_grad:
        found = f"shape {tuple(loss.shape)}" if loss.numel() != 1 else "a loss that depends on no candidate"
        raise MaskingError(
            f"The loss must be one number with a gradient, found {found}. Check that it is a mean, is not "
            "detached or computed under `torch.no_grad`, and depends on parameters that `targets` selects."
        )


def _check_finite_loss(loss: float, num_samples: int) -> None:
    if not math.isfinite(loss):
        raise MaskingError(
            f"The mean loss of {num_samples} samples is not finite: found {loss}. Check the data and the weights."
        )


def _check_finite(name: str, grad: Tensor) -> None:
    if not grad.sum().isfinite() and not (finite := grad.isfinite()).all():
        raise MaskingError(
            f"The gradient of {name} is not finite: found {int((~finite).sum())} of {grad.numel()} elements infinite "
            "or NaN. Check the data and the weights, or train in a type with a wider range."
        )


def _sum_type(device: torch.device) -> torch.dtype:
    """Return float64 where the device supports it."""
    return torch.float32 if device.type in ("mps", "xla") else torch.float64
