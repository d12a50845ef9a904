"""The arms with a training loop, beside a plain script of Hugging Face Trainer and peft on the same splits.

    python benchmarks/arms.py --dataset sst2 --seeds 0 1 2      # needs the Hub, or --dataset docstrings, which does not
    python benchmarks/arms.py --precision fp32 bf16             # a table each; bf16 is bf16-mixed, for both

Both get the same rows, epochs, batch sizes, learning rates and evaluation points: dev after every epoch, eval once.
Seconds are those of training and evaluation; loading the weights counts for neither. With bf16 the last table compares
our totals with the peer's in fp32 as well.
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
WHO = ("ours", "theirs")
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def main() -> None:
    """Run both, seed by seed, and print accuracies, seconds and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="sst2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    rows: dict[str, list[dict]] = {precision: [] for precision in options.precision}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for precision, found in rows.items():
                found += ours(Path(folder) / precision, options, seed, precision)
                splits = next((Path(folder) / precision / "cache" / "splits").glob(f"{options.dataset}-*.parquet"))
                found += theirs(splits, options, seed, precision)
                splits.unlink()
    totals = {precision: print_table(precision, pd.DataFrame(found)) for precision, found in rows.items()}
    print_totals(totals)


def print_table(precision: str, rows: pd.DataFrame) -> pd.Series:
    """Print what was found in one precision; return the seconds of all arms, by who."""
    groups = rows.groupby(["arm", "who"])
    table = groups[["epochs", "seconds"]].mean().unstack("who").loc[list(ARMS)]
    accuracy = (100 * groups["accuracy"].agg(["mean", "min", "max"])).unstack("who").loc[list(ARMS)]
    print(f"\n{precision}\n\n| arm | accuracy %: ours | Trainer + peft | epochs: ours | theirs | ", end="")
    print("seconds: ours | theirs | ours / theirs | an epoch |\n|---|---|---|---|---|---|---|---|---|")
    for arm in ARMS:
        cells = ["{:.1f} ({:.1f} to {:.1f})".format(*accuracy.loc[arm].xs(who, level="who")) for who in WHO]
        cells += [f"{table[what, who][arm]:.1f}" for what in ("epochs", "seconds") for who in WHO]
        ratios = [table[what, "ours"][arm] / table[what, "theirs"][arm] for what in ("seconds", "epochs")]
        cells += [f"{ratios[0]:.2f}", f"{ratios[0] / ratios[1]:.2f}"]
        print(f"| {arm} | {' | '.join(cells)} |")
    total = table["seconds"].sum()
    print(f"| all | | | | | {total['ours']:.1f} | {total['theirs']:.1f} | {total['ours'] / total['theirs']:.2f} | |")
    return total


def print_totals(totals: dict[str, pd.Series]) -> None:
    """Print our seconds, and the peer's in the same precision and in fp32."""
    print("\n| precision | seconds: ours | theirs | ours / theirs | ours / theirs in fp32 |\n|---|---|---|---|---|")
    for precision, total in totals.items():
        mine, plain = total["ours"], totals.get("fp32", {}).get("theirs")
        cells = [f"{mine:.1f}", f"{total['theirs']:.1f}", f"{mine / total['theirs']:.2f}"]
        print(f"| {precision} | {' | '.join([*cells, f'{mine / plain:.2f}' if plain else ''])} |")


def ours(folder: Path, options: argparse.Namespace, seed: int, precision: str) -> list[dict]:
    """Run `influence experiment`, as users do."""
    words = ["--datasets", options.dataset, "--arms", *ARMS, "--backbone", EMBEDDED_NAME, "--seeds", str(seed)]
    sets = [
        f"data.max_length={options.max_length}",
        f"trainer.precision={PRECISIONS[precision]}",
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


def theirs(splits: Path, options: argparse.Namespace, seed: int, precision: str) -> list[dict]:
    """Run the script beside this one on the splits that ours has just used."""
    words = ["--seed", str(seed), "--max_length", str(options.max_length), "--epochs", str(options.epochs)]
    words += ["--precision", precision]
    command = [sys.executable, str(HERE / "arms_peer.py"), str(splits), resolve_backbone(EMBEDDED_NAME), *words]
    quiet = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet).stdout
    results = [json.loads(line.removeprefix("RESULT ")) for line in printed.splitlines() if line.startswith("RESULT ")]
    return [{"who": "theirs", **result} for result in results]


if __name__ == "__main__":
    main()
