"""`influence experiment --dry-run`: what the conditions will take, before any of them runs."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

from lightning_app.grid.condition import Condition
from lightning_app.results.files import METRICS_FILE, read_json

REACHED_SHARE = 0.4
"""Share of the rate of one large product that a backbone reaches; `benchmarks/cpu.py` prints it for a CPU."""

ADAMW_BYTES = 28
"""Of a step, for each weight: weight, gradient and two moments are read, all but the gradient are written."""

START_SECONDS = 5.0
"""Of a condition, to load the weights."""

ACTIVATION_BYTES = 6
"""Kept for the gradient, for each token and output of a matrix, in bf16 and float32 together."""

PROGRAM_BYTES = 600_000_000
"""Of memory, for Python and its packages."""


@dataclass(frozen=True)
class Load:
    """What an arm asks of a device, whatever the data.

    Attributes:
        role: Role of the arm.
        trains: What it trains: `none`, `head`, `adapter` or `all`.
        epochs: At most.
        masks: How many masks it measures.
        matrices: Weights of the matrices of attention and MLPs.
        outputs: Outputs of these matrices, all together.
        weights: All weights.
        trained: Weights that it trains.
        batch_tokens: Tokens of the largest batch with a gradient.
    """

    role: str
    trains: str
    epochs: int
    masks: int
    matrices: int
    outputs: int
    weights: int
    trained: int
    batch_tokens: int

    @property
    def memory_bytes(self) -> int:
        """Memory at the highest: weights, AdamW, the sums of a mask's gradient, and what a batch keeps for it."""
        has_gradient = self.masks > 0 or self.trains in ("adapter", "all")
        activations = ACTIVATION_BYTES * self.outputs * self.batch_tokens if has_gradient else 0
        training = 12 * self.trained + (2 * self.matrices if self.trains == "adapter" else 0)
        return PROGRAM_BYTES + 4 * self.weights + max(training, 12 * self.matrices if self.masks else 0) + activations

    @property
    def disk_bytes(self) -> int:
        """What stays on disk: the trained weights, and each mask as a file and in the checkpoint."""
        return 4 * self.trained + (self.matrices // 4 if self.masks else 0)


@dataclass(frozen=True)
class Work:
    """What a condition makes its device compute, at most.

    Attributes:
        load: Of its arm.
        forward: Tokens that pass forward alone.
        adapter: Tokens that pass forward, and backward to activations.
        gradient: Tokens that pass forward, and backward to weights, in training.
        masked: The same for a mask.
        steps: Steps of the optimizer.
    """

    load: Load
    forward: int
    adapter: int
    gradient: int
    masked: int
    steps: int

    @property
    def cost(self) -> int:
        """Tokens through the backbone; a pass backward counts as one to activations, and as another to weights."""
        return self.forward + 2 * self.adapter + 3 * (self.gradient + self.masked)

    def seconds(self, rates: "Rates") -> float:
        """Return what it takes by arithmetic."""
        products = 2 * self.load.matrices * self.cost / (REACHED_SHARE * rates.flops)
        return START_SECONDS + products + ADAMW_BYTES * self.load.trained * self.steps / rates.bytes


@dataclass(frozen=True)
class Rates:
    """What a device does in a second: FLOPs of products of matrices, and bytes of a copy."""

    flops: float
    bytes: float


def load_of(role: str, model: Any, trainer: Any, datamodule: Any) -> Load:
    """Return what an arm asks of a device."""
    from datamodules.base import CALIBRATION_TOKENS
    from influence_masking import find_candidates

    matrices = [p for name, p in find_candidates(model, model.candidate_targets()).items() if "lora_" not in name]
    trains = model.trains
    masks = len(model.fractions) * len(model.tails) * len(model.scores) if role == "sweep" else int(role == "mask")
    return Load(
        role,
        trains,
        0 if trains == "none" else trainer.max_epochs,
        masks,
        sum(p.numel() for p in matrices),
        sum(p.shape[0] for p in matrices),
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        max(
            datamodule.batch_size * datamodule.max_length if trains != "none" else 0, CALIBRATION_TOKENS if masks else 0
        ),
    )


def work_of(load: Load, datamodule: Any) -> Work:
    """Return what a condition computes: its masks and its training on train, every evaluation on dev, and eval once."""
    train, dev, held_out = (datamodule.num_tokens(split) for split in (datamodule.train_on, "dev", "eval"))
    steps = load.epochs * -(-datamodule.split_sizes[datamodule.train_on] // datamodule.batch_size)
    masked = datamodule.num_tokens("train") if load.masks else 0
    measured = load.masks * masked + (load.masks * dev if load.role == "sweep" else 0)
    if load.trains in ("adapter", "all"):
        trained = load.epochs * train
        adapter, gradient = (trained, 0) if load.trains == "adapter" else (0, trained)
        return Work(load, held_out + measured + load.epochs * dev, adapter, gradient, masked, steps)
    features = train + dev if load.trains == "head" else 0
    return Work(load, held_out + measured + features, 0, 0, masked, steps)


def rates_of(accelerator: str, precision: str) -> Rates | None:
    """Return the rates of a device, measured in about a second; None for a TPU, which is not measured."""
    import torch

    if accelerator == "xla":
        return None
    size = 8192 if accelerator == "cuda" else 2048
    dtype = torch.bfloat16 if "bf16" in precision else torch.float32
    factor = torch.randn(size, size, device=accelerator).to(dtype)
    block = torch.empty(1 << 26, device=accelerator)
    product = _best(lambda: factor @ factor, accelerator)
    return Rates(2 * size**3 / product, 2 * block.nbytes / _best(lambda: block.clone(), accelerator))


def _best(work: Callable[[], Any], accelerator: str) -> float:
    from torch import cuda

    seconds = []
    for _ in range(4):
        start = perf_counter()
        work()
        if accelerator == "cuda":
            cuda.synchronize()
        seconds.append(perf_counter() - start)
    return min(seconds)


def shared_gradients(works: Mapping[Condition, Work]) -> dict[Condition, Work]:
    """Return the works without the gradients that an earlier arm of the same start has taken already."""
    taken: set[tuple[str, str | None, int]] = set()
    left = {}
    for condition, work in works.items():
        key = (condition.dataset, condition.starts_from, condition.seed)
        left[condition] = replace(work, masked=0) if key in taken else work
        taken |= {key} if work.load.masks else set()
    return left


def corrections(works: Mapping[Condition, Work], rates: Rates) -> dict[str, float]:
    """Return measured over reckoned seconds of complete conditions, the median by what they train."""
    found: dict[str, list[float]] = defaultdict(list)
    for condition, work in works.items():
        if condition.is_complete:
            record = read_json(condition.folder / METRICS_FILE)
            done = work.load.epochs and min(1.0, record.get("epochs", 0) / work.load.epochs)
            share = done if work.load.trains in ("adapter", "all") else 1.0
            reckoned = replace(
                work,
                forward=int(work.forward * share),
                adapter=int(work.adapter * share),
                gradient=int(work.gradient * share),
                steps=int(work.steps * share),
            )
            seconds = record["seconds"]["fit"] + record["seconds"]["evaluate"]
            found[work.load.trains].append(seconds / reckoned.seconds(rates))
    return {trains: median(ratios) for trains, ratios in found.items()}


def describe(works: Mapping[Condition, Work], todo: Sequence[Condition], rates: Rates | None, devices: int) -> str:
    """Return the table of datasets and arms that are to run, and the sums, as Markdown."""
    from modules.store import LIMIT

    shared = shared_gradients(works)
    ratios = corrections(shared, rates) if rates else {}
    groups: dict[tuple[str, str], list[Condition]] = defaultdict(list)
    for condition in todo:
        groups[condition.dataset, condition.arm].append(condition)
    lines = [
        "| dataset | arm | conditions | minutes each | from | memory GB | disk GB |",
        "|---|---|--:|--:|---|--:|--:|",
    ]
    total = 0.0
    for (dataset, arm), conditions in groups.items():
        load, minutes, source = works[conditions[0]].load, "", "no rate is known"
        if rates:
            ratio = ratios.get(load.trains, 1.0)
            seconds = [shared[condition].seconds(rates) * ratio for condition in conditions]
            total += sum(seconds)
            minutes = f"{sum(seconds) / len(seconds) / 60:.1f}"
            source = "complete conditions" if load.trains in ratios else "arithmetic"
        memory, disk = load.memory_bytes / 1e9, load.disk_bytes * len(conditions) / 1e9
        lines.append(f"| {dataset} | {arm} | {len(conditions)} | {minutes} | {source} | {memory:.1f} | {disk:.2f} |")
    memory = max((works[condition].load.memory_bytes for condition in todo), default=0) / 1e9
    kept = (sum(works[condition].load.disk_bytes for condition in todo) + LIMIT) / 1e9
    unfinished = max((12 * works[condition].load.trained for condition in todo), default=0) / 1e9
    on = f"on {devices} device{'s' * (devices > 1)}"
    duration = f"at most {_duration(total / devices)} {on}" if rates else "for an unknown time"
    lines.append(f"\nTo run: {len(todo)} conditions, {duration}. Early stopping ends most fits sooner.")
    lines.append(
        f"Memory: {memory * devices:.1f} GB. Disk: {kept:.1f} GB, of which {LIMIT / 1e9:.1f} GB at most are kept "
        f"tensors, and {unfinished:.1f} GB more while a fit is unfinished."
    )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"
