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
    pass. The product is the same to the bit. A weight that trains is left to autocast, because it changes in every
    step, and a fused optimizer does not say so (`Tensor._version` stays). Between `keep` and `release` no weight
    changes, and copies of all of them are kept.

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

    def keep(self) -> None:
        """Keep copies of weights that train as well, until `release`: none of them changes before."""
        self._unchanged = True

    def release(self) -> None:
        """Drop the copies of weights that train; those of frozen ones are kept for the next pass."""
        self._unchanged = False
        self._copies = {key: kept for key, kept in self._copies.items() if not kept[0].requires_grad}

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Keep copies of all weights inside."""
        self.keep()
        try:
            yield
        finally:
            self.release()

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.dtype == torch.float32 and (self._unchanged or not weight.requires_grad):
            copy = self._copy(weight)
            weight = cast(Tensor, _Cast.apply(weight, copy)) if weight.requires_grad else copy
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
