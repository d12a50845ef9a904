"""One gradient of the mean loss over many samples, a micro-batch at a time, for the candidates alone.

The gradient of every micro-batch is added, times its number of samples, to a float64 sum and freed at once, parameter
by parameter, while the backward pass goes on. A product of a float32 gradient and a count is exact in float64 and the
sum of a few thousand of them all but exact, so neither the order of the micro-batches nor how they are divided over
processes shows after the one rounding to float32 at the end. Which samples share a micro-batch does show in the last
bits, because the model computes in its own type: for equal masks to the bit, keep the groups the same.
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
from influence_masking.gradients.batches import Batch, split
from influence_masking.runtime.processes import ALONE, Processes
from influence_masking.runtime.sharding import local_part
from influence_masking.runtime.xla import run_pending

PIECE = 1 << 17  # elements added at a time on the CPU, where torch makes a copy in the wider type first

LossFunction = Callable[[Batch], Tensor]
Progress = Callable[[Sequence[Batch]], Iterator[Batch]]


@dataclass(frozen=True)
class Calibration:
    """What a gradient is taken over, and how.

    Attributes:
        batches: This process's share of the calibration data.
        loss_function: Returns the mean loss over the samples of a micro-batch, with a graph behind it.
        processes: Those that divide the data between them.
        micro_batch_size: Most samples in one forward and backward pass; None leaves the batches as they are.
        progress: Wraps the micro-batches to show how far they are.
    """

    batches: Sequence[Batch]
    loss_function: LossFunction
    processes: Processes = ALONE
    micro_batch_size: int | None = None
    progress: Progress = iter


@dataclass(frozen=True)
class MeanGradient:
    """What one pass over the calibration data found.

    Attributes:
        grads: By candidate, the gradient of the mean loss, in the shape of the local part of the parameter: float64
            for a parameter in float64, float32 for any other.
        loss: The mean loss.
        num_samples: How many samples it is the mean of.
        micro_batch_size: The most samples in one forward and backward pass.
    """

    grads: dict[str, Tensor]
    loss: float
    num_samples: int
    micro_batch_size: int


def take_gradient(module: nn.Module, candidates: Mapping[str, nn.Parameter], calibration: Calibration) -> MeanGradient:
    """Returns `mean_gradient` in evaluation mode, and leaves the module as it was."""
    with calibrating(module, candidates):
        return mean_gradient(candidates, calibration)


def mean_gradient(candidates: Mapping[str, nn.Parameter], calibration: Calibration) -> MeanGradient:
    """Returns the gradient of the mean loss over all samples of all processes.

    Memory beside the weights: 8 bytes a candidate for the sums (4 where the device has no float64), the gradients of
    one parameter, and what one micro-batch takes. A micro-batch that does not fit is halved, with a warning, and the
    pass begins again; not where parameters are sharded, because the other processes would wait for this one.

    Args:
        candidates: The parameters, each asking for a gradient.
        calibration: What to take the gradient over.

    Raises:
        MaskingError: If a gradient is infinite or not a number, which names the parameter; if the loss is, if it is
            not one number, or if it has no gradient.
        RuntimeError: That of the device, if not even one sample fits.
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
        torch.cuda.empty_cache()
        for parameter in candidates.values():
            parameter.grad = None  # what the backward pass that broke off has left
        rank_zero_warn(
            f"The device ran out of memory; the gradient pass begins again with at most {size} samples at a time. "
            "Smaller micro-batches change the last bits of the gradient."
        )
    loss, num_samples = _mean(losses, calibration.processes)
    grads = _finish(candidates, sums, num_samples, calibration.processes)  # first, because its error names a parameter
    _check_finite_loss(loss, num_samples)
    return MeanGradient(grads, loss, num_samples, size)


@torch.no_grad()
def mean_loss(calibration: Calibration, micro_batch_size: int) -> float:
    """Returns the mean loss over all samples of all processes, without a gradient, so many samples at a time."""
    losses = []
    for piece in (piece for batch in calibration.batches for piece in split(batch, micro_batch_size)):
        losses.append((piece.size, calibration.loss_function(piece)))
        run_pending(losses[-1][1].device)
    loss, num_samples = _mean(losses, calibration.processes)
    _check_finite_loss(loss, num_samples)
    return loss


