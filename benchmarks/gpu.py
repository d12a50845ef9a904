"""Tokens a second of all work in the study, on the device that is there, beside Hugging Face Trainer and peft.

    python benchmarks/gpu.py                                   # Qwen2-0.5B's true shape: for a GPU
    python benchmarks/gpu.py --compile                         # the same with `model.compile`
    python benchmarks/gpu.py --size tiny --datasets sst2 --train_rows 64 --eval_rows 64       # tries it on a CPU

It needs no network, no weights and no data: see `generated.py`; of packages torch, lightning, transformers, peft,
torchmetrics, pyarrow and jsonargparse. What it runs is the study's own: its modules, its data module's batches and
Lightning's Trainer, under the options of configs/accelerator. The last part is `influence experiment` on the first data
set; that part and the peer are left out, and say so, where a package they need is missing.

*Tokens* are real ones: padding does not count. *FLOPs* are those that the model needs: with N the weights of the
layers' matrices, 2 N a token forward, 4 N with the gradient of activations alone (LoRA), 6 N with that of weights; and
for a row of L tokens 2 d L^2 in each layer for causal attention forward, times 2 or 3 likewise. *% of the device*
divides by the rate of one large matrix product in bfloat16. Rates are those of the best epoch but the first, which is
shown beside it: allocation and compilation are in it. Times are taken when the device has finished.

What one may expect of an H100 (3 TB/s, about 800 TFLOP/s; reckoned, not measured): the sums of gradients in float64
read and write 20 bytes a candidate, so 358 million take 2.4 ms for each group of 32 rows. Its passes have 1.4e12 FLOP
at 20 tokens a row and 13e12 at 190, 4 to 40 ms at 40 % of the rate, and start some 4,000 kernels, 20 ms or more. So the
sums cost at most a tenth of a pass of a second or two: they stay exact, and groups stay at 32 rows. By the same count a
training step of 16 short rows is as long as the starting of its kernels, which is what `--compile` lessens.
"""

import argparse
import gc
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import yaml
from generated import EVAL_ROWS, LENGTHS, MAX_LENGTHS, SIZES, GeneratedText, make_model
from lightning.pytorch import Callback, Trainer
from selection import machine, resident
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from datamodules.batching import TokenizedRows
from influence_masking import find_candidates
from modules import Caches, Classifier, FullFineTuning, Influence, LoRA

ROOT = Path(__file__).parents[1]
CUDA = torch.cuda.is_available()
ARMS = ("baseline", "influence", "lora", "full_ft")
WORKS = ("full_ft", "lora", "gradient", "evaluation")
PASSES = {"full_ft": 3, "lora": 2, "gradient": 3, "evaluation": 1}
"""A pass forward costs 1, the gradient of activations 1, that of weights 1."""
settings: dict[str, Any] = {}
"""What the shipped configuration of the device says."""
NEEDED = ("jsonargparse", "datasets", "filelock", "tensorboard", "statsmodels", "matplotlib", "jinja2", "tabulate")


@dataclass(frozen=True)
class Measured:
    """How long some work takes on a data set.

    Attributes:
        tokens: Real tokens of it.
        seconds: At best.
        first: Seconds of the first time.
        flops: That the model needs.
        memory: Bytes at the highest.
    """

    tokens: int
    seconds: float
    first: float
    flops: float
    memory: int

    @property
    def rate(self) -> float:
        """Return tokens a second."""
        return self.tokens / self.seconds


