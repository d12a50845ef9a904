"""The arms with a training loop, beside a plain script of Hugging Face Trainer and peft on the same splits.

    python benchmarks/arms.py --dataset sst2 --seeds 0 1 2      # needs the Hub, or --dataset docstrings, which does not

Both get the same rows, epochs, batch sizes, learning rates and evaluation points: dev after every epoch, eval once.
Seconds are those of training and evaluation; loading the weights counts for neither.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from modules.backbone import EMBEDDED_NAME, resolve_backbone

HERE = Path(__file__).parent
ARMS = ("baseline", "lora", "full_ft")


def main() -> None:
    """Runs both, seed by seed, and prints accuracies, seconds and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="sst2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            rows += ours(Path(folder), options, seed)
            splits = next((Path(folder) / "cache" / "splits").glob(f"{options.dataset}-*.parquet"))
            rows += theirs(splits, options, seed)
            splits.unlink()
    table = pd.DataFrame(rows).groupby(["arm", "who"]).mean().unstack("who").loc[list(ARMS)]
    spread = pd.DataFrame(rows).groupby(["arm", "who"])["accuracy"].agg(["min", "max"]).unstack("who").loc[list(ARMS)]
    print(
        "\n| arm | accuracy %: ours | Trainer + peft | epochs: ours | theirs | seconds: ours | theirs | ours / theirs |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for arm in ARMS:
        cells = [
            f"{100 * table['accuracy', who][arm]:.1f} ({100 * spread['min', who][arm]:.1f} to "
            f"{100 * spread['max', who][arm]:.1f})"
            for who in ("ours", "theirs")
        ]
        cells += [f"{table['epochs', who][arm]:.1f}" for who in ("ours", "theirs")]
        cells += [f"{table['seconds', who][arm]:.1f}" for who in ("ours", "theirs")]
        print(
            f"| {arm} | {' | '.join(cells)} | {table['seconds', 'ours'][arm] / table['seconds', 'theirs'][arm]:.2f} |"
        )
    total = table["seconds"].sum()
    print(f"| all | | | | | {total['ours']:.1f} | {total['theirs']:.1f} | {total['ours'] / total['theirs']:.2f} |")


def ours(folder: Path, options: argparse.Namespace, seed: int) -> list[dict]:
    """Runs `influence experiment`, as users do."""
    words = ["--datasets", options.dataset, "--arms", *ARMS, "--backbone", EMBEDDED_NAME, "--seeds", str(seed)]
    sets = [
        f"data.max_length={options.max_length}",
        *(f"{arm}:trainer.max_epochs={options.epochs}" for arm in ARMS[1:]),
    ]
    command = [sys.executable, "-m", "lightning_app", "experiment", *words, "--set", *sets]
    subprocess.run([*command, "--outputs", str(folder), "--name", "arms"], check=True)
    found = []
    for arm in ARMS:
        metrics = json.loads((folder / "arms" / options.dataset / arm / f"seed{seed}" / "metrics.json").read_text())
        seconds = metrics["seconds"]["fit"] + metrics["seconds"]["evaluate"]
        kept = {name: metrics[name] for name in ("accuracy", "macro_f1", "epochs")}
        found.append({"who": "ours", "arm": arm, "seconds": seconds, **kept})
    return found


def theirs(splits: Path, options: argparse.Namespace, seed: int) -> list[dict]:
    """Runs the script beside this one on the splits that ours has just used."""
    words = ["--seed", str(seed), "--max_length", str(options.max_length), "--epochs", str(options.epochs)]
    command = [sys.executable, str(HERE / "arms_peer.py"), str(splits), resolve_backbone(EMBEDDED_NAME), *words]
    quiet = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet).stdout
    results = [json.loads(line.removeprefix("RESULT ")) for line in printed.splitlines() if line.startswith("RESULT ")]
    return [{"who": "theirs", **result} for result in results]


if __name__ == "__main__":
    main()
