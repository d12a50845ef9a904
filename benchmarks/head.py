"""Compares the arms that train the head alone with a logistic regression on the same vectors.

    python benchmarks/head.py                                                          # docstrings, no download
    python benchmarks/head.py --backbone Qwen/Qwen2-0.5B --datasets sst2 --seeds 0 1 2 3 4
    python benchmarks/head.py --datasets agnews dbpedia yelp --set data.max_length=64 data.eval_size=600

The arms run by `influence experiment`. The peer is scikit-learn's LogisticRegression on the rows of `head_init` and of
`train`, on the vectors themselves and on vectors divided by each dimension's root mean square; dev chooses C and which
of the two. All are evaluated on eval. Needs scikit-learn.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_app.grid.condition import command_line
from lightning_app.grid.experiment import build_conditions, experiment_folder, main, parse_options
from lightning_app.results.files import METRICS_FILE, read_json
from lightning_app.run.cli import InfluenceCLI
from modules.features import Batch, extract

ROWS = {"baseline": "head_init", "baseline_converged": "train"}
STRENGTHS = 10.0 ** np.arange(-5, 2)
"""The values of C, the inverse of the penalty, of which dev chooses one."""

Split = tuple[np.ndarray, np.ndarray]


def compare() -> None:
    """Run the arms, then print a table of means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="all-MiniLM-L6-v2")
    parser.add_argument("--datasets", nargs="+", default=["docstrings"])
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--set", nargs="+", default=[], help="as of influence experiment")
    parser.add_argument("--outputs", default="outputs")
    options = parser.parse_args()
    words = ["--backbone", options.backbone, "--datasets", *options.datasets, "--seeds", *options.seeds]
    words += ["--arms", *ROWS, "--name", f"head-{Path(options.backbone).name}", "--outputs", options.outputs]
    words += ["--set", *options.set] if options.set else []
    if main(words, lambda folder: ""):
        sys.exit(1)
    parsed = parse_options(words)
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for condition in build_conditions(parsed, experiment_folder(parsed)):
        record = read_json(condition.folder / METRICS_FILE)
        run = InfluenceCLI(command_line(condition), run=False)
        splits = {split: vectors(run, split) for split in (ROWS[condition.arm], "dev", "eval")}
        row = (100 * record["accuracy"], record["nll"], *logistic_regression(*splits.values()))
        found.setdefault((condition.dataset, condition.arm), []).append(row)
    print(f"\n{options.backbone}, means over {len(options.seeds)} seeds\n")
    print("| dataset | arm | accuracy % | worst | NLL | LogisticRegression accuracy % | NLL | points below it |")
    print("|---|---|---|---|---|---|---|---|")
    for (dataset, arm), rows in found.items():
        (accuracy, nll, peer_accuracy, peer_nll), worst = np.mean(rows, 0), np.min(rows, 0)[0]
        cells = f"{accuracy:.1f} | {worst:.1f} | {nll:.3f} | {peer_accuracy:.1f} | {peer_nll:.3f}"
        print(f"| {dataset} | {arm} | {cells} | {peer_accuracy - accuracy:+.1f} |")


def vectors(run: InfluenceCLI, split: str) -> Split:
    """Return the vectors [rows, width] of a split under the run's precision, and its labels [rows]."""
    run.datamodule.setup()
    labels: list[torch.Tensor] = []

    def encode(batch: Batch) -> torch.Tensor:
        labels.append(batch["labels"])
        with run.trainer.precision_plugin.val_step_context():
            return run.model.encode(batch["input_ids"], batch["attention_mask"])

    run.model.eval()
    features = extract(encode, run.datamodule.ordered_dataloader(split), torch.device("cpu"), bar=sys.stderr.isatty())
    return features.vectors.float().numpy(), torch.cat(labels).numpy()


def logistic_regression(train: Split, dev: Split, held_out: Split) -> tuple[float, float]:
    """Return accuracy in percent and NLL in nats on the last split, of the best regression on the second."""
    size = np.maximum(np.sqrt(np.mean(train[0] ** 2, 0)), 1e-3 * np.sqrt(np.mean(train[0] ** 2)))
    best: tuple[float, Any, np.ndarray] = (-1.0, None, size)
    for scale in (np.ones_like(size), size):
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=1000).fit(train[0] / scale, train[1])
            if (accuracy := model.score(dev[0] / scale, dev[1])) > best[0]:
                best = accuracy, model, scale
    _, model, scale = best
    probabilities = model.predict_log_proba(held_out[0] / scale)[np.arange(len(held_out[1])), held_out[1]]
    return 100 * model.score(held_out[0] / scale, held_out[1]), float(-probabilities.mean())


if __name__ == "__main__":
    compare()
