"""Times the gradient pass on the shape of Qwen2-0.5B against a bare loop of forward and backward on the same batches.

    python benchmarks/gradient_pass.py [--layers 24] [--batches 4] [--samples 32] [--length 32] [--repeats 2]

The bare loop asks for the gradients of the same candidates and lets autograd add them up in float32; the pass adds them
up in float64, rounds, checks that they are finite, and puts everything back. Best of the repeats, taken in turns.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))

from qwen import QwenClassifier, batches
from selection import machine, resident

from influence_masking import find_candidates, take_snapshot


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 24), ("batches", 4), ("samples", 32), ("length", 32), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    module = QwenClassifier(options.layers).eval()
    data = batches(options.batches, options.samples, options.length)
    candidates = find_candidates(module)
    print(f"{machine()}; torch {torch.__version__}, 2 threads")
    print(
        f"{sum(p.numel() for p in candidates.values()):,} candidates; {options.batches} micro-batches of "
        f"{options.samples} samples of {options.length} tokens\n"
    )

    def bare() -> None:
        module.requires_grad_(False)
        for parameter in candidates.values():
            parameter.requires_grad_(True)
        for i, batch in enumerate(data):
            (module.training_step(batch, i) / len(data)).backward()

    def ours() -> None:
        module.requires_grad_(True)
        take_snapshot(module, data, lambda m, batch: m.training_step(batch, 0))

    times: dict[str, list[float]] = {"bare loop": [], "influence_masking": []}
    memory: dict[str, float] = {}
    for _ in range(options.repeats):
        for name, way in (("bare loop", bare), ("influence_masking", ours)):
            module.zero_grad(set_to_none=True)
            seconds, memory[name] = timed(way)
            times[name].append(seconds)
    print("| way | seconds | times the bare loop | extra GB at the highest |")
    print("|---|---|---|---|")
    for name, seconds_of in times.items():
        ratio = min(seconds_of) / min(times["bare loop"])
        print(f"| {name} | {min(seconds_of):.1f} | {ratio:.3f} | {memory[name]:.1f} |")


def timed(way: Callable[[], None]) -> tuple[float, float]:
    """Return seconds, and gigabytes above what was there before."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = perf_counter()
    way()
    return perf_counter() - start, (resident("VmHWM") - before) / 1e9


if __name__ == "__main__":
    main()
