"""Keep masked weights at their values, bit for bit, under any optimizer.

A zero gradient does not hold a weight, because weight decay and momentum move it. So the gradients of held weights are
set to zero as soon as a backward pass has computed them, before clipping, gradient norms and the optimizer's moments
use them; and after every optimizer step the values of the held weights are restored.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from influence_masking.masks.mask import Mask
from influence_masking.runtime.sharding import LocalPart, local_part

Action = Literal["zero", "freeze", "train_only"]

DENSE_THRESHOLD = 1 / 4  # held share above which one flag per weight takes less memory than one index per held weight


class MaskEnforcer:
    """Keep the selected weights of a module at their values until it is released.

    Args:
        module: The model. Its parameters must be on their device already: a move to XLA makes new parameters, which
            would not be held.
        mask: The selected weights.
        action: `zero` sets the selected weights to zero and holds them there; `freeze` holds them at their current
            values; `train_only` holds all other weights: those of the candidates at their values, other parameters by
            `drop_other_gradients`.
        optimizers: Optimizers after whose steps the values are restored.

    Raises:
        MaskingError: If the mask was made for another model.
    """

    def __init__(self, module: nn.Module, mask: Mask, action: Action, optimizers: Iterable[Optimizer] = ()) -> None:
        self._held: dict[nn.Parameter, _Held] = {}
        for name, parameter in mask.check(module).items():
            local = local_part(name, parameter)
            selected = local.cut(mask.flags(name, parameter.device))
            self._held[parameter] = _held_weights(local, ~selected if action == "train_only" else selected, action)
        train_only = action == "train_only"
        self._others = [p for p in module.parameters() if train_only and p not in self._held]
        self.restore(frozen_too=True)
        self._handles: list[Any] = [self._hook_gradient(parameter) for parameter in self._held]
        self._handles += [o.register_step_post_hook(lambda *_: self.restore()) for o in optimizers]

    @torch.no_grad()
    def restore(self, frozen_too: bool = False) -> None:
        """Restore the held weights, by default only of parameters that require a gradient."""
        for parameter, held in self._held.items():
            if parameter.requires_grad or frozen_too:
                held.restore()

    def drop_other_gradients(self) -> None:
        """Remove the gradient of each parameter that must not train, so that every optimizer skips it."""
        for parameter in self._others:
            parameter.grad = None

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Return the Euclidean norm of the held weights' gradients on this process, a scalar; 0 while they are held."""
        grads = [(held, _local_grad(p)) for p, held in self._held.items() if p.grad is not None]
        return torch.stack([held.select(grad).norm() for held, grad in grads]).norm() if grads else torch.zeros(())

    def release(self) -> None:
        """Remove every hook and drop the references to the parameters."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._others, self._held = [], [], {}

    def _hook_gradient(self, parameter: nn.Parameter) -> Any:
        """Zero the held gradients after each backward pass, also of a parameter that is unfrozen later."""
        held, required_grad = self._held[parameter], parameter.requires_grad

        @torch.no_grad()
        def clear(parameter: Tensor) -> None:
            held.clear(_local_grad(parameter))

        parameter.requires_grad_(True)  # torch registers the hook only on a parameter that requires a gradient
        handle = parameter.register_post_accumulate_grad_hook(clear)
        parameter.requires_grad_(required_grad)
        return handle


@contextlib.contextmanager
def zeroed(module: nn.Module, mask: Mask, alpha: float = 1.0) -> Iterator[None]:
    """Multiply the selected weights by `1 - alpha` inside, and restore them bit for bit.

    Raises:
        MaskingError: If the mask was made for another model.
    """
    held = []
    for name, parameter in mask.check(module).items():
        local = local_part(name, parameter)
        held.append(_held_weights(local, local.cut(mask.flags(name, parameter.device)), "freeze"))
    try:
        with torch.no_grad():
            for part in held:
                part.scale(1 - alpha)
        yield
    finally:
        with torch.no_grad():
            for part in held:
                part.restore()


class _Held(Protocol):
    """The held weights of one parameter."""

    def restore(self) -> None:
        """Restore their values."""

    def clear(self, grad: Tensor) -> None:
        """Set their gradient to zero."""

    def select(self, grad: Tensor) -> Tensor:
        """Return their gradient, possibly with zeros for other weights."""

    def scale(self, factor: float) -> None:
        """Set them to their values times a factor."""


class _HeldByIndex:
    """Few held weights: the index of each (8 bytes), and its value unless that is zero."""

    def __init__(self, weights: Tensor, flags: Tensor, at_zero: bool) -> None:
        self._weights = weights.view(-1)
        self._index = flags.view(-1).nonzero().squeeze(1)
        self._values = None if at_zero else self._weights[self._index]

    def restore(self) -> None:
        if self._values is None:
            self._weights.index_fill_(0, self._index, 0)
        else:
            self._weights.index_copy_(0, self._index, self._values)

    def clear(self, grad: Tensor) -> None:
        grad.view(-1).index_fill_(0, self._index, 0)

    def select(self, grad: Tensor) -> Tensor:
        return grad.view(-1)[self._index]

    def scale(self, factor: float) -> None:
        if self._values is not None:
            self._weights.index_copy_(0, self._index, self._values * factor)


class _HeldByFlag:
    """Many held weights, or XLA, which needs fixed shapes: one flag per weight, and a copy unless they are zero."""

    def __init__(self, weights: Tensor, flags: Tensor, at_zero: bool) -> None:
        self._weights = weights
        self._flags = flags
        self._values = None if at_zero else weights.clone()

    def restore(self) -> None:
        if self._values is None:
            self._weights.masked_fill_(self._flags, 0)
        else:
            self._weights.copy_(torch.where(self._flags, self._values, self._weights))

    def clear(self, grad: Tensor) -> None:
        grad.masked_fill_(self._flags, 0)

    def select(self, grad: Tensor) -> Tensor:
        return grad * self._flags

    def scale(self, factor: float) -> None:
        if self._values is not None:
            self._weights.copy_(torch.where(self._flags, self._values * factor, self._weights))


def _held_weights(local: LocalPart, flags: Tensor, action: Action) -> _Held:
    weights = local.tensor
    fixed_shapes = weights.device.type == "xla" or not weights.is_contiguous()
    dense = fixed_shapes or flags.sum() >= DENSE_THRESHOLD * flags.numel()
    return (_HeldByFlag if dense else _HeldByIndex)(weights, flags, action == "zero")


def _local_grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return local_part("gradient", parameter.grad).tensor
