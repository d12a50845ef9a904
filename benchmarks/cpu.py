"""How near full fine-tuning, the gradient of a mask and evaluation come to what a CPU can do, in bf16.

    python benchmarks/cpu.py                                       # Qwen2-0.5B's true shape, random weights
    python benchmarks/cpu.py --backbone all-MiniLM-L6-v2           # any other
    python benchmarks/cpu.py --size tiny --rows 64 --eval_rows 64  # tries it

Rows are made of random words, with the lengths of a data set's (`generated.py`): no network is needed. What runs is the
study's own: its modules, batches and checkpoints under Lightning's Trainer with the options of configs/base.yaml.

The floor is the time that the products of matrices would take for the real tokens alone, at the rate at which this
machine multiplies matrices of the model's own shapes by a batch of 2,048 tokens in bf16; a training step adds the bytes
that AdamW reads and writes, 28 for each weight, at the rate of a copy. The share of the floor is the floor's time over
the measured time: padding, attention, norms, casts, clipping and the loop are what is between them.

The peer is Hugging Face Trainer on the same rows, with the same batch size and in bf16, once with batches at random and
once grouped by length.
"""

import argparse
import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from generated import LENGTHS, MAX_LENGTHS, SIZES, GeneratedText, make_model
from gpu import PASSES, be_quiet, memory, reset_memory
from lightning.pytorch import Callback
from selection import machine
from torch.nn.functional import linear, scaled_dot_product_attention

from influence_masking import find_candidates
from lightning_app.run.allocator import keep_freed_memory
from lightning_app.run.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from lightning_app.run.configs import configs_folder, read_config
from lightning_app.run.precision import StudyTrainer
from lightning_app.run.recorder import MetricLogger
from modules import Caches, Classifier, FullFineTuning, Influence
from modules.backbone import resolve_backbone

TOKENS = 2048
"""Rows of the activations whose product with the model's matrices gives the machine's rate."""

ADAMW_BYTES = 28
"""Read and written for each weight: the weight, its gradient and two moments are read, all but the gradient written."""

WARM_UP = 3
"""Steps that are not counted: they allocate AdamW's moments."""


class Clock(Callback):
    """Takes the seconds of each training step and of each evaluation."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.tokens: list[int] = []
        self.evaluations: list[float] = []
        self._started = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._started = perf_counter()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: dict[str, torch.Tensor], _: int
    ) -> None:
        self.steps.append(perf_counter() - self._started)
        self.tokens.append(int(batch["attention_mask"].sum()))
        self._started = perf_counter()

    def on_validation_start(self, *_: Any) -> None:
        self._evaluated = perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        self.evaluations.append(perf_counter() - self._evaluated)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="instead of random weights of a size")
    parser.add_argument("--size", choices=SIZES, default="qwen2-0.5b")
    parser.add_argument("--dataset", choices=LENGTHS, default="sst2", help="whose lengths the rows have")
    parser.add_argument("--rows", type=int, default=480, help="of training and of the mask's gradient")
    parser.add_argument("--eval_rows", type=int, default=872)
    parser.add_argument("--skip_peer", action="store_true")
    options = parser.parse_args()
    be_quiet()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        words = make_model(scratch / "model", options.size, None if options.backbone is None else 1)
        backbone = options.backbone or words
        what = options.backbone or f"{options.size}, random weights"
        print(f"{machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}; {what}")
        report(backbone, words, scratch, options)


def report(backbone: str, words: str, scratch: Path, options: argparse.Namespace) -> None:
    """Measure everything on one backbone."""
    data = GeneratedText(
        words,
        options.dataset,
        options.eval_rows,
        max_length=MAX_LENGTHS[options.dataset],
        head_init_size=options.rows // 2,
        train_size=options.rows,
        dev_size=options.rows // 2,
        cache_dir=scratch / "cache",
    )
    module: Classifier = FullFineTuning(backbone=backbone, num_labels=data.num_labels, learning_rate=1e-5)
    forward, training = matrix_rates(module)
    copying = copy_rate()
    config: Any = module.backbone.config
    print(f"products in bf16: forward {forward / 1e12:.2f} TFLOP/s, with gradients {training / 1e12:.2f}; ", end="")
    print(f"a copy: {copying / 1e9:.1f} GB/s")
    if hasattr(config, "num_attention_heads"):
        print_attention(config)
    matrices = sum(p.numel() for p in find_candidates(module).values())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)

    reset_memory()
    trainer, clock = trainer_of(scratch, epochs=1)
    trainer.fit(module, datamodule=data)
    peak = memory()
    steps, tokens = clock.steps[WARM_UP:], sum(clock.tokens[WARM_UP:])
    floors = {
        "full_ft": PASSES["full_ft"] * 2 * matrices * tokens / training + len(steps) * ADAMW_BYTES * trained / copying
    }
    found = {"full_ft": (tokens, sum(steps))}
    for _ in range(2):
        trainer, clock = trainer_of(scratch)
        trainer.validate(module, datamodule=data, verbose=False)
        found["evaluation"] = (data.num_tokens("eval"), clock.evaluations[0])
    floors["evaluation"] = PASSES["evaluation"] * 2 * matrices * data.num_tokens("eval") / forward
    del module, trainer
    gc.collect()

    found["gradient"] = (data.num_tokens("train"), gradient_seconds(backbone, data, scratch))
    floors["gradient"] = PASSES["gradient"] * 2 * matrices * data.num_tokens("train") / training
    print(f"\n{options.dataset}'s lengths, {trained:,} weights\n")
    print("| work | tokens | seconds | tokens/s | floor s | share of the floor % |\n|---|---|---|---|---|---|")
    for work, (count, seconds) in found.items():
        floor = floors[work]
        cells = f"{count:,} | {seconds:.2f} | {count / seconds:,.0f} | {floor:.2f} | {100 * floor / seconds:.0f}"
        print(f"| {work} | {cells} |")
    epoch = found["full_ft"][1] / len(steps) * (len(steps) + WARM_UP)
    print(f"\nfull_ft: {epoch:.1f} s an epoch of {options.rows} rows; memory at the highest {peak / 1e9:.1f} GB\n")
    if not options.skip_peer:
        print_peer(backbone, words, data, epoch)


def best_of(times: int, work: Callable[[], Any]) -> float:
    """Return the seconds of the fastest call."""
    seconds = []
    for _ in range(times):
        start = perf_counter()
        work()
        seconds.append(perf_counter() - start)
    return min(seconds)


def matrix_rates(module: Classifier) -> tuple[float, float]:
    """Return FLOPs a second of the model's own products, forward alone and forward with both gradients."""
    weights = [p.detach().bfloat16() for p in find_candidates(module).values()]
    inputs = {width: torch.randn(TOKENS, width).bfloat16() for width in {w.shape[1] for w in weights}}
    grads = {width: torch.randn(TOKENS, width).bfloat16() for width in {w.shape[0] for w in weights}}

    def forward() -> None:
        for weight in weights:
            linear(inputs[weight.shape[1]], weight)

    def backward() -> None:
        for weight in weights:
            grad = grads[weight.shape[0]]
            grad @ weight
            grad.t() @ inputs[weight.shape[1]]

    flops = 2 * TOKENS * sum(weight.numel() for weight in weights)
    there, back = best_of(3, forward), best_of(3, backward)
    return flops / there, 3 * flops / (there + back)


