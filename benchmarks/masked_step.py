"""Times a training step on the shape of Qwen2-0.5B with 5 % of 357.8 million weights held against the same without.

    python benchmarks/masked_step.py [--layers 24] [--steps 6] [--samples 8] [--length 64]

Steps with and without the mask alternate in one process, AdamW on everything but the embeddings; the median of the
ratios of neighbours is reported. Lightning's `ModelPruning` (unstructured, global, by magnitude) runs in a process of
its own, in a Trainer, because it changes the module: its time is that of the steps after it has pruned, beside that of
a Trainer without it.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelPruning

sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))

from qwen import QwenClassifier, batches
from selection import machine, resident

from influence_masking import Mask, MaskEnforcer, find_candidates

FRACTION = 0.05
NAMES = {"hold": "plain loop", "none": "Trainer", "pruning": "Trainer with ModelPruning"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 24), ("steps", 6), ("samples", 8), ("length", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--way", choices=["hold", "none", "pruning"])
    options = parser.parse_args()
    if options.way:
        torch.set_num_threads(2)
        torch.manual_seed(0)
        {"hold": hold, "none": trainer, "pruning": trainer}[options.way](options)
        return
    print(f"{machine()}; torch {torch.__version__}, 2 threads; {options.samples} samples of {options.length} tokens\n")
    print("| step | seconds | times the step without | highest memory, GB |")
    print("|---|---|---|---|")
    for way in ("hold", "none", "pruning"):
        status = subprocess.run([sys.executable, *sys.argv, "--way", way]).returncode
        if status:
            print(f"| {NAMES[way]} | {'killed: out of memory' if status == -9 else f'failed, status {status}'} | | |")


def hold(options: argparse.Namespace) -> None:
    """Alternate steps with and without held weights."""
    module = QwenClassifier(options.layers)
    optimizer = module.configure_optimizers()
    candidates = find_candidates(module)
    mask = Mask.from_flags({name: torch.rand(p.shape) < FRACTION for name, p in candidates.items()})
    data = batches(2, options.samples, options.length)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    peaks: dict[bool, float] = {False: 0.0, True: 0.0}
    for i in range(2 * options.steps + 2):
        held = i % 2 == 1
        enforcer = MaskEnforcer(module, mask, "zero", [optimizer]) if held else None
        Path("/proc/self/clear_refs").write_text("5")
        start = perf_counter()
        optimizer.zero_grad()
        module.training_step(data[0], i).backward()
        optimizer.step()
        seconds[held].append(perf_counter() - start)
        peaks[held] = resident("VmHWM") / 1e9
        if enforcer:
            enforcer.release()
    without, with_ = seconds[False][1:], seconds[True][1:]  # the first of each allocates the optimizer's state
    ratio = median(b / a for a, b in zip(without, with_, strict=True))
    name = f"plain loop, influence_masking holds {mask.num_masked:,}"
    print(f"| plain loop | {median(without):.2f} | 1 | {peaks[False]:.1f} |")
    print(f"| {name} | {median(with_):.2f} | {ratio:.3f} | {peaks[True]:.1f} |")


class Clock(Callback):
    """Notes how long each training batch takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(perf_counter() - self._start)


def trainer(options: argparse.Namespace) -> None:
    """Train two epochs; `ModelPruning` prunes at the end of the first, and the second is timed."""
    module, clock = QwenClassifier(options.layers), Clock()
    modules = dict(module.named_modules())
    pruned = [(modules[name.removesuffix(".weight")], "weight") for name in find_candidates(module)]
    pruning = ModelPruning("l1_unstructured", pruned, amount=FRACTION, use_lottery_ticket_hypothesis=False)
    callbacks = [clock, pruning] if options.way == "pruning" else [clock]
    run = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(
        module, torch.utils.data.DataLoader(batches(options.steps, options.samples, options.length), batch_size=None)
    )
    print(f"| {NAMES[options.way]} | {median(clock.seconds[options.steps :]):.2f} | | {resident('VmHWM') / 1e9:.1f} |")


if __name__ == "__main__":
    main()
