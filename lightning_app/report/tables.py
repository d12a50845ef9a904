"""The tables as text, with rounded numbers; the CSV files have the full numbers."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from lightning_app.report.loading import DEV_CURVE
from lightning_app.report.masks import short_names
from lightning_app.results import markdown
from lightning_app.results.metrics import HEADLINE, METRICS
from lightning_app.results.statistics import Difference, half_width
from lightning_app.results.verdict import Verdict

RECORDED_NUMBERS = (
    *("trainable_parameters", "masked_parameters", "predicted_change", "measured_change"),
    *("fit_seconds", "total_seconds", "peak_memory_bytes", "optimisation_steps", "epochs"),
)
OUTCOME_TEXTS = {
    "helps": "masking helps",
    "hurts": "masking hurts",
    "no difference": "masking makes no difference",
    "cannot tell": "it is unclear whether masking helps",
}


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per dataset and arm: mean over seeds, and half the width of its 95 % interval.

    Args:
        results: One row per condition, as `load_results` gives it.

    Returns:
        Columns `dataset`, `arm`, `seeds`; `<metric>` and `<metric>_half` for the metrics of the tables and figures, the
        half width from Student's t over the seeds (NaN with one seed); and the means of other recorded numbers.
    """
    rows = []
    for (dataset, arm), group in results.reindex(columns=[*results, *set(RECORDED_NUMBERS) - {*results}]).groupby(
        ["dataset", "arm"], sort=False
    ):
        row = {"dataset": dataset, "arm": arm, "seeds": len(group)}
        for name, metric in METRICS.items():
            if metric.in_tables or metric.in_figures or name == HEADLINE:
                row[name], row[f"{name}_half"] = group[name].mean(), half_width(group[name])
        rows.append(row | {name: group[name].mean() for name in RECORDED_NUMBERS})
    return pd.DataFrame(rows)


def comparison_table(results: pd.DataFrame) -> str:
    """Return the arms side by side, as a Markdown table.

    `predicted` and `measured` are changes of the training loss when the masked weights are zeroed, in nats per sample.
    """
    return markdown.table(show_arms(summarize(results)))


