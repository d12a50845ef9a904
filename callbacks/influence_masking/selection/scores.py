"""Scores: how much a weight matters, from its value and its gradient.

A score is a pure function of two tensors of one shape, the weights ``theta`` and the gradient ``grad`` of the mean loss
with respect to them, both float32; it returns one float32 number a weight and works element by element, so that it can
be computed in pieces. A score that takes a keyword ``position`` is also given the weights' numbers in the order of the
candidates (int64); one that takes ``seed`` is given the seed of the selection. To add a score, write the function and
enter it in `SCORES`.

Zeroing the weights S changes the loss to first order by minus the sum over S of theta * grad. For one weight that is
-\\|theta\\| * sign(theta) * grad: the *lowest* `sign_gradient` and `taylor` scores are weights whose removal raises the
loss, the *highest* those whose removal lowers it.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from influence_masking.errors import MaskingError

ScoreFunction = Callable[..., Any]  # returns a Tensor; as a type it would add its subclasses to a command line's help


def sign_gradient(theta: Tensor, grad: Tensor) -> Tensor:
    """Returns sign(theta) * grad, the gradient of the loss with respect to the magnitude of each weight.

    One gradient over a whole data set takes the place of the per-sample influences that Chhabra et al., "What Data
    Benefits My Classifier?", ICLR 2024, sum for data selection.
    """
    return torch.sign(theta).mul_(grad)


def taylor(theta: Tensor, grad: Tensor) -> Tensor:
    """Returns theta * grad, the first-order fall of the loss when the weight is set to zero.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8 before its square.
    """
    return theta * grad


def snip(theta: Tensor, grad: Tensor) -> Tensor:
    """Returns |theta * grad|, the connection sensitivity of Lee et al., "SNIP", ICLR 2019, without its normaliser."""
    return (theta * grad).abs_()


def gradient(theta: Tensor, grad: Tensor) -> Tensor:
    """Returns |grad|, as in the gradient-based sparse masks of Sung et al., "FISH Mask", NeurIPS 2021, unsquared."""
    return grad.abs()


def magnitude(theta: Tensor, grad: Tensor) -> Tensor:
    """Returns |theta|, the classical pruning score (Han et al., "Learning both Weights and Connections", 2015)."""
    return theta.abs()


def random(theta: Tensor, grad: Tensor, *, position: Tensor, seed: int) -> Tensor:
    """Returns a number in [0, 1) that depends on the weight's position and the seed alone.

    The same on every device, however the weights are sharded or cut into pieces: splitmix64 (Steele et al., "Fast
    splittable pseudorandom number generators", OOPSLA 2014) of the position, its upper 24 bits.
    """
    bits = _splitmix64(position + _splitmix64(torch.tensor(seed, dtype=torch.int64, device=position.device)))
    return _shift_right(bits, 40).to(torch.float32).mul_(2.0**-24)


SCORES: dict[str, ScoreFunction] = {
    function.__name__: function for function in (sign_gradient, taylor, snip, gradient, magnitude, random)
}
MATCHED = "random_matched"  # no function: the weights are drawn to match the mask of another score


def resolve_score(score: str | ScoreFunction, seed: int = 0) -> ScoreFunction:
    """Returns the function behind a name of `SCORES`, a class path (``package.module.function``) or a callable.

    Args:
        score: What to resolve.
        seed: Bound to the function's ``seed`` if it takes one.

    Raises:
        MaskingError: If there is no such score.
    """
    function = SCORES.get(score) or _import_score(score) if isinstance(score, str) else score
    if not callable(function):
        raise MaskingError(f"Asked for score={score!r}, found {type(function).__name__}. Pass a name or a function.")
    return functools.partial(function, seed=seed) if _takes(function, "seed") else function


def takes_position(function: ScoreFunction) -> bool:
    """Returns whether a resolved score wants the positions of the weights."""
    return _takes(function, "position")


def score_name(score: str | ScoreFunction) -> str:
    """Returns the name of a score for state keys and provenance: the registry's, or module and qualified name."""
    return score if isinstance(score, str) else f"{score.__module__}.{score.__qualname__}"


def _import_score(path: str) -> ScoreFunction:
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise MaskingError(
            f"Asked for score={path!r}, found no such score. Use one of {[*SCORES, MATCHED]}, or the path of "
            "your own function (package.module.function)."
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise MaskingError(f"Asked for score={path!r}, but it cannot be imported: {error}. Check the path.") from error


def _takes(function: ScoreFunction, keyword: str) -> bool:
    return keyword in inspect.signature(function).parameters


def _splitmix64(x: Tensor) -> Tensor:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shifts zeros in from the left; torch's own shift of a signed integer copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """Returns the signed 64-bit integer with the same bits."""
    return constant - (1 << 64)
