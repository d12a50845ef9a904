"""A grid of learning rates for the arms that train more than the head, compared on dev.

    python benchmarks/learning_rates.py                                              # docstrings, no download
    python benchmarks/learning_rates.py --backbone Qwen/Qwen2-0.5B --datasets sst2 agnews --set data.max_length=64

Each rate is an arm of its own in one `influence experiment`: a copy of the arm's file with the rate, which a second run
resumes. The table has what the epoch with the best accuracy on dev reached. The best rate has the highest mean accuracy
over the datasets. The choice belongs into configs/backbones/<model_type>.yaml. Eval is not looked at.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import yaml
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_app.grid.experiment import main
from lightning_app.run.configs import configs_folder, read_config

RATES = {"lora": ("2e-4", "5e-4", "1e-3"), "full_ft": ("1e-5", "2e-5", "5e-5")}
METRICS = ("accuracy", "nll")


def compare() -> None:
    """Run the grid, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="all-MiniLM-L6-v2")
    parser.add_argument("--datasets", nargs="+", default=["docstrings"])
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--epochs", type=int, default=3)
    for arm, rates in RATES.items():
        parser.add_argument(f"--{arm}", nargs="*", default=rates, metavar="RATE")
    parser.add_argument("--set", nargs="+", default=[], help="as of influence experiment")
    parser.add_argument("--outputs", default="outputs")
    options = parser.parse_args()
    name = f"learning_rates-{Path(options.backbone).name}"
    folder = Path(options.outputs) / name
    files = write_arms(folder / "arms", options)
    words = ["--backbone", options.backbone, "--datasets", *options.datasets, "--seeds", *options.seeds]
    words += ["--arms", *map(str, files), "--name", name, "--outputs", options.outputs]
    words += ["--set", *options.set] if options.set else []
    if main(words, lambda folder: ""):
        sys.exit(1)
    print_table(pd.DataFrame(read(folder, arm, rate) for arm in RATES for rate in getattr(options, arm)), options)


def write_arms(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Write a file for each arm and rate, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for arm in RATES:
        for rate in getattr(options, arm):
            config = read_config(configs_folder() / "arms" / f"{arm}.yaml")
            config["arm"] |= {"name": f"{arm}-{rate}"}
            config["model"].setdefault("init_args", {})["learning_rate"] = float(rate)
            config["trainer"] = config.get("trainer", {}) | {"max_epochs": options.epochs}
            files.append(folder / f"{arm}-{rate}.yaml")
            files[-1].write_text(yaml.safe_dump(config, sort_keys=False))
    return files


def read(folder: Path, arm: str, rate: str) -> dict[str, object]:
    """Return what the best epoch of a rate reached on dev, means over seeds, by dataset."""
    row: dict[str, object] = {"arm": arm, "rate": rate}
    for dataset in sorted({file.parents[2].name for file in folder.glob("*/*/seed*/metrics.json")}):
        runs = [best_epoch(run) for run in folder.glob(f"{dataset}/{arm}-{rate}/seed*")]
        row |= {f"{dataset} {metric}": sum(run[metric] for run in runs) / len(runs) for metric in METRICS}
    return row


def best_epoch(run: Path) -> dict[str, float]:
    """Return the metrics on dev after the epoch that has the best accuracy there, which is the one that is kept."""
    events = EventAccumulator(str(run), size_guidance={SCALARS: 0}).Reload()
    curves = {metric: {event.step: event.value for event in events.Scalars(f"val/{metric}")} for metric in METRICS}
    step = max(curves["accuracy"], key=lambda step: (curves["accuracy"][step], -step))
    return {metric: curve[step] for metric, curve in curves.items()}


def print_table(rows: pd.DataFrame, options: argparse.Namespace) -> None:
    """Print the table, with the best rate of each arm marked."""
    accuracies = rows[[f"{dataset} accuracy" for dataset in options.datasets]].mean(axis=1)
    best = set(accuracies.groupby(rows["arm"]).idxmax())
    print(
        f"\n{options.backbone}, at most {options.epochs} epochs, {len(options.seeds)} seeds, accuracy % / NLL on dev\n"
    )
    print(f"| arm | rate | {' | '.join(options.datasets)} | mean accuracy % |")
    print("|---|---|" + "---|" * (len(options.datasets) + 1))
    for place, row in rows.iterrows():
        cells = [f"{100 * row[f'{name} accuracy']:.1f} / {row[f'{name} nll']:.3f}" for name in options.datasets]
        mean = f"{100 * accuracies[place]:.1f}"
        print(f"| {row['arm']} | {row['rate']} | {' | '.join(cells)} | {f'**{mean}**' if place in best else mean} |")


if __name__ == "__main__":
    compare()