def copy_rate() -> float:
    """Return bytes a second, read and written, of the copy of a tensor that fits no cache."""
    source = torch.ones(250_000_000)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / best_of(3, lambda: target.copy_(source))


def print_attention(config: Any) -> None:
    """Print why attention is computed in float32 where products are bf16."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    milliseconds = []
    for kind in (torch.bfloat16, torch.float32):
        parts = [torch.randn(16, heads, 16, width).to(kind).requires_grad_() for _ in range(3)]
        milliseconds.append(1e3 * best_of(5, lambda parts=parts: scaled_dot_product_attention(*parts).sum().backward()))
    print(f"attention of 16 rows of 16 tokens and its gradient, a layer: bf16 {milliseconds[0]:.1f} ms, ", end="")
    print(f"float32 {milliseconds[1]:.1f} ms")


def trainer_of(folder: Path, epochs: int = 0) -> tuple[StudyTrainer, Clock]:
    """Return a Trainer with the shipped options and the study's checkpoints, and its clock."""
    shipped = read_config(configs_folder() / "base.yaml")["trainer"]
    kept = {name: shipped[name] for name in ("gradient_clip_val", "num_sanity_val_steps", "enable_model_summary")}
    clock = Clock()
    trainer = StudyTrainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_epochs=epochs,
        callbacks=[clock, MetricLogger(), BestCheckpoint(), LastCheckpoint()],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        **kept,
    )
    return trainer, clock


def gradient_seconds(backbone: str, data: GeneratedText, scratch: Path) -> float:
    """Return the seconds of the pass over the calibration rows, the better of two."""
    module = Influence(backbone=backbone, num_labels=data.num_labels)
    seconds = []
    for _ in range(2):
        module.head.weight.data.normal_(std=0.02)  # below a new head, which is zero, every gradient is zero
        module.caches = Caches()
        module.masking.mask = None
        trainer, _ = trainer_of(scratch, epochs=1)
        trainer.fit(module, datamodule=data)
        seconds.append(module.masking.seconds["gradient"])
    return min(seconds)


def print_peer(backbone: str, words: str, data: GeneratedText, ours: float) -> None:
    """Print the seconds of an epoch of Hugging Face Trainer."""
    from gpu_peer import epoch_seconds

    print("| an epoch of full fine-tuning | seconds | ours / theirs |\n|---|---|---|")
    print(f"| ours | {ours:.1f} | |")
    for order in ("random", "group_by_length"):
        theirs = epoch_seconds(resolve_backbone(backbone), words, data._rows["train"], data.num_labels, order)
        print(f"| Hugging Face Trainer, {order} | {theirs:.1f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