def show_arms(summary: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the result of `summarize`."""
    table = summary[["dataset", "arm", "seeds"]].copy()
    for name, metric in METRICS.items():
        if metric.in_tables:
            table[metric.heading] = show_interval(summary, name)
    table["trained"] = summary["trainable_parameters"].map(show_count)
    table["masked"] = summary["masked_parameters"].map(show_count)
    table["predicted"] = summary["predicted_change"].map(show_change)
    table["measured"] = summary["measured_change"].map(show_change)
    table["seconds"] = summary["total_seconds"].map("{:.0f}".format)
    return table


def show_interval(summary: pd.DataFrame, metric: str) -> list[str]:
    """Return `mean ± half` of a metric for each row, or the mean alone."""
    show, pairs = METRICS[metric].show, zip(summary[metric], summary[f"{metric}_half"], strict=True)
    return [show(mean) if pd.isna(half) else f"{show(mean)} ± {show(half)}" for mean, half in pairs]


def show_count(value: float) -> str:
    """Return a number of weights as text."""
    return "" if pd.isna(value) else f"{value:,.0f}"


def show_change(value: float) -> str:
    """Return a change of the loss as text."""
    return "" if pd.isna(value) else f"{value:+.3f}"


def show_p_value(value: float) -> str:
    """Return a p-value as text with two digits."""
    if pd.isna(value):
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def show_verdicts(verdicts: Sequence[Verdict], gaps: dict[tuple[str, str], str]) -> pd.DataFrame:
    """Tabulate the verdict on each dataset and arm that has a control, or what is missing for one."""
    rows = [(each.dataset, each.arm, OUTCOME_TEXTS[each.outcome], each.reason) for each in verdicts]
    rows += [(dataset, arm, "none", gap) for (dataset, arm), gap in gaps.items()]
    return pd.DataFrame(rows, columns=["dataset", "arm", "verdict", "why"])


def show_differences(differences: Sequence[Difference]) -> pd.DataFrame:
    """Tabulate differences of the headline metric."""
    metric = METRICS[HEADLINE]
    rows = [
        {
            "dataset": each.dataset,
            "arm": each.arm,
            "minus": each.reference,
            "seeds": str(len(each.seeds)),
            metric.difference_unit: f"{metric.scale * each.estimate:+.2f}",
            "95 % interval": f"{metric.scale * each.low:+.2f} to {metric.scale * each.high:+.2f}",
            "p": show_p_value(each.p_value),
            "p (Holm)": show_p_value(each.p_holm),
            "p (TOST)": show_p_value(each.p_equivalence),
            "detectable": f"{metric.scale * each.smallest_detectable:.2f}",
            "McNemar p by seed": ", ".join(map(show_p_value, each.mcnemar)),
            "status": "declared" if each.declared else "exploratory",
        }
        for each in differences
        if each.metric == HEADLINE
    ]
    return pd.DataFrame(rows)


def show_other_differences(differences: Sequence[Difference]) -> pd.DataFrame:
    """Tabulate differences of the other metrics, one column each."""
    table: dict[tuple[str, str, str], dict[str, str]] = {}
    for each in differences:
        if each.metric != HEADLINE:
            metric, row = METRICS[each.metric], table.setdefault((each.dataset, each.arm, each.reference), {})
            estimate, low, high = (f"{metric.scale * value:+.3f}" for value in (each.estimate, each.low, each.high))
            row[metric.title] = f"{estimate} ({low} to {high})"
    names = ("dataset", "arm", "minus")
    return pd.DataFrame([dict(zip(names, key, strict=True)) | row for key, row in table.items()])


def difference_numbers(differences: Sequence[Difference]) -> pd.DataFrame:
    """Tabulate every number of every difference; numbers by seed are in one cell, separated by spaces."""
    joined = [
        {key: " ".join(map(str, value)) if isinstance(value, tuple) else value for key, value in asdict(each).items()}
        for each in differences
    ]
    return pd.DataFrame(joined)


def show_intervals(intervals: pd.DataFrame) -> pd.DataFrame:
    """Tabulate mean and interval of every metric, one column each."""
    ends = intervals[["mean", "low", "high"]].mul(intervals["metric"].map(lambda name: METRICS[name].scale), axis=0)
    texts = [
        f"{mean:.2f}" if pd.isna(low) else f"{mean:.2f} ({low:.2f} to {high:.2f})"
        for mean, low, high in ends.itertuples(index=False)
    ]
    keys = intervals.assign(text=texts, metric=intervals["metric"].map(lambda name: METRICS[name].title))
    table = keys.set_index(["dataset", "arm", "seeds", "metric"])["text"].unstack("metric", sort=False)
    return table.rename_axis(columns=None).reset_index()


def show_sweep(points: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the masks of sweeps, means over seeds."""
    means = mean_over_seeds(points)
    table = means[["dataset", "arm", "score", "tail"]].copy()
    table["fraction %"] = means["fraction"].map(lambda value: f"{100 * value:g}")
    table["masked"] = means["num_masked"].map(show_count)
    table["predicted"] = means["predicted_change"].map("{:+.4g}".format)
    table["measured"] = means["measured_change"].map("{:+.4g}".format)
    for name, metric in METRICS.items():
        if metric.in_sweeps:
            table[f"dev {metric.heading}"] = means[name].map(metric.show)
        if name == HEADLINE:
            table[metric.heading.replace(metric.title, "unmasked")] = means[f"unmasked_{name}"].map(metric.show)
    return table


def mean_over_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """Return one row per mask of a sweep, averaged over seeds."""
    keys = ["dataset", "arm", "score", "tail", "fraction"]
    return points.groupby(keys, sort=False).mean(numeric_only=True).reset_index()


def show_shares(shares: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the masked share of each projection, over all layers."""
    keys = ["dataset", "arm", "projection"]
    sums = shares.groupby(keys, sort=False)[["masked", "candidates"]].sum()
    percent = (100 * sums["masked"] / sums["candidates"]).map("{:.2f}".format).unstack("projection", sort=False)
    percent.columns = short_names(list(percent.columns))
    return percent.fillna("").reset_index()


def show_overlaps(pairs: pd.DataFrame) -> pd.DataFrame:
    """Tabulate overlaps, and what chance gives."""
    table = pairs[["between", "dataset", "one", "other"]].copy()
    table["in both"], table["in either"] = pairs["intersection"].map(show_count), pairs["union"].map(show_count)
    table["Jaccard"], table["by chance"] = pairs["jaccard"].map("{:.4f}".format), pairs["chance"].map("{:.4f}".format)
    return table


def show_training(curves: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how long each arm trained, and the best value of the headline metric on dev."""
    metric = METRICS[HEADLINE]
    dev = curves[curves["curve"] == DEV_CURVE].groupby(["dataset", "arm", "seed"])["value"]
    by_seed = dev.max() if metric.higher_is_better else dev.min()
    best = by_seed.groupby(["dataset", "arm"]).mean().rename("best").reset_index()
    trained = summary.merge(best, on=["dataset", "arm"])
    table = trained[["dataset", "arm", "seeds"]].copy()
    table["steps"], table["epochs"] = (
        trained["optimisation_steps"].map(show_count),
        trained["epochs"].map("{:.1f}".format),
    )
    table[f"best dev {metric.heading}"] = trained["best"].map(metric.show)
    return table


def show_costs(summary: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the cost of each arm and its headline metric."""
    table = summary[["dataset", "arm"]].copy()
    table[METRICS[HEADLINE].heading] = summary[HEADLINE].map(METRICS[HEADLINE].show)
    table["trained"] = summary["trainable_parameters"].map(show_count)
    table["fit, s"] = summary["fit_seconds"].map("{:.1f}".format)
    table["evaluation, s"] = (summary["total_seconds"] - summary["fit_seconds"]).map("{:.1f}".format)
    table["peak memory, GiB"] = summary["peak_memory_bytes"].map(
        lambda value: "" if pd.isna(value) else f"{value / 2**30:.2f}"
    )
    return table
