"""The figures. An arm has the same color and marker in all of them; a dataset has a panel of its own."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, SymmetricalLogLocator

from lightning_app.report.loading import CURVE_TITLES, DEV_CURVE
from lightning_app.report.masks import short_names
from lightning_app.report.styles import ArmStyle
from lightning_app.results.metrics import HEADLINE, METRICS, Metric
from lightning_app.results.statistics import EQUIVALENCE_MARGIN, Difference

MATPLOTLIB_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same picture is the same file
}
"""For `matplotlib.rc_context`, while figures are drawn and saved."""

TAILS = {"lowest": "#D55E00", "highest": "#0072B2"}

ArmStyles = Mapping[str, ArmStyle]
"""By arm."""


def escape_dollars(text: Any) -> str:
    """Return a text in which matplotlib reads no dollar as the beginning of a formula."""
    return str(text).replace("$", r"\$")


def distinct(values: Iterable[Any]) -> list[Any]:
    """Return the different values, in the order of their first appearance."""
    return list(dict.fromkeys(values))


def panels(
    rows: int, columns: int, width: float, height: float, space: float = 0.02, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure (inches) and its axes [rows, columns], with `space` of a panel's width between them."""
    figure = Figure(figsize=(width, height), dpi=150, layout=ConstrainedLayoutEngine(wspace=space))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def axis_title(metric: Metric) -> str:
    """Return the title of a metric with its unit, capitalized."""
    return metric.axis[0].upper() + metric.axis[1:]


