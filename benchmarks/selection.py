"""Times the selection of exactly k of 357,826,560 weights by sign(theta) * gradient, against the usual ways.

    python benchmarks/selection.py [--weights 357826560] [--repeats 3]

Each way starts from the same list of weight tensors and gradient tensors and ends with what says which weights are
selected: for ours packed bits, for `kthvalue`, `topk` and `partition` a bool a weight, for `global_unstructured` its
masks. Peers need the scores in one tensor: that copy is part of them. Times are the best of the repeats; extra memory
is the rise of the process's highest resident memory above what the weights and gradients take; each way has selected
among one tensor before, so that the pages of its code are not counted. `global_unstructured` would take 17 GB: it gets
a quarter of the weights.
"""

import argparse
import gc
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))

from influence_masking.masks import bits
from influence_masking.selection.lowest import Weights, select
from influence_masking.selection.scores import sign_gradient

QWEN_LAYER = [(896, 896), (128, 896), (128, 896), (896, 896), (4864, 896), (4864, 896), (896, 4864)]
FRACTION = 0.05


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=357_826_560)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(f"{machine()}; torch {torch.__version__}, numpy {np.__version__}, 2 threads")
    theta, grad = tensors(options.weights, "normal")
    k = int(FRACTION * sum(t.numel() for t in theta))
    print(f"\n{sum(t.numel() for t in theta):,} weights, k = {k:,}\n")
    print("| way | seconds | times ours | extra bytes a weight |")
    print("|---|---|---|---|")
    first = None
    for name, (way, share) in WAYS.items():
        parts = len(theta) // share
        way(theta[:1], grad[:1], 1)
        seconds, memory = measure(partial(way, theta[:parts], grad[:parts], k // share), options.repeats)
        first = first or seconds
        weights = sum(t.numel() for t in theta[:parts])
        print(
            f"| {name} | {seconds * share:.2f} | {seconds * share / first:.1f} | {memory / weights:.2f} |", flush=True
        )
    print(f"| floor: reading weights and gradients once | {floor(theta, grad):.2f} | | |")
    theta, grad = [], []
    adversarial(options.weights)


def ours(theta: list[Tensor], grad: list[Tensor], k: int) -> list[Tensor]:
    """Return the library."""
    return select([Weights(str(i), t, g) for i, (t, g) in enumerate(zip(theta, grad, strict=True))], k, sign_gradient)


def all_scores(theta: list[Tensor], grad: list[Tensor]) -> Tensor:
    """Return one tensor of all scores, filled in place: the cheapest way to have it."""
    scores = torch.empty(sum(t.numel() for t in theta))
    for part, t, g in zip(scores.split([t.numel() for t in theta]), theta, grad, strict=True):
        torch.mul(torch.sign(t), g, out=part)
    return scores


def by_kthvalue(theta: list[Tensor], grad: list[Tensor], k: int) -> Tensor:
    """torch.kthvalue, then a comparison (ties at the threshold are all taken)."""
    scores = all_scores(theta, grad)
    return scores <= torch.kthvalue(scores, k).values


def by_topk(theta: list[Tensor], grad: list[Tensor], k: int) -> Tensor:
    """torch.topk, then the flags of its indices."""
    scores = all_scores(theta, grad)
    flags = torch.zeros(len(scores), dtype=torch.bool)
    flags[torch.topk(scores, k, largest=False, sorted=False).indices] = True
    return flags


def by_partition(theta: list[Tensor], grad: list[Tensor], k: int) -> np.ndarray:
    """numpy.partition, then a comparison (ties at the threshold are all taken)."""
    scores = all_scores(theta, grad).numpy()
    return scores <= np.partition(scores, k - 1)[k - 1]


def by_global_unstructured(theta: list[Tensor], grad: list[Tensor], k: int) -> list[nn.Module]:
    """torch.nn.utils.prune; it takes absolute values, so the scores are shifted to be positive."""
    modules = []
    for t in theta:
        module = nn.Module()
        module.weight = nn.Parameter(t, requires_grad=False)
        modules.append(module)
    scores = {(m, "weight"): torch.sign(t) * g + 100 for m, t, g in zip(modules, theta, grad, strict=True)}
    prune.global_unstructured(list(scores), prune.L1Unstructured, importance_scores=scores, amount=k)
    return modules


WAYS: dict[str, tuple[Callable[..., object], int]] = {
    "influence_masking": (ours, 1),
    "numpy.partition": (by_partition, 1),
    "torch.kthvalue": (by_kthvalue, 1),
    "torch.topk": (by_topk, 1),
    "prune.global_unstructured (a quarter of the weights, times 4)": (by_global_unstructured, 4),
}


def adversarial(weights: int) -> None:
    """Print times on inputs that are hard to bracket; each result is checked against a count and its threshold."""
    print("\n| scores | seconds | exact |")
    print("|---|---|---|")
    for kind in ("all equal", "two values", "sorted", "heavy tails", "bfloat16"):
        theta, grad = tensors(weights, kind)
        k = int(FRACTION * sum(t.numel() for t in theta))
        start = perf_counter()
        selected = ours(theta, grad, k)
        seconds = perf_counter() - start
        print(f"| {kind} | {seconds:.2f} | {'yes' if is_exact(theta, grad, selected, k) else 'NO'} |", flush=True)
        del theta, grad, selected


def is_exact(theta: list[Tensor], grad: list[Tensor], selected: list[Tensor], k: int) -> bool:
    """Check what defines the answer: k in all, none left out below the highest taken, and of equals the first."""
    highest_taken, lowest_left, count = -float("inf"), float("inf"), 0
    for t, g, packed in zip(theta, grad, selected, strict=True):
        scores, flags = sign_gradient(t.float(), g), bits.unpack(packed, t.numel())
        count += int(flags.sum())
        highest_taken = max(highest_taken, scores[flags].max().item() if flags.any() else -float("inf"))
        lowest_left = min(lowest_left, scores[~flags].min().item() if not flags.all() else float("inf"))
    ended = False
    for t, g, packed in zip(theta, grad, selected, strict=True):
        ties = bits.unpack(packed, t.numel())[sign_gradient(t.float(), g) == highest_taken]
        if (ended and ties.any()) or (ties[1:] & ~ties[:-1]).any():
            return False
        ended = ended or not ties.all()
    return count == k and highest_taken <= lowest_left


def tensors(weights: int, kind: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return weights and gradients in the shapes of Qwen2-0.5B's layers, flat, as many layers as it takes."""
    layers = max(round(weights / sum(a * b for a, b in QWEN_LAYER)), 1)
    sizes = [a * b for _ in range(layers) for a, b in QWEN_LAYER]
    generator = torch.Generator().manual_seed(0)
    theta = [torch.randn(n, generator=generator) for n in sizes]
    grad, before = [], 0
    for n in sizes:
        if kind in ("all equal", "two values", "sorted"):
            theta[len(grad)].fill_(1)
        if kind == "all equal":
            grad.append(torch.ones(n))
        elif kind == "two values":
            grad.append((torch.rand(n, generator=generator) < 0.9).float())
        elif kind == "sorted":
            grad.append(torch.arange(before, before + n).float())
        elif kind == "heavy tails":
            grad.append(torch.randn(n, generator=generator) / torch.rand(n, generator=generator).pow_(4))
        else:
            grad.append(torch.randn(n, generator=generator))
        if kind == "bfloat16":
            theta[len(grad) - 1] = theta[len(grad) - 1].bfloat16()
            grad[-1] = grad[-1].bfloat16().float()
        before += n
    return theta, grad


def measure(call: Callable[[], object], repeats: int) -> tuple[float, int]:
    """Return the best time in seconds and the rise of the highest resident memory in bytes."""
    best, rise = float("inf"), 0
    for _ in range(repeats):
        gc.collect()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        start = perf_counter()
        result = call()
        best = min(best, perf_counter() - start)
        rise = max(rise, resident("VmHWM") - before)
        del result
    return best, rise


def floor(theta: list[Tensor], grad: list[Tensor]) -> float:
    """Return the seconds that a sum over both, the cheapest reading, takes."""
    start = perf_counter()
    for tensor in [*theta, *grad]:
        tensor.sum()
    return perf_counter() - start


def resident(field: str) -> int:
    """Return a memory field of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def machine() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, Linux"


if __name__ == "__main__":
    main()
