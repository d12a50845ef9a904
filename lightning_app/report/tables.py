"""Numbers to words: each table as it is shown. What is shown is rounded; the CSV files hold the numbers themselves."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd
from scipy import stats

from lightning_app.report.comparisons import is_declared
from lightning_app.report.masks import short_names
from lightning_app.results import markdown
from lightning_app.results.statistics import VERDICT_METRIC, Difference, Verdict

METRICS = {"accuracy": ("accuracy %", 100, 1), "macro_f1": ("macro-F1 %", 100, 1), "nll": ("NLL", 1, 3)}
"""Title, scale and decimals."""

UNITS = {"accuracy": 100, "macro_f1": 100, "nll": 1, "ece": 100}
"""Differences are in points of accuracy, macro-F1 and ECE, and in nats of NLL."""

RECORDED = (
    *("trainable_parameters", "masked_parameters", "predicted_change", "measured_change"),
    *("fit_seconds", "total_seconds", "peak_memory_bytes", "optimisation_steps", "epochs"),
)
WORDS = {
    "helps": "masking helps",
    "hurts": "masking hurts",
    "no difference": "masking makes no difference",
    "cannot tell": "it cannot be told whether masking helps",
}


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row a dataset and arm: the mean over seeds, and the half width of its 95 % interval.

    Args:
        results: One row a condition, as `load_results` gives it.

    Returns:
        Columns `dataset`, `arm`, `seeds`; `<metric>` and `<metric>_half` for accuracy, macro_f1 and nll, the half
        width from Student's t over the seeds (NaN with one seed); and the means of what else a condition records.
    """
    rows = []
    for (dataset, arm), group in results.reindex(columns=[*results, *set(RECORDED) - {*results}]).groupby(
        ["dataset", "arm"], sort=False
    ):
        row = {"dataset": dataset, "arm": arm, "seeds": len(group)}
        for metric in METRICS:
            row[metric], row[f"{metric}_half"] = group[metric].mean(), half_width(group[metric])
        rows.append(row | {name: group[name].mean() for name in RECORDED})
    return pd.DataFrame(rows)


def half_width(values: pd.Series) -> float:
    """Half of the 95 % interval of a mean by Student's t; NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def comparison_table(results: pd.DataFrame) -> str:
    """The arms side by side, as a Markdown table.

    `predicted` and `measured` are changes of the training loss (nats a sample) by zeroing the masked weights.
    """
    return markdown.table(show_arms(summarise(results)))


def show_arms(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary in words."""
    table = summary[["dataset", "arm", "seeds"]].copy()
    for metric, (title, scale, digits) in METRICS.items():
        pairs = zip(summary[metric], summary[f"{metric}_half"], strict=True)
        table[title] = [interval(mean, half, scale, digits) for mean, half in pairs]
    table["trained"] = summary["trainable_parameters"].map(count)
    table["masked"] = summary["masked_parameters"].map(count)
    table["predicted"] = summary["predicted_change"].map(signed)
    table["measured"] = summary["measured_change"].map(signed)
    table["seconds"] = summary["total_seconds"].map("{:.0f}".format)
    return table


def interval(mean: float, half: float, scale: float, digits: int = 1) -> str:
    """`mean ± half`, or the mean alone."""
    value = f"{mean * scale:.{digits}f}"
    return value if pd.isna(half) else f"{value} ± {half * scale:.{digits}f}"


def count(value: float) -> str:
    """A number of weights."""
    return "" if pd.isna(value) else f"{value:,.0f}"


def signed(value: float) -> str:
    """A change of the loss."""
    return "" if pd.isna(value) else f"{value:+.3f}"


def p_value(value: float) -> str:
    """A p-value to two digits."""
    if pd.isna(value):
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def show_verdicts(found: Sequence[Verdict], gaps: dict[str, str]) -> pd.DataFrame:
    """A verdict a dataset, or what is missing for one."""
    rows = [{"dataset": one.dataset, "verdict": WORDS[one.outcome], "why": one.reason} for one in found]
    return pd.DataFrame(rows + [{"dataset": name, "verdict": "none", "why": gap} for name, gap in gaps.items()])


def show_differences(found: Sequence[Difference]) -> pd.DataFrame:
    """Differences by the metric that verdicts stand on."""
    rows = [
        {
            "dataset": one.dataset,
            "arm": one.arm,
            "minus": one.reference,
            "seeds": str(len(one.seeds)),
            "points": f"{100 * one.estimate:+.2f}",
            "95 % interval": f"{100 * one.low:+.2f} to {100 * one.high:+.2f}",
            "p": p_value(one.p_value),
            "p (Holm)": p_value(one.p_holm),
            "p (TOST)": p_value(one.p_equivalence),
            "detectable": f"{100 * one.smallest_detectable:.2f}",
            "McNemar p by seed": ", ".join(map(p_value, one.mcnemar)),
            "status": "declared" if is_declared(one) else "exploratory",
        }
        for one in found
        if one.metric == VERDICT_METRIC
    ]
    return pd.DataFrame(rows)


