"""Counts the computed tokens that are padding, by dataset and phase, beside random batches padded to their longest row.

    python benchmarks/padding.py --datasets sst2 agnews dbpedia yelp   # needs the Hub; docstrings does not

Training is the mean of ten epochs, at the shipped batch sizes and lengths. The peer has the same rows and batch sizes
in a random order: what a Trainer with a padding collator computes.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from datamodules import TextDataModule
from lightning_app.run.cli import PrepareData
from lightning_app.run.configs import config_file, configs_folder
from modules.backbone import EMBEDDED_NAME

EPOCHS = 10
PHASES = ("training", "evaluation", "gradient")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["docstrings"])
    parser.add_argument("--backbone", default=EMBEDDED_NAME, help="whose tokenizer counts the tokens")
    options = parser.parse_args()
    print(f"tokenizer of {options.backbone}\n")
    print("| dataset | tokens a row | " + " | ".join(f"{phase} % | random order" for phase in PHASES) + " |")
    print("|---|---|---|---|---|---|---|---|")
    for dataset in options.datasets:
        configs = [configs_folder() / "base.yaml", config_file("data", dataset), config_file("arms", "full_ft")]
        words = [word for path in configs for word in ("-c", str(path))]
        data = PrepareData([*words, f"--model.backbone={options.backbone}"]).datamodule
        print(f"| {dataset} | {' | '.join(row_of(data))} |", flush=True)


def row_of(data: TextDataModule) -> list[str]:
    """Return the cells of a dataset."""
    train = data.train_dataloader()
    lengths: dict[str, list[int]] = {phase: [] for phase in PHASES}
    ours = dict.fromkeys(lengths, (0, 0))
    for epoch in range(EPOCHS):
        train.sampler.set_epoch(epoch)
        ours["training"] = add(ours["training"], lengths["training"], train)
    ours["evaluation"] = add(ours["evaluation"], lengths["evaluation"], data.predict_dataloader())
    ours["gradient"] = add(ours["gradient"], lengths["gradient"], data.calibration_dataloader())
    cells = [f"{sum(lengths['training']) / len(lengths['training']):.0f}"]
    sizes = {"training": data.batch_size, "evaluation": 64, "gradient": 32}
    for phase, (real, computed) in ours.items():
        cells += [f"{100 * (1 - real / computed):.1f}", f"{100 * random_order(lengths[phase], sizes[phase]):.1f}"]
    return cells


def add(counts: tuple[int, int], lengths: list[int], batches: Iterable[dict[str, torch.Tensor]]) -> tuple[int, int]:
    """Add the real and the computed tokens of batches, and keep the rows' lengths."""
    real, computed = counts
    for batch in batches:
        mask = batch["attention_mask"]
        lengths += mask.sum(1).tolist()
        real, computed = real + int(mask.sum()), computed + mask.numel()
    return real, computed


def random_order(lengths: list[int], size: int) -> float:
    """Return the share of padding where rows are batched in a random order."""
    order = torch.tensor(lengths)[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))]
    computed = sum(int(batch.max()) * len(batch) for batch in order.split(size))
    return 1 - int(order.sum()) / computed


if __name__ == "__main__":
    main()
