"""`influence report`: what an experiment found, as a table and a picture."""

from pathlib import Path

import matplotlib
import pandas as pd
from jsonargparse import ArgumentParser
from scipy import stats

from lightning_app.errors import UsageError
from lightning_app.files import METRICS_FILE, read_json, write_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ARM_ORDER = ("baseline", "influence", "influence_tuned", "lora", "full_ft")
DATASET_ORDER = ("sst2", "agnews", "dbpedia", "yelp")
COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
"""Okabe and Ito's palette, which the colour-blind can tell apart; one colour an arm."""


def load_results(experiment: Path) -> pd.DataFrame:
    """One row a complete condition of `<outputs>/<experiment>`, in the order of dataset, arm and seed; no sweeps.

    Raises:
        UsageError: If the folder holds no complete condition.
    """
    files = sorted(experiment.glob(f"*/*/seed*/{METRICS_FILE}"))
    if not files:
        raise UsageError(
            f"No results in {experiment}: asked for <dataset>/<arm>/seed<k>/{METRICS_FILE}, found none. "
            "Make them: influence experiment"
        )
    rows = [read_json(file) for file in files]
    missing = [str(file) for file, row in zip(files, rows, strict=True) if not {"dataset", "arm", "seed"} <= row.keys()]
    if missing:
        raise UsageError(f"{missing[0]} names no dataset, arm and seed. Delete it and run the condition again.")
    results = pd.DataFrame(rows)
    return results[results["arm"] != "sweep"].sort_values(["dataset", "arm", "seed"], ignore_index=True)


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row a dataset and arm: the mean over seeds, and the half width of its 95 % interval.

    Args:
        results: One row a condition, as `load_results` gives it.

    Returns:
        Columns `dataset`, `arm`, `seeds`; `<metric>` and `<metric>_half` for accuracy, macro_f1 and nll, the half
        width from Student's t over the seeds (NaN with one seed); and the means of what else a condition records.
    """
    rows = []
    for (dataset, arm), group in results.groupby(["dataset", "arm"], sort=False):
        row = {"dataset": dataset, "arm": arm, "seeds": len(group)}
        for metric in ("accuracy", "macro_f1", "nll"):
            row[metric], row[f"{metric}_half"] = group[metric].mean(), half_width(group[metric])
        for column in ("trainable_parameters", "masked_parameters", "predicted_change", "measured_change"):
            row[column] = group[column].mean() if column in group else float("nan")
        row["seconds"] = group["seconds"].map(lambda phases: phases.get("fit", 0) + phases["evaluate"]).mean()
        rows.append(row)
    summary = pd.DataFrame(rows)
    order = [summary["dataset"].map(_rank(DATASET_ORDER)), summary["arm"].map(_rank(ARM_ORDER))]
    return summary.iloc[pd.DataFrame(order).T.reset_index(drop=True).sort_values(["dataset", "arm"]).index]


def half_width(values: pd.Series) -> float:
    """Half of the 95 % interval of a mean by Student's t; NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def _rank(order: tuple[str, ...]):
    return lambda name: (order.index(name) if name in order else len(order), name)


def comparison_table(results: pd.DataFrame) -> str:
    """The arms side by side, as a Markdown table.

    `predicted` and `measured` are changes of the training loss (nats a sample) by zeroing the masked weights.
    """
    summary = summarise(results)
    table = pd.DataFrame(
        {
            "dataset": summary["dataset"],
            "arm": summary["arm"],
            "seeds": summary["seeds"],
            "accuracy %": [_interval(*pair, 100) for pair in zip(summary.accuracy, summary.accuracy_half, strict=True)],
            "macro-F1 %": [_interval(*pair, 100) for pair in zip(summary.macro_f1, summary.macro_f1_half, strict=True)],
            "NLL": [_interval(*pair, 1, 3) for pair in zip(summary.nll, summary.nll_half, strict=True)],
            "trained": summary["trainable_parameters"].map(_count),
            "masked": summary["masked_parameters"].map(_count),
            "predicted": summary["predicted_change"].map(_signed),
            "measured": summary["measured_change"].map(_signed),
            "seconds": summary["seconds"].map("{:.0f}".format),
        }
    )
    return table.to_markdown(index=False, disable_numparse=True)


def _interval(mean: float, half: float, scale: float, digits: int = 1) -> str:
    value = f"{mean * scale:.{digits}f}"
    return value if pd.isna(half) else f"{value} ± {half * scale:.{digits}f}"


def _count(value: float) -> str:
    return "" if pd.isna(value) else f"{value:,.0f}"


def _signed(value: float) -> str:
    return "" if pd.isna(value) else f"{value:+.3f}"