@contextlib.contextmanager
def calibrating(module: nn.Module, candidates: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Puts a module into the state that the gradient is taken in, and back, whatever happens inside.

    Inside: evaluation mode, no gradients kept, and only the candidates ask for one. Afterwards modes, buffers,
    ``requires_grad`` and gradients are what they were, and metrics are reset.
    """
    parameters = list(module.parameters())
    wanted = {id(parameter) for parameter in candidates.values()}
    asked = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
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
        for parameter, requires_grad, grad in asked:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for child in module.modules():
            if isinstance(child, Metric):
                child.reset()


class _Sums:
    """Adds each gradient that a backward pass leaves at a parameter to a sum, and frees it."""

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
        size = PIECE if grad.device.type == "cpu" else max(grad.numel(), 1)
        for some_total, some_grad in zip(total.split(size), grad.split(size), strict=True):
            some_total.add_(some_grad, alpha=self.weight)
        parameter.grad = None


def _accumulate(
    candidates: Mapping[str, nn.Parameter], calibration: Calibration, size: int
) -> tuple[dict[str, Tensor], list[tuple[int, Tensor]]]:
    """Returns the sums over samples of the gradients, by candidate, and each micro-batch's size and mean loss."""
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
    """Returns whether a device says that its memory is full: CUDA, the CPU's allocator, or XLA by its status code."""
    return (
        isinstance(error, torch.OutOfMemoryError) or is_out_of_cpu_memory(error) or "RESOURCE_EXHAUSTED" in str(error)
    )


def _check_can_halve(error: RuntimeError, size: int, candidates: Mapping[str, nn.Parameter]) -> None:
    if size == 1:
        error.add_note("Asked for the gradient of one sample at a time; even that does not fit on the device.")
        raise error
    if any(isinstance(parameter, DTensor) for parameter in candidates.values()):
        error.add_note(
            f"Asked for the gradient of {size} samples at a time; they do not fit on the device, and with sharded "
            "parameters one process cannot begin again alone. Set `micro_batch_size` to less."
        )
        raise error


def _finish(
    candidates: Mapping[str, nn.Parameter],
    sums: dict[str, Tensor],
    num_samples: int,
    processes: Processes,
) -> dict[str, Tensor]:
    """Adds up the processes' sums, divides by the number of samples, rounds and checks, one parameter at a time."""
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


def _mean(losses: list[tuple[int, Tensor]], processes: Processes) -> tuple[float, int]:
    """Returns the mean over samples, rounded once, so that it does not depend on the order, and their number."""
    here = torch.tensor([(size, float(loss)) for size, loss in losses], dtype=torch.float64)
    everyone = torch.cat(processes.gather(here.view(-1))).view(-1, 2)
    num_samples = int(everyone[:, 0].sum())
    return _sum(everyone[:, 0] * everyone[:, 1]) / num_samples, num_samples


def _sum(values: Tensor) -> float:
    """Returns the sum, rounded once; `math.fsum` refuses what is not finite."""
    return math.fsum(values.tolist()) if values.isfinite().all() else values.sum().item()


def _check_loss(loss: Tensor) -> None:
    if loss.numel() != 1 or not loss.requires_grad:
        found = f"one of shape {tuple(loss.shape)}" if loss.numel() != 1 else "one that depends on no candidate"
        raise MaskingError(
            f"Asked for a mean loss with a gradient, found {found}. Check that the loss is one number, that it is "
            "neither detached nor computed under `torch.no_grad`, and that `targets` are part of the model."
        )


def _check_finite_loss(loss: float, num_samples: int) -> None:
    if not math.isfinite(loss):
        raise MaskingError(
            f"Asked for the mean loss of {num_samples} samples, found {loss}. Check the data and the weights."
        )


def _check_finite(name: str, grad: Tensor) -> None:
    if not grad.sum().isfinite() and not (finite := grad.isfinite()).all():
        raise MaskingError(
            f"Asked for the gradient of {name}, found {int((~finite).sum())} of {grad.numel()} elements infinite or "
            "not a number. Check the data and the weights, or train in a type with a wider range."
        )


def _sum_type(device: torch.device) -> torch.dtype:
    """Returns float64 where the device has it at full use."""
    return torch.float32 if device.type in ("mps", "xla") else torch.float64