def show_other_differences(found: Sequence[Difference]) -> pd.DataFrame:
    """Differences by the other metrics, a column each."""
    table: dict[tuple[str, str, str], dict[str, str]] = {}
    for one in found:
        if one.metric != VERDICT_METRIC:
            row, unit = table.setdefault((one.dataset, one.arm, one.reference), {}), UNITS[one.metric]
            row[one.metric.replace("_", "-")] = (
                f"{unit * one.estimate:+.3f} ({unit * one.low:+.3f} to {unit * one.high:+.3f})"
            )
    names = ("dataset", "arm", "minus")
    return pd.DataFrame([dict(zip(names, key, strict=True)) | row for key, row in table.items()])


def difference_numbers(found: Sequence[Difference]) -> pd.DataFrame:
    """Every number of every difference; those by seed in one cell, separated by spaces."""
    rows = [asdict(one) | {"declared": is_declared(one)} for one in found]
    joined = [
        {key: " ".join(map(str, value)) if isinstance(value, tuple) else value for key, value in row.items()}
        for row in rows
    ]
    return pd.DataFrame(joined)


def show_intervals(intervals: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval of every metric, a column each."""
    ends = intervals[["mean", "low", "high"]].mul(intervals["metric"].map(UNITS), axis=0)
    texts = [
        f"{mean:.2f}" if pd.isna(low) else f"{mean:.2f} ({low:.2f} to {high:.2f})"
        for mean, low, high in ends.itertuples(index=False)
    ]
    keys = intervals.assign(text=texts, metric=intervals["metric"].str.replace("_", "-"))
    table = keys.set_index(["dataset", "arm", "seeds", "metric"])["text"].unstack("metric", sort=False)
    return table.rename_axis(columns=None).reset_index()


def show_sweep(points: pd.DataFrame) -> pd.DataFrame:
    """A sweep's masks, their means over the seeds."""
    means = points.groupby(["dataset", "score", "tail", "fraction"], sort=False).mean(numeric_only=True).reset_index()
    table = means[["dataset", "score", "tail"]].copy()
    table["fraction %"] = means["fraction"].map(lambda value: f"{100 * value:g}")
    table["masked"] = means["num_masked"].map(count)
    table["predicted"] = means["predicted_change"].map("{:+.4g}".format)
    table["measured"] = means["measured_change"].map("{:+.4g}".format)
    table["dev accuracy %"] = means["accuracy"].map(lambda value: f"{100 * value:.1f}")
    table["unmasked %"] = means["unmasked_accuracy"].map(lambda value: f"{100 * value:.1f}")
    table["dev NLL"] = means["nll"].map("{:.3f}".format)
    return table


def show_shares(shares: pd.DataFrame) -> pd.DataFrame:
    """The share masked of each projection, over all layers."""
    keys = ["dataset", "arm", "projection"]
    sums = shares.groupby(keys, sort=False)[["masked", "candidates"]].sum()
    percent = (100 * sums["masked"] / sums["candidates"]).map("{:.2f}".format).unstack("projection", sort=False)
    percent.columns = short_names(list(percent.columns))
    return percent.fillna("").reset_index()


def show_overlaps(found: pd.DataFrame) -> pd.DataFrame:
    """Overlaps beside chance."""
    table = found[["between", "dataset", "one", "other"]].copy()
    table["in both"], table["in either"] = found["intersection"].map(count), found["union"].map(count)
    table["Jaccard"], table["by chance"] = found["jaccard"].map("{:.4f}".format), found["chance"].map("{:.4f}".format)
    return table


def show_training(curves: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """How long each arm trained, and the best dev accuracy it saw."""
    dev = curves[curves["curve"] == "dev accuracy"].groupby(["dataset", "arm", "seed"])["value"].max()
    best = dev.groupby(["dataset", "arm"]).mean().rename("best").reset_index()
    trained = summary.merge(best, on=["dataset", "arm"])
    table = trained[["dataset", "arm", "seeds"]].copy()
    table["steps"], table["epochs"] = trained["optimisation_steps"].map(count), trained["epochs"].map("{:.1f}".format)
    table["best dev accuracy %"] = trained["best"].map(lambda value: f"{100 * value:.1f}")
    return table


def show_costs(summary: pd.DataFrame) -> pd.DataFrame:
    """What each arm costs beside its accuracy."""
    table = summary[["dataset", "arm"]].copy()
    table["accuracy %"] = summary["accuracy"].map(lambda value: f"{100 * value:.1f}")
    table["trained"] = summary["trainable_parameters"].map(count)
    table["fit, s"] = summary["fit_seconds"].map("{:.1f}".format)
    table["evaluation, s"] = (summary["total_seconds"] - summary["fit_seconds"]).map("{:.1f}".format)
    table["peak memory, GiB"] = summary["peak_memory_bytes"].map(
        lambda value: "" if pd.isna(value) else f"{value / 2**30:.2f}"
    )
    return table
