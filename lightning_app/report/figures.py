"""Figures: one colour and marker an arm everywhere, an arm a row where there are many, a dataset a panel."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, SymmetricalLogLocator

from lightning_app.report.comparisons import is_declared
from lightning_app.report.masks import short_names
from lightning_app.report.names import COLOURS, look
from lightning_app.results.statistics import BASELINE, MARGIN, VERDICT_METRIC, Difference

STYLE: dict[Any, Any] = {
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

TAILS = {"lowest": COLOURS["influence"], "highest": COLOURS["influence_highest"]}


def plain(text: Any) -> str:
    """A text in which a dollar is a dollar, not the beginning of a formula."""
    return str(text).replace("$", r"\$")


def distinct(values: Iterable[Any]) -> list[Any]:
    """Values in the order of their first appearance."""
    return list(dict.fromkeys(values))


def panels(
    rows: int, columns: int, width: float, height: float, space: float = 0.02, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    """A figure (inches) and its axes [rows, columns], with `space` of a panel's width between them."""
    figure = Figure(figsize=(width, height), dpi=150, layout=ConstrainedLayoutEngine(wspace=space))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _rows_of(axis: Axes, names: Sequence[str]) -> None:
    """One row a name, the first on top."""
    axis.set_yticks(range(len(names)), [plain(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", alpha=0.12)


def draw_scores(summary: pd.DataFrame) -> Figure:
    """Accuracy and macro-F1: an arm a row, a dataset a column, with intervals over seeds."""
    datasets, arms = distinct(summary["dataset"]), distinct(summary["arm"])
    size = (1.8 + 2.2 * max(len(datasets), 2), 1 + 0.38 * len(arms) + 0.6)
    figure, axes = panels(2, len(datasets), *size, space=0.08, sharey=True, sharex="col")
    for line, metric, title in zip(axes, ("accuracy", "macro_f1"), ("Accuracy, %", "Macro-F1, %"), strict=True):
        for axis, dataset in zip(line, datasets, strict=True):
            _draw_score(axis, summary[summary["dataset"] == dataset], arms, metric)
            axis.set_title(plain(dataset))
            axis.set_xlabel(title)
    return figure


def _draw_score(axis: Axes, rows: pd.DataFrame, arms: list[str], metric: str) -> None:
    for row in rows.itertuples():
        value, half, y = 100 * getattr(row, metric), 100 * getattr(row, f"{metric}_half"), arms.index(row.arm)
        style = look(row.arm)
        axis.errorbar(value, y, xerr=half, fmt=style.marker, color=style.colour, capsize=2.5, markersize=4.5)
        axis.text(1.02, y, f"{value:.1f}", transform=axis.get_yaxis_transform(), va="center", fontsize=7)
        if row.arm == BASELINE:
            axis.axvline(value, color="black", linestyle=":", linewidth=0.8)
    _rows_of(axis, arms)
    axis.tick_params(labelbottom=True)


def draw_differences(found: Sequence[Difference]) -> Figure:
    """Differences of accuracy as a forest: filled what was declared, hollow what is exploratory."""
    shown = [one for one in found if one.metric == VERDICT_METRIC]
    shown.sort(key=lambda one: not is_declared(one))
    datasets, names = distinct(one.dataset for one in found), distinct(map(_pair_name, shown))
    size = (2.4 + 2.2 * max(len(datasets), 2), 1.1 + 0.2 * len(names))
    figure, axes = panels(1, len(datasets), *size, sharey=True)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        axis.axvspan(-100 * MARGIN, 100 * MARGIN, color="black", alpha=0.1, linewidth=0)
        axis.axvline(0, color="black", linewidth=0.8)
        for one in (one for one in shown if one.dataset == dataset):
            _draw_difference(axis, one, names.index(_pair_name(one)))
        _rows_of(axis, names)
        axis.set(title=plain(dataset), xlabel="points of accuracy")
    handles = [_dot("black", "o", "declared"), _dot("white", "o", "exploratory", edge="black"), _band()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_difference(axis: Axes, one: Difference, y: int) -> None:
    style, value = look(one.arm), 100 * one.estimate
    axis.errorbar(
        value,
        y,
        xerr=[[value - 100 * one.low], [100 * one.high - value]],
        fmt=style.marker,
        color=style.colour,
        markerfacecolor=style.colour if is_declared(one) else "white",
        capsize=2.5,
        markersize=4.5,
    )


def _pair_name(one: Difference) -> str:
    return one.arm if one.reference == BASELINE else f"{one.arm} - {one.reference}"


def _dot(colour: str, marker: str, label: str, edge: str | None = None, line: Any = "none") -> Line2D:
    return Line2D(
        [], [], color=colour, marker=marker, linestyle=line, label=plain(label), markeredgecolor=edge or colour
    )


def _band() -> Line2D:
    return Line2D([], [], color="black", alpha=0.1, linewidth=7, label=f"within {100 * MARGIN:g} point")


def draw_predictions(points: pd.DataFrame) -> Figure:
    """Predicted against measured change of the loss, each mask of a sweep a point, on symmetric-log axes."""
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
        for (_, tail, score), group in _by_line(points, dataset):
            path = group.sort_values("fraction")
            axis.plot(
                path["predicted_change"], path["measured_change"], color=TAILS[tail], **_score_look(points, score)
            )
        axis.set(title=plain(dataset), xlabel="predicted change, nats")
    axes[0, 0].set_ylabel("measured change, nats")
    _tail_legend(figure, points)
    return figure


def _symmetric_ticks(threshold: float, largest: float) -> list[float]:
    """0 and at most three powers of ten on each side of it, none close to the threshold."""
    low, high = round(math.log10(threshold)), math.floor(math.log10(largest))
    powers = [10.0**exponent for exponent in range(high, low, -max(1, math.ceil((high - low) / 3)))]
    return [*(-power for power in powers), 0.0, *reversed(powers)]


def _by_line(points: pd.DataFrame, dataset: str) -> Any:
    return points[points["dataset"] == dataset].groupby(["seed", "tail", "score"], sort=False)


def _score_look(points: pd.DataFrame, score: str) -> dict[str, Any]:
    index = distinct(points["score"]).index(score)
    line, marker = ("-", "--", ":", "-.")[index % 4], "osv^"[index % 4]
    return {"linestyle": line, "marker": marker, "markersize": 3, "linewidth": 0.9}


def _tail_legend(figure: Figure, points: pd.DataFrame) -> None:
    handles = [
        Line2D([], [], color=TAILS[tail], label=plain(f"{score}, {tail}"), **_score_look(points, score))
        for score in distinct(points["score"])
        for tail in distinct(points["tail"])
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


def draw_doses(points: pd.DataFrame) -> Figure:
    """Dev accuracy and NLL against the fraction masked; dotted without a mask."""
    datasets = distinct(points["dataset"])
    figure, axes = panels(2, len(datasets), max(0.6 + 2.7 * len(datasets), 5), 4.6, sharex=True)
    for line, column, title, scale in zip(
        axes, ("accuracy", "nll"), ("dev accuracy, %", "dev NLL, nats"), (100, 1), strict=True
    ):
        for axis, dataset in zip(line, datasets, strict=True):
            for (_, tail, score), group in _by_line(points, dataset):
                path = group.sort_values("fraction")
                axis.axhline(scale * path[f"unmasked_{column}"].iloc[0], color="black", linestyle=":", linewidth=0.8)
                axis.plot(path["fraction"], scale * path[column], color=TAILS[tail], **_score_look(points, score))
            axis.set_xscale("log")
        line[0].set_ylabel(title)
    for top, bottom, dataset in zip(axes[0], axes[1], datasets, strict=True):
        top.set_title(plain(dataset))
        bottom.set_xlabel("share of the candidates masked")
    _tail_legend(figure, points)
    return figure


def draw_mask(shares: pd.DataFrame) -> Figure:
    """The share masked by layer and projection: an arm a panel, one scale for all."""
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
        axis.set_xticks(np.arange(len(projections)) + 0.5, map(plain, names), rotation=90, fontsize=6)
        axis.set_yticks(np.arange(len(layers)) + 0.5, [plain(name.rpartition(".")[2]) for name in layers], fontsize=6)
        axis.set_title(plain(arm), fontsize=8)
        axis.grid(visible=False)
        axis.tick_params(length=0, labelbottom=True)
    axes[0, 0].invert_yaxis()
    for line in axes:
        line[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(axes.flat[: len(arms)]), label="masked, %", aspect=30)
    return figure


def draw_arm_overlaps(found: pd.DataFrame) -> Figure:
    """Jaccard of the arms' masks: one panel a dataset, as a triangle."""
    datasets = distinct(found["dataset"])
    arms = distinct([*found["one"], *found["other"]])
    columns = min(len(datasets), 2)
    side = 1.4 + 0.42 * len(arms)
    rows = math.ceil(len(datasets) / columns)
    figure, axes = panels(rows, columns, columns * side, rows * side)
    for axis in axes.flat[len(datasets) :]:
        axis.remove()
    for axis, dataset in zip(axes.flat, datasets, strict=False):
        _draw_triangle(axis, found[found["dataset"] == dataset], arms, top=max(found["jaccard"].max(), 0.01))
        axis.set_title(plain(dataset))
    return figure


def _draw_triangle(axis: Axes, found: pd.DataFrame, arms: list[str], top: float) -> None:
    grid = np.full((len(arms), len(arms)), np.nan)
    for row in found.itertuples():
        grid[arms.index(row.other), arms.index(row.one)] = row.jaccard
    axis.imshow(grid, vmin=0, vmax=top, cmap="Blues", interpolation="nearest")
    for (y, x), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "white" if value > 0.6 * top else "black"
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    axis.set_xticks(range(len(arms)), map(plain, arms), rotation=90)
    axis.set_yticks(range(len(arms)), map(plain, arms))
    axis.set(xlim=(-0.5, len(arms) - 1.5), ylim=(len(arms) - 0.5, 0.5))
    axis.grid(visible=False)


def draw_other_overlaps(found: pd.DataFrame) -> Figure:
    """Jaccard of arm `influence`'s masks between seeds and datasets: a dot; chance is a bar beside it."""
    names = [f"{row.dataset} {row.one} and {row.other}".strip() for row in found.itertuples()]
    figure, axes = panels(1, 1, 5.5, 0.9 + 0.19 * len(names))
    axis = axes[0, 0]
    rows = range(len(names))
    axis.plot(found["jaccard"], rows, "o", color=COLOURS["influence"], markersize=4.5, label="measured")
    axis.plot(found["chance"], rows, "|", color="black", markersize=9, label="by chance")
    _rows_of(axis, names)
    axis.set(xlabel="Jaccard", xlim=(0, max(1.05 * found["jaccard"].max(), 0.1)))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def draw_curves(curves: pd.DataFrame) -> Figure:
    """Dev accuracy and training loss by step: a colour an arm, a line a seed; the loss a mean of 5 logged values."""
    datasets, arms = distinct(curves["dataset"]), distinct(curves["arm"])
    figure, axes = panels(2, len(datasets), 2.2 + 2.6 * len(datasets), max(4.6, 0.9 + 0.17 * len(arms)), sharex=True)
    for line, curve, title in zip(
        axes, ("dev accuracy", "training loss"), ("dev accuracy, %", "training loss, nats"), strict=True
    ):
        for axis, dataset in zip(line, datasets, strict=True):
            here = curves[(curves["dataset"] == dataset) & (curves["curve"] == curve)]
            for (arm, _), points in here.groupby(["arm", "seed"], sort=False):
                _draw_curve(axis, arm, points.sort_values("step"))
            axis.set_xscale("log")
        line[0].set_ylabel(title)
    for top, bottom, dataset in zip(axes[0], axes[1], datasets, strict=True):
        top.set_title(plain(dataset))
        bottom.set_xlabel("optimisation steps")
        _log_axis(bottom)
    handles = [_dot(*look(arm)[:2], arm, line=look(arm).line) for arm in arms]
    figure.legend(handles=handles, loc="outside right upper", handlelength=4)
    return figure


def _draw_curve(axis: Axes, arm: str, points: pd.DataFrame) -> None:
    style, is_loss = look(arm), points["curve"].iloc[0] == "training loss"
    values = points["value"].rolling(5, min_periods=1).mean() if is_loss else 100 * points["value"]
    marker = style.marker if len(points) == 1 else ""
    axis.plot(points["step"] + 1, values, style.line, color=style.colour, marker=marker, markersize=4, linewidth=0.9)


COSTS = {"trainable_parameters": "trained weights", "fit_seconds": "fit, s", "peak_memory_bytes": "peak memory, GiB"}


def draw_costs(summary: pd.DataFrame) -> Figure:
    """Accuracy against trained weights, seconds and memory: a dataset a row."""
    datasets, arms = distinct(summary["dataset"]), distinct(summary["arm"])
    height = max(0.8 + 2 * len(datasets), 0.8 + 0.17 * len(arms))
    figure, axes = panels(len(datasets), len(COSTS), 9.5, height, sharex="col", sharey="row")
    for line, dataset in zip(axes, datasets, strict=True):
        rows = summary[summary["dataset"] == dataset]
        for axis, cost in zip(line, COSTS, strict=True):
            _draw_cost(axis, rows, cost)
        line[0].set_ylabel(f"{plain(dataset)}\naccuracy, %")
    for axis, (cost, title) in zip(axes[-1], COSTS.items(), strict=True):
        _scale_cost(axis, cost)
        axis.set_xlabel(title)
    figure.legend(handles=[_dot(*look(arm)[:2], arm) for arm in arms], loc="outside right upper")
    return figure


def _draw_cost(axis: Axes, rows: pd.DataFrame, cost: str) -> None:
    unit = 2**30 if cost == "peak_memory_bytes" else 1
    for arm, value, accuracy in zip(rows["arm"], rows[cost] / unit, 100 * rows["accuracy"], strict=True):
        style = look(arm)
        axis.plot(value, accuracy, style.marker, color=style.colour, markersize=5)


def _scale_cost(axis: Axes, cost: str) -> None:
    """Logarithms for weights, of which there may be none, and for seconds."""
    if cost == "trainable_parameters":
        axis.set_xscale("symlog", linthresh=100)
        axis.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=100, subs=[1]))
        axis.xaxis.set_minor_locator(NullLocator())
    elif cost == "fit_seconds":
        _log_axis(axis)


def _log_axis(axis: Axes) -> None:
    """A logarithmic x axis with a few plain numbers below it."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