def _label_rows(axis: Axes, names: Sequence[str]) -> None:
    """Label the y axis with one name per row, the first on top."""
    axis.set_yticks(range(len(names)), [escape_dollars(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", alpha=0.12)


def draw_scores(summary: pd.DataFrame, styles: ArmStyles, baseline: str | None) -> Figure:
    """Draw the metrics with intervals over seeds: one row per arm, one column per dataset."""
    datasets, arms = distinct(summary["dataset"]), distinct(summary["arm"])
    metrics = [metric for metric in METRICS.values() if metric.in_figures]
    size = (1.8 + 2.2 * max(len(datasets), 2), (1 + 0.38 * len(arms) + 0.6) * len(metrics) / 2)
    figure, axes = panels(len(metrics), len(datasets), *size, space=0.08, sharey=True)
    first_of_unit = {metric.unit: line for metric, line in reversed([*zip(metrics, axes, strict=True)])}
    for line, metric in zip(axes, metrics, strict=True):
        for axis, first, dataset in zip(line, first_of_unit[metric.unit], datasets, strict=True):
            if axis is not first:
                axis.sharex(first)
            _draw_score(axis, summary[summary["dataset"] == dataset], arms, metric, styles, baseline)
            axis.set_title(escape_dollars(dataset))
            axis.set_xlabel(axis_title(metric))
    return figure


def _draw_score(
    axis: Axes, rows: pd.DataFrame, arms: list[str], metric: Metric, styles: ArmStyles, baseline: str | None
) -> None:
    for arm, mean, half in zip(rows["arm"], rows[metric.name], rows[f"{metric.name}_half"], strict=True):
        value, y, style = metric.scale * mean, arms.index(arm), styles[arm]
        error = {"xerr": metric.scale * half, "capsize": 2.5}
        axis.errorbar(value, y, fmt=style.marker, color=style.color, markersize=4.5, **error)
        axis.text(1.02, y, metric.show(mean), transform=axis.get_yaxis_transform(), va="center", fontsize=7)
        if arm == baseline:
            axis.axvline(value, color="black", linestyle=":", linewidth=0.8)
    _label_rows(axis, arms)
    axis.tick_params(labelbottom=True)


def draw_differences(differences: Sequence[Difference], styles: ArmStyles, baseline: str | None) -> Figure:
    """Draw differences of the headline metric; declared ones are filled, exploratory ones hollow."""
    metric = METRICS[HEADLINE]
    shown = [each for each in differences if each.metric == HEADLINE]
    shown.sort(key=lambda each: not each.declared)
    datasets = distinct(each.dataset for each in differences)
    names = distinct(_pair_name(each, baseline) for each in shown)
    size = (2.4 + 2.2 * max(len(datasets), 2), 1.1 + 0.2 * len(names))
    figure, axes = panels(1, len(datasets), *size, sharey=True)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        axis.axvspan(
            -metric.scale * EQUIVALENCE_MARGIN, metric.scale * EQUIVALENCE_MARGIN, color="black", alpha=0.1, linewidth=0
        )
        axis.axvline(0, color="black", linewidth=0.8)
        for each in (each for each in shown if each.dataset == dataset):
            _draw_difference(axis, each, names.index(_pair_name(each, baseline)), styles[each.arm])
        _label_rows(axis, names)
        axis.set(title=escape_dollars(dataset), xlabel=f"{metric.difference_unit} of {metric.title}")
    handles = [_dot("black", "o", "declared"), _dot("white", "o", "exploratory", edge="black"), _band()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_difference(axis: Axes, difference: Difference, y: int, style: ArmStyle) -> None:
    scale = METRICS[HEADLINE].scale
    value, low, high = (scale * end for end in (difference.estimate, difference.low, difference.high))
    axis.errorbar(
        value,
        y,
        xerr=[[value - low], [high - value]],
        fmt=style.marker,
        color=style.color,
        markerfacecolor=style.color if difference.declared else "white",
        capsize=2.5,
        markersize=4.5,
    )


def _pair_name(difference: Difference, baseline: str | None) -> str:
    arm, reference = difference.arm, difference.reference
    return arm if reference == baseline else f"{arm} - {reference}"


def _dot(color: str, marker: str, label: str, edge: str | None = None, line: Any = "none") -> Line2D:
    return Line2D(
        [], [], color=color, marker=marker, linestyle=line, label=escape_dollars(label), markeredgecolor=edge or color
    )


def _legend(figure: Figure, arms: Iterable[str], styles: ArmStyles, lines: bool = False, **kwargs: Any) -> None:
    """Add a legend with one entry per arm, to the right of the panels."""
    handles = [
        _dot(styles[arm].color, styles[arm].marker, arm, line=styles[arm].line if lines else "none") for arm in arms
    ]
    figure.legend(handles=handles, loc="outside right upper", **kwargs)


def _band() -> Line2D:
    metric = METRICS[HEADLINE]
    label = f"within {metric.scale * EQUIVALENCE_MARGIN:g} {metric.difference_unit.removesuffix('s')}"
    return Line2D([], [], color="black", alpha=0.1, linewidth=7, label=label)


def draw_loss_changes(points: pd.DataFrame) -> Figure:
    """Draw predicted against measured change of the loss, one point per mask of a sweep, on symmetric-log axes."""
    datasets = distinct(points["dataset"])
    figure, axes = panels(1, len(datasets), max(0.6 + 2.7 * len(datasets), 5), 3.2)
    changes = points[["predicted_change", "measured_change"]].abs().to_numpy()
    smallest = float(changes[changes > 0].min(initial=1))
    threshold = 10.0 ** max(math.floor(math.log10(smallest)), -6)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for scale, ticks in ((axis.set_xscale, axis.xaxis), (axis.set_yscale, axis.yaxis)):
            scale("symlog", linthresh=threshold)
            ticks.set_major_locator(FixedLocator(_symmetric_ticks(threshold, float(changes.max(initial=1)))))
            ticks.set_minor_locator(NullLocator())
        axis.axline((0, 0), (1, 1), color="grey", linewidth=0.8, linestyle=":")
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.axvline(0, color="grey", linewidth=0.5)
        for tail, style, path in _lines(points, dataset):
            axis.plot(path["predicted_change"], path["measured_change"], color=TAILS[tail], **style)
        axis.set(title=escape_dollars(dataset), xlabel="predicted change, nats")
    axes[0, 0].set_ylabel("measured change, nats")
    _tail_legend(figure, points)
    return figure


def _symmetric_ticks(threshold: float, largest: float) -> list[float]:
    """Return 0 and at most three powers of ten on each side of it, none close to the threshold."""
    low, high = round(math.log10(threshold)), math.floor(math.log10(largest))
    powers = [10.0**exponent for exponent in range(high, low, -max(1, math.ceil((high - low) / 3)))]
    return [*(-power for power in powers), 0.0, *reversed(powers)]


def _lines(points: pd.DataFrame, dataset: str) -> Iterable[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Yield the lines of a dataset, each as its tail, style and points by fraction."""
    keys = ["arm", "seed", "tail", "score"]
    for (arm, _, tail, score), group in points[points["dataset"] == dataset].groupby(keys, sort=False):
        yield tail, _line_style(points, arm, score), group.sort_values("fraction")


def _arm_scores(points: pd.DataFrame) -> list[tuple[str, str]]:
    return distinct(zip(points["arm"], points["score"], strict=True))


def _line_style(points: pd.DataFrame, arm: str, score: str) -> dict[str, Any]:
    index = _arm_scores(points).index((arm, score))
    line, marker = ("-", "--", ":", "-.")[index % 4], "osv^"[index % 4]
    return {"linestyle": line, "marker": marker, "markersize": 3, "linewidth": 0.9}


def _tail_legend(figure: Figure, points: pd.DataFrame) -> None:
    one_arm = points["arm"].nunique() == 1
    handles = [
        Line2D(
            [],
            [],
            color=TAILS[tail],
            label=escape_dollars(f"{score}, {tail}" if one_arm else f"{arm}: {score}, {tail}"),
            **_line_style(points, arm, score),
        )
        for arm, score in _arm_scores(points)
        for tail in distinct(points["tail"])
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


def draw_fractions(points: pd.DataFrame) -> Figure:
    """Draw the metrics on dev against the masked fraction. The dotted line is the model without a mask."""
    datasets, metrics = distinct(points["dataset"]), [metric for metric in METRICS.values() if metric.in_sweeps]
    size = (max(0.6 + 2.7 * len(datasets), 5), 2.3 * len(metrics))
    figure, axes = panels(len(metrics), len(datasets), *size, sharex=True)
    for line, metric in zip(axes, metrics, strict=True):
        for axis, dataset in zip(line, datasets, strict=True):
            for tail, style, path in _lines(points, dataset):
                unmasked = metric.scale * path[f"unmasked_{metric.name}"].iloc[0]
                axis.axhline(unmasked, color="black", linestyle=":", linewidth=0.8)
                axis.plot(path["fraction"], metric.scale * path[metric.name], color=TAILS[tail], **style)
            axis.set_xscale("log")
        line[0].set_ylabel(f"dev {metric.axis}")
    for top, bottom, dataset in zip(axes[0], axes[-1], datasets, strict=True):
        top.set_title(escape_dollars(dataset))
        bottom.set_xlabel("share of the candidates masked")
    _tail_legend(figure, points)
    return figure


def draw_mask(shares: pd.DataFrame) -> Figure:
    """Draw the masked share by layer and projection: one panel per arm, one color scale for all."""
    arms, layers = distinct(shares["arm"]), distinct(shares["layer"])
    projections, columns = distinct(shares["projection"]), min(len(arms), 5)
    rows = math.ceil(len(arms) / columns)
    names = short_names(projections)
    below = 0.065 * max(map(len, names))
    height = rows * (0.4 + below + max(0.13 * len(layers), 1.2))
    size = (1.6 + (0.5 + 0.16 * len(projections)) * columns, height)
    figure, axes = panels(rows, columns, *size, sharex=True, sharey=True)
    top = max(100 * shares["share"].max(), 1e-9)
    for axis in axes.flat[len(arms) :]:
        axis.remove()
    for axis, arm in zip(axes.flat, arms, strict=False):
        grid = shares[shares["arm"] == arm].pivot(index="layer", columns="projection", values="share")
        image = axis.pcolormesh(100 * grid.reindex(layers, columns=projections), vmin=0, vmax=top, cmap="viridis")
        axis.set_xticks(np.arange(len(projections)) + 0.5, map(escape_dollars, names), rotation=90, fontsize=6)
        axis.set_yticks(
            np.arange(len(layers)) + 0.5, [escape_dollars(name.rpartition(".")[2]) for name in layers], fontsize=6
        )
        axis.set_title(escape_dollars(arm), fontsize=8)
        axis.grid(visible=False)
        axis.tick_params(length=0, labelbottom=True)
    axes[0, 0].invert_yaxis()
    for line in axes:
        line[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(axes.flat[: len(arms)]), label="masked, %", aspect=30)
    return figure


def draw_arm_overlaps(pairs: pd.DataFrame) -> Figure:
    """Draw the Jaccard index of the arms' masks as triangles, one per dataset."""
    datasets = distinct(pairs["dataset"])
    arms = distinct([*pairs["one"], *pairs["other"]])
    columns = min(len(datasets), 2)
    side = 1.4 + 0.42 * len(arms)
    rows = math.ceil(len(datasets) / columns)
    figure, axes = panels(rows, columns, columns * side, rows * side)
    for axis in axes.flat[len(datasets) :]:
        axis.remove()
    for axis, dataset in zip(axes.flat, datasets, strict=False):
        _draw_triangle(axis, pairs[pairs["dataset"] == dataset], arms, top=max(pairs["jaccard"].max(), 0.01))
        axis.set_title(escape_dollars(dataset))
    return figure


def _draw_triangle(axis: Axes, pairs: pd.DataFrame, arms: list[str], top: float) -> None:
    grid = np.full((len(arms), len(arms)), np.nan)
    for row in pairs.itertuples():
        grid[arms.index(row.other), arms.index(row.one)] = row.jaccard
    axis.imshow(grid, vmin=0, vmax=top, cmap="Blues", interpolation="nearest")
    for (y, x), value in np.ndenumerate(grid):
        if not np.isnan(value):
            color = "white" if value > 0.6 * top else "black"
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=color)
    axis.set_xticks(range(len(arms)), map(escape_dollars, arms), rotation=90)
    axis.set_yticks(range(len(arms)), map(escape_dollars, arms))
    axis.set(xlim=(-0.5, len(arms) - 1.5), ylim=(len(arms) - 0.5, 0.5))
    axis.grid(visible=False)


def draw_other_overlaps(pairs: pd.DataFrame, color: str) -> Figure:
    """Draw the Jaccard index of masks between seeds and between datasets, and what chance gives."""
    names = [f"{row.dataset} {row.one} and {row.other}".strip() for row in pairs.itertuples()]
    figure, axes = panels(1, 1, 5.5, 0.9 + 0.19 * len(names))
    axis = axes[0, 0]
    rows = range(len(names))
    axis.plot(pairs["jaccard"], rows, "o", color=color, markersize=4.5, label="measured")
    axis.plot(pairs["chance"], rows, "|", color="black", markersize=9, label="by chance")
    _label_rows(axis, names)
    axis.set(xlabel="Jaccard", xlim=(0, max(1.05 * pairs["jaccard"].max(), 0.1)))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def draw_curves(curves: pd.DataFrame, styles: ArmStyles) -> Figure:
    """Draw one line per seed: the headline metric on dev, and the training loss (mean of 5 logged values)."""
    datasets, arms = distinct(curves["dataset"]), distinct(curves["arm"])
    figure, axes = panels(2, len(datasets), 2.2 + 2.6 * len(datasets), max(4.6, 0.9 + 0.17 * len(arms)), sharex=True)
    titles = (f"dev {METRICS[HEADLINE].axis}", "training loss, nats")
    for line, curve, title in zip(axes, CURVE_TITLES.values(), titles, strict=True):
        for axis, dataset in zip(line, datasets, strict=True):
            here = curves[(curves["dataset"] == dataset) & (curves["curve"] == curve)]
            for (arm, _), points in here.groupby(["arm", "seed"], sort=False):
                _draw_curve(axis, styles[arm], points.sort_values("step"))
            axis.set_xscale("log")
        line[0].set_ylabel(title)
    for top, bottom, dataset in zip(axes[0], axes[1], datasets, strict=True):
        top.set_title(escape_dollars(dataset))
        bottom.set_xlabel("optimization steps")
        _log_axis(bottom)
    _legend(figure, arms, styles, lines=True, handlelength=4)
    return figure


def _draw_curve(axis: Axes, style: ArmStyle, points: pd.DataFrame) -> None:
    is_dev = points["curve"].iloc[0] == DEV_CURVE
    values = METRICS[HEADLINE].scale * points["value"] if is_dev else points["value"].rolling(5, min_periods=1).mean()
    marker = style.marker if len(points) == 1 else ""
    axis.plot(points["step"] + 1, values, style.line, color=style.color, marker=marker, markersize=4, linewidth=0.9)


COSTS = {"trainable_parameters": "trained weights", "fit_seconds": "fit, s", "peak_memory_bytes": "peak memory, GiB"}


def draw_costs(summary: pd.DataFrame, styles: ArmStyles) -> Figure:
    """Draw the headline metric against trained weights, seconds and memory: one row per dataset."""
    datasets, arms = distinct(summary["dataset"]), distinct(summary["arm"])
    height = max(0.8 + 2 * len(datasets), 0.8 + 0.17 * len(arms))
    figure, axes = panels(len(datasets), len(COSTS), 9.5, height, sharex="col", sharey="row")
    for line, dataset in zip(axes, datasets, strict=True):
        rows = summary[summary["dataset"] == dataset]
        for axis, cost in zip(line, COSTS, strict=True):
            _draw_cost(axis, rows, cost, styles)
        line[0].set_ylabel(f"{escape_dollars(dataset)}\n{METRICS[HEADLINE].axis}")
    for axis, (cost, title) in zip(axes[-1], COSTS.items(), strict=True):
        _scale_cost(axis, cost)
        axis.set_xlabel(title)
    _legend(figure, arms, styles)
    return figure


def _draw_cost(axis: Axes, rows: pd.DataFrame, cost: str, styles: ArmStyles) -> None:
    unit, scores = 2**30 if cost == "peak_memory_bytes" else 1, METRICS[HEADLINE].scale * rows[HEADLINE]
    for arm, value, score in zip(rows["arm"], rows[cost] / unit, scores, strict=True):
        axis.plot(value, score, styles[arm].marker, color=styles[arm].color, markersize=5)


def _scale_cost(axis: Axes, cost: str) -> None:
    """Set logarithmic scales for seconds and for trained weights, of which there may be none."""
    if cost == "trainable_parameters":
        axis.set_xscale("symlog", linthresh=100)
        axis.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=100, subs=[1]))
        axis.xaxis.set_minor_locator(NullLocator())
    elif cost == "fit_seconds":
        _log_axis(axis)


def _log_axis(axis: Axes) -> None:
    """Make the x axis logarithmic, with a few plain numbers below it."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
