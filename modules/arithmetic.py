"""bf16 autocast on a CPU, made faster: unchanged weights are cast once, and attention is computed in float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class CpuAutocast(TorchFunctionMode):
    """Changes two functions. Enter it around a forward pass under bf16 autocast on a CPU.

    `linear` takes a bf16 copy of its weight, which is kept until the weight changes; autocast would cast it in every
    pass. The product is the same to the bit. A weight that is being trained is left to autocast, as it changes in every
    step; for the gradient of a model that does not change, see `unchanged`.

    `scaled_dot_product_attention` computes in float32. On a CPU the gradient of torch's kernel takes five to ten times
    as long in bf16 (`benchmarks/cpu.py` prints it), which for short texts is longer than the products of the layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, tuple[Tensor, int, Tensor]] = {}
        self._unchanged = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        if func is linear:
            return self._linear(*args, **kwargs)
        if func is scaled_dot_product_attention:
            with torch.autocast("cpu", enabled=False):
                return func(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})
        return func(*args, **kwargs)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Promise that no weight changes inside, so that copies serve passes with a gradient as well."""
        self._unchanged = True
        try:
            yield
        finally:
            self._unchanged = False
            self.release()

    def release(self) -> None:
        """Drop the copies of weights that are trained; those of frozen ones are kept for the next pass."""
        self._copies = {key: kept for key, kept in self._copies.items() if not kept[0].requires_grad}

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        with_gradient = weight.requires_grad and torch.is_grad_enabled()
        if weight.dtype == torch.float32 and (self._unchanged or not with_gradient):
            copy = self._copy(weight)
            weight = cast(Tensor, _Cast.apply(weight, copy)) if with_gradient else copy
        return linear(input, weight, bias)

    def _copy(self, weight: Tensor) -> Tensor:
        source, version, copy = self._copies.get(id(weight), (None, -1, weight))
        if source is not weight or version != weight._version:
            with torch.inference_mode(False), torch.no_grad():  # training cannot save an inference tensor
                copy = weight.detach().bfloat16()
            self._copies[id(weight)] = weight, weight._version, copy
        return copy


class _Cast(torch.autograd.Function):
    """The cast of a weight to a copy that is there already; its gradient is that of the cast."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].float(), None


def is_cpu_autocast() -> bool:
    """Whether products on a CPU are computed in bf16 by autocast."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _float32(value: Any) -> Any:
    """Return a floating-point tensor in float32, and anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