class Clock(Callback):
    """Takes the seconds of each epoch's training and of each validation."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"train": [], "evaluation": []}
        self.started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started = now()

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit":
            self.seconds["train"].append(now() - self.started)
        self.started = now()

    def on_validation_end(self, *_: Any) -> None:
        self.seconds["evaluation"].append(now() - self.started)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="qwen2-0.5b")
    parser.add_argument("--layers", type=int, help="of the model, where it is to have others than its size says")
    parser.add_argument("--datasets", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--train_rows", type=int, default=1000)
    parser.add_argument("--eval_rows", type=int, default=8000, help="at most; the projection counts all")
    parser.add_argument("--epochs", type=int, default=3, help="that are measured, the first included")
    parser.add_argument("--projected_epochs", type=int, default=10, help="of lora and full_ft in the projection")
    parser.add_argument("--compile", action="store_true")
    kind = "gpu" if CUDA else "cpu"
    parser.add_argument("--settings", default=kind, help="file of configs/accelerator; the device is what is there")
    parser.add_argument("--skip", nargs="+", choices=["peer", "experiment"], default=[])
    options = parser.parse_args()
    be_quiet()
    device = torch.cuda.get_device_name() if CUDA else f"{machine()}, {torch.get_num_threads()} threads"
    rate = matrix_rate()
    settings.update(yaml.safe_load((ROOT / "configs" / "accelerator" / f"{options.settings}.yaml").read_text()))
    print(f"{device}; torch {torch.__version__}; a matrix product in bfloat16 runs at {rate / 1e12:.3g} TFLOP/s")
    with tempfile.TemporaryDirectory() as name:
        folder = make_model(Path(name) / "model", options.size, options.layers)
        print(f"{options.size}, random weights; {precision()}; compile: {options.compile}\n")
        ours = {like: measure(folder, Path(name), like, options) for like in options.datasets}
        peer = {} if "peer" in options.skip else peers(folder, Path(name), options)
        print_rates(ours, peer, rate)
        print_projection(ours, options)
        if "experiment" not in options.skip:
            run_experiment(folder, Path(name), options)


def be_quiet() -> None:
    """Leave nothing to read but the tables."""
    warnings.simplefilter("ignore")
    disable_progress_bar()
    set_verbosity_error()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def precision() -> str:
    """Return the one of the settings."""
    return settings["trainer"]["precision"]


def now() -> float:
    """Return seconds, when the device has finished."""
    if CUDA:
        torch.cuda.synchronize()
    return perf_counter()


def matrix_rate() -> float:
    """FLOPs a second of one large product of bfloat16 matrices, the best of several."""
    size, times = (8192, 10) if CUDA else (1024, 5)
    a, b = (torch.randn(size, size, device="cuda" if CUDA else "cpu").bfloat16() for _ in range(2))
    seconds = []
    for _ in range(times):
        start = now()
        a @ b
        seconds.append(now() - start)
    return 2 * size**3 / min(seconds)


def data_of(folder: str, cache: Path, like: str, options: argparse.Namespace) -> GeneratedText:
    """Return the generated data set."""
    sizes = {"head_init_size": options.train_rows // 2, "dev_size": options.train_rows // 2}
    loading = settings.get("data", {}).get("init_args", {})
    return GeneratedText(
        folder,
        like,
        min(options.eval_rows, EVAL_ROWS[like]),
        max_length=MAX_LENGTHS[like],
        train_size=options.train_rows,
        cache_dir=cache / "cache",
        **sizes,
        **loading,
    )


def trainer_of(folder: Path, clock: Clock, epochs: int) -> Trainer:
    """Lightning's Trainer as the study uses it, without files."""
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(
        accelerator="gpu" if CUDA else "cpu",
        devices=1,
        precision=precision(),
        max_epochs=epochs,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        callbacks=clock,
        default_root_dir=folder,
        **off,
    )


def measure(folder: str, scratch: Path, like: str, options: argparse.Namespace) -> dict[str, Measured]:
    """Return all work on one data set."""
    data = data_of(folder, scratch, like, options)
    kinds: dict[str, type[Classifier]] = {"full_ft": FullFineTuning, "lora": LoRA, "gradient": Influence}
    found = {}
    for work, kind in kinds.items():
        clock = Clock()
        module = kind(backbone=folder, num_labels=data.num_labels, learning_rate=1e-5, compile=options.compile)
        reset_memory()
        if work == "gradient":
            module.head.weight.data.normal_(std=0.02)  # below a new head, which is zero, every gradient is zero
            times = [gradient_seconds(module, data, scratch) for _ in range(2)]
            trained = data._calibration
        else:
            trainer_of(scratch, clock, options.epochs).fit(module, datamodule=data)
            times, trained = clock.seconds["train"], data._rows["train"]
        found[work] = measured(times, trained, module, work)
        if work == "full_ft":
            reset_memory()
            for _ in range(2):
                trainer_of(scratch, clock, 0).validate(module, datamodule=data, verbose=False)
            found["evaluation"] = measured(clock.seconds["evaluation"][-2:], data._rows["eval"], module, "evaluation")
        del module
        gc.collect()
    return found


def gradient_seconds(module: Classifier, data: GeneratedText, scratch: Path) -> float:
    """Return seconds of the pass over the calibration rows; the module is masked afterwards, which costs it nothing."""
    module.caches = Caches()
    masking = module.masking
    masking.mask = None
    trainer_of(scratch, Clock(), 1).fit(module, datamodule=data)
    return masking.seconds["gradient"]


def measured(times: list[float], rows: TokenizedRows, module: Classifier, work: str) -> Measured:
    """Put together what was found; the first time is left out of the best where there are others."""
    flops = PASSES[work] * forward_flops(rows.lengths, module)
    return Measured(sum(rows.lengths), min(times[1:] or times), times[0], flops, memory())


def forward_flops(lengths: list[int], module: Classifier) -> float:
    """FLOPs of the layers on rows of these lengths."""
    config = module.backbone.config
    weights = sum(p.numel() for name, p in find_candidates(module).items() if "lora_" not in name)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    attention = 2 * width * config.num_hidden_layers * sum(length**2 for length in lengths)
    return 2 * weights * sum(lengths) + attention