def plot_scores(summary: pd.DataFrame) -> plt.Figure:
    """Accuracy and macro-F1 by dataset and arm, as points with their intervals over seeds."""
    datasets, arms = list(dict.fromkeys(summary["dataset"])), list(dict.fromkeys(summary["arm"]))
    figure, axes = plt.subplots(1, 2, figsize=(4 + 2.2 * len(datasets), 4), sharey=True, layout="constrained")
    for axis, metric, title in zip(axes, ("accuracy", "macro_f1"), ("Accuracy", "Macro-F1"), strict=True):
        for index, arm in enumerate(arms):
            rows = summary[summary["arm"] == arm]
            x = rows["dataset"].map(datasets.index) + (index - (len(arms) - 1) / 2) * 0.8 / len(arms)
            error = rows[f"{metric}_half"] * 100  # NaN, with one seed, draws no bar
            colour = COLOURS[index % len(COLOURS)]
            axis.errorbar(x, rows[metric] * 100, error, fmt="o", capsize=4, color=colour, label=arm)
            for position, value in zip(x, rows[metric] * 100, strict=True):
                axis.annotate(f"{value:.0f}", (position, value), (0, 7), textcoords="offset points", ha="center")
        axis.set(title=title, xticks=range(len(datasets)), xticklabels=datasets, xlim=(-0.6, len(datasets) - 0.4))
        axis.grid(axis="y", alpha=0.3)
        axis.margins(y=0.12)
    axes[0].set_ylabel("% of the eval split")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms), frameon=False)
    return figure


def write_report(folder: Path) -> str:
    """Writes `report.md`, `scores.png` and `scores.svg` into an experiment's folder.

    Returns:
        The comparison table and where the report lies, for the terminal.

    Raises:
        UsageError: If the folder holds no complete condition.
    """
    results = load_results(folder)
    table = comparison_table(results)
    figure = plot_scores(summarise(results))
    for kind in ("png", "svg"):
        figure.savefig(folder / f"scores.{kind}", dpi=150)
    plt.close(figure)
    write_text(folder / "report.md", _page(folder.name, results, table))
    return f"{table}\n\n{_reading(results)}\n\nReport: {folder / 'report.md'}"


def _page(name: str, results: pd.DataFrame, table: str) -> str:
    backbones = ", ".join(sorted(results["backbone"].unique()))
    return (
        f"# {name}\n\nBackbone: {backbones}.\n\n{table}\n\n![Accuracy and macro-F1 by dataset and arm](scores.png)\n\n"
        f"{_reading(results)}\n\n## Data\n\n{_protocol(results)}\n"
    )


MUST_AGREE = {
    (): ("backbone", "backbone_fingerprint", "precision", "early_stop_on"),
    ("dataset",): ("eval_split", "split_sizes"),
    ("dataset", "seed"): ("dataset_fingerprint",),
}
"""What the conditions of an experiment, of a dataset, and of a dataset and seed must have in common to be compared."""


def mixtures(results: pd.DataFrame) -> list[str]:
    """A sentence for each way in which results were made under different settings; none if they may be compared."""
    found = []
    for keys, columns in MUST_AGREE.items():
        for name, group in results.groupby(list(keys)) if keys else [((), results)]:
            for column in group.columns.intersection(columns):
                values = list(dict.fromkeys(str(value) for value in group[column]))
                if len(values) > 1:
                    which = f" of {' seed '.join(map(str, name))}" if keys else ""
                    found.append(f"NOT COMPARABLE: the results{which} mix {column}: {' and '.join(values)}.")
    return found


def _reading(results: pd.DataFrame) -> str:
    """How to read the table, in plain words."""
    lines = [
        *mixtures(results),
        "± is half of the 95 % interval of the mean over seeds (Student's t); one seed has none.",
        "predicted: the first-order change of the training loss by zeroing the masked weights, minus the sum of "
        "theta * dL/dtheta over them. measured: the real change on the same samples. The lowest sign-gradient scores "
        "are weights whose removal raises the loss to first order.",
    ]
    if (results["early_stop_on"] == "eval").any():
        lines.append("Early stopping looked at the eval split that is reported: these scores are optimistic.")
    return "\n".join(f"* {line}" for line in lines)


def _protocol(results: pd.DataFrame) -> str:
    rows = [
        {
            "dataset": row.dataset,
            "seed": row.seed,
            "eval split": row.eval_split,
            **row.split_sizes,
            "fingerprint": row.dataset_fingerprint[:12],
        }
        for row in results.drop_duplicates(["dataset", "seed", "dataset_fingerprint"]).itertuples()
    ]
    return pd.DataFrame(rows).to_markdown(index=False)


def latest_experiment(outputs: Path) -> Path:
    """The experiment whose results are the newest.

    Raises:
        UsageError: If there is none.
    """
    newest = max(outputs.glob(f"*/*/*/seed*/{METRICS_FILE}"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UsageError(f"No results below {outputs.resolve()}. Make them: influence experiment")
    return newest.parents[3]


def main(argv: list[str]) -> int:
    """Writes the report of an experiment and prints its table."""
    parser = ArgumentParser(
        prog="influence report", description="Tables and plots of an experiment's results.", exit_on_error=False
    )
    parser.add_argument("--results", type=str | None, default=None, help="An experiment's folder; default the newest.")
    parser.add_argument("--outputs", type=str, default="outputs", help="Where the newest is looked for.")
    options = parser.parse_args(argv)
    print(write_report(Path(options.results) if options.results else latest_experiment(Path(options.outputs))))
    return 0
