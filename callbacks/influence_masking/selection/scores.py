"""Scores of weights, computed from their values and gradients.

A score is a pure function of two float32 tensors of one shape: the weights `theta` and the gradient `grad` of the mean
loss with respect to them. It returns one float32 number per weight and works element by element, so that it can be
computed in pieces. A score with a keyword `position` also gets the weights' positions among all candidates (int64); one
with a keyword `seed` gets the seed of the selection. To add a score, write the function and add it to `SCORES`.

Zeroing the weights S changes the loss to first order by minus the sum over S of theta * grad. For one weight that is
-\\|theta\\| * sign(theta) * grad: the *lowest* `sign_gradient` and `taylor` scores are weights whose removal raises the
loss, the *highest* are weights whose removal lowers it.
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
    """Return sign(theta) * grad, the gradient of the loss with respect to the magnitude of each weight.

    One gradient over the whole dataset replaces the per-sample influences that Chhabra et al., "What Data Benefits My
    Classifier?", ICLR 2024, sum for data selection.
    """
    return torch.sign(theta).mul_(grad)


def taylor(theta: Tensor, grad: Tensor) -> Tensor:
    """Return theta * grad, the first-order decrease of the loss when the weight is set to zero.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8 before its square.
    """
    return theta * grad


def snip(theta: Tensor, grad: Tensor) -> Tensor:
    """Return |theta * grad|, the connection sensitivity of Lee et al., "SNIP", ICLR 2019, without its normalizer."""
    return (theta * grad).abs_()


def gradient(theta: Tensor, grad: Tensor) -> Tensor:
    """Return |grad|, as in the gradient-based sparse masks of Sung et al., "FISH Mask", NeurIPS 2021, unsquared."""
    return grad.abs()


def magnitude(theta: Tensor, grad: Tensor) -> Tensor:
    """Return |theta|, the classical pruning score (Han et al., "Learning both Weights and Connections", 2015)."""
    return theta.abs()


def random(theta: Tensor, grad: Tensor, *, position: Tensor, seed: int) -> Tensor:
    """Return a random number in [0, 1) that depends only on the weight's position and the seed.

    It is the same on every device, for every sharding and division into pieces: the upper 24 bits of splitmix64 (Steele
    et al., "Fast splittable pseudorandom number generators", OOPSLA 2014) of the position.
    """
    bits = _splitmix64(position + _splitmix64(torch.tensor(seed, dtype=torch.int64, device=position.device)))
    return _shift_right(bits, 40).to(torch.float32).mul_(2.0**-24)


SCORES: dict[str, ScoreFunction] = {
    function.__name__: function for function in (sign_gradient, taylor, snip, gradient, magnitude, random)
}
RANDOM_MATCHED = "random_matched"  # not a function: weights are drawn at random to match the mask of another score


def resolve_score(score: str | ScoreFunction, seed: int = 0, option: str = "score") -> ScoreFunction:
    """Return the function for a name in `SCORES`, an import path (`package.module.function`) or a function.

    Args:
        score: Name, import path or function.
        seed: Seed that is bound to the function's keyword `seed` if it has one.
        option: What the score is called in an error message.

    Raises:
        MaskingError: If there is no such score.
    """
    function = SCORES.get(score) or _import_score(score, option) if isinstance(score, str) else score
    if not callable(function):
        raise MaskingError(
            f"{option}={score!r} is not a function, found {type(function).__name__}. Pass a name or a function."
        )
    return functools.partial(function, seed=seed) if _takes(function, "seed") else function


def takes_position(function: ScoreFunction) -> bool:
    """Return whether a resolved score needs the positions of the weights."""
    return _takes(function, "position")


def score_name(score: str | ScoreFunction) -> str:
    """Return the name of a score for state keys and provenance: as given, or the import path of a function."""
    return score if isinstance(score, str) else f"{score.__module__}.{score.__qualname__}"


def _import_score(path: str, option: str) -> ScoreFunction:
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise MaskingError(
            f"Unknown {option}={path!r}. Use one of {[*SCORES, RANDOM_MATCHED]}, or the import path of your own "
            "function (package.module.function)."
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise MaskingError(f"Cannot import {option}={path!r}: {error}. Check the path.") from error


def _takes(function: ScoreFunction, keyword: str) -> bool:
    return keyword in inspect.signature(function).parameters


def _splitmix64(x: Tensor) -> Tensor:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift right with zeros from the left; torch's own shift of a signed integer copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """Return the signed 64-bit integer with the same bits."""
    return constant - (1 << 64)