def reset_memory() -> None:
    """Begin a new gauge."""
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def memory() -> int:
    """Return bytes at the highest since then: of the GPU, or of the process."""
    return torch.cuda.max_memory_allocated() if CUDA else resident("VmHWM")


def peers(folder: str, scratch: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return tokens a second of Hugging Face Trainer and peft on the same rows, by data set and work."""
    missing = [name for name in ("accelerate", "peft") if not find_spec(name)]
    if missing:
        print(f"left out: the peer, which needs {missing}\n")
        return {}
    from gpu_peer import tokens_a_second

    found = {}
    for like in options.datasets:
        data = data_of(folder, scratch, like, options)
        data.setup()
        found[like] = tokens_a_second(
            folder, data._rows["train"], data._rows["eval"], data.num_labels, options.epochs, "bf16" in precision()
        )
    return found


def print_rates(ours: dict[str, dict[str, Measured]], peer: dict[str, dict[str, float]], device_rate: float) -> None:
    """Print the first table."""
    print(
        "| data set | work | tokens/s | TFLOP/s | % of the device | first time s | then s | GB | peer's tokens/s |",
        end="",
    )
    print(" ours / peer |\n|---|---|---|---|---|---|---|---|---|---|")
    for like, works in ours.items():
        for work in WORKS:
            found, theirs = works[work], peer.get(like, {}).get(work)
            speed = found.flops / found.seconds
            cells = [like, work, f"{found.rate:,.0f}", f"{speed / 1e12:.3g}", f"{100 * speed / device_rate:.1f}"]
            cells += [f"{found.first:.2f}", f"{found.seconds:.2f}", f"{found.memory / 1e9:.2f}"]
            cells += [f"{theirs:,.0f}", f"{found.rate / theirs:.2f}"] if theirs else ["", ""]
            print(f"| {' | '.join(cells)} |")


def print_projection(ours: dict[str, dict[str, Measured]], options: argparse.Namespace) -> None:
    """Print what the conditions of the study would take at these rates, all rows counted."""
    print(f"\nProjected seconds, {options.projected_epochs} epochs of lora and full_ft, without loading and files")
    print(f"\n| data set | {' | '.join(ARMS)} | all |\n|---|---|---|---|---|---|")
    total = 0.0
    for like, works in ours.items():
        seconds = projected(like, works, options)
        total += sum(seconds.values())
        print(f"| {like} | {' | '.join(f'{seconds[arm]:.1f}' for arm in ARMS)} | {sum(seconds.values()):.1f} |")
    print(f"| all | | | | | {total:.1f} |\n")


def projected(like: str, works: dict[str, Measured], options: argparse.Namespace) -> dict[str, float]:
    """Return seconds of each arm on a data set."""
    rows = min(options.eval_rows, EVAL_ROWS[like])
    evaluation = works["evaluation"].seconds * EVAL_ROWS[like] / rows
    train = works["full_ft"].tokens / works["evaluation"].rate  # forward over the training rows
    seconds = {"baseline": train / 2, "influence": works["gradient"].seconds + train}
    for arm in ("lora", "full_ft"):
        seconds[arm] = options.projected_epochs * (works[arm].seconds + train / 2)
    seconds["baseline"] += train / 2  # head_init and dev have half as many rows each
    return {arm: seconds[arm] + evaluation for arm in ARMS}


def run_experiment(folder: str, scratch: Path, options: argparse.Namespace) -> None:
    """Time the four arms by the command that users give, on the first data set."""
    missing = [name for name in NEEDED if not find_spec(name)]
    if missing:
        print(f"left out: influence experiment, which needs {missing}")
        return
    like = options.datasets[0]
    sizes = {"head_init": options.train_rows // 2, "train": options.train_rows, "dev": options.train_rows // 2}
    words = ["--datasets", like, "--arms", *ARMS, "--backbone", folder, "--accelerator", options.settings]
    sets = ["data=generated.GeneratedText", f"data.like={like}", f"data.eval_rows={EVAL_ROWS[like]}"]
    sets += [f"data.{split}_size={rows}" for split, rows in sizes.items()]
    sets += [f"{arm}:trainer.max_epochs={options.projected_epochs}" for arm in ("lora", "full_ft")]
    sets += [f"trainer.accelerator={'gpu' if CUDA else 'cpu'}"]
    sets += [f"model.compile={str(options.compile).lower()}"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "callbacks"), str(Path(__file__).parent)])
    command = [sys.executable, "-m", "lightning_app", "experiment", *words, "--set", *sets]
    start = perf_counter()
    env = os.environ | {"PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")])}
    subprocess.run([*command, "--outputs", str(scratch / "outputs"), "--name", "gpu"], check=True, env=env)
    print(f"\ninfluence experiment --datasets {like}: {perf_counter() - start:.1f} s from the command to the table")


if __name__ == "__main__":
    main()
