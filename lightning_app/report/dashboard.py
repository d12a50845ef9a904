"""What `tensorboard --logdir outputs` shows first: the arms of an experiment side by side, one TensorBoard run per arm.

Every condition writes its own curves, pictures and text into its folder. What compares conditions is written here, into
`<experiment>/dashboard`, which each report replaces.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from lightning_app.report.loading import CURVE_TITLES
from lightning_app.results import markdown
from lightning_app.results.files import make_report_folder
from lightning_app.results.metrics import METRICS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from lightning_app.report.page import Page
    from lightning_app.report.sections import Study

DASHBOARD_FOLDER = "dashboard"


class Chart(NamedTuple):
    """A chart of a custom page: its title and the tag that it shows of every run."""

    title: str
    tag: str


def write_dashboard(study: "Study", page: "Page") -> Path:
    """Write the TensorBoard runs that compare the arms of an experiment.

    Args:
        study: The experiment.
        page: Its report: the answer and the tables become text cards.

    Returns:
        The folder of the runs: one per arm, and `overview` with the text cards and the layout of the custom pages.
    """
    folder = make_report_folder(study.folder / DASHBOARD_FOLDER)
    shutil.rmtree(folder, ignore_errors=True)
    for arm, results in study.results.groupby("arm", sort=False):
        with _writer(folder / safe_tag(arm)) as writer:
            for row in results.itertuples():
                for name in _metrics():
                    writer.add_scalar(f"{name}/{safe_tag(row.dataset)}", getattr(row, name), row.seed)
            for (dataset, curve), points in study.curves[study.curves["arm"] == arm].groupby(
                ["dataset", "curve"], sort=False
            ):
                for step, value in points.groupby("step")["value"].mean().items():
                    writer.add_scalar(f"{safe_tag(curve)}/{safe_tag(dataset)}", value, step)
    with _writer(folder / "overview") as writer:
        writer.add_custom_scalars(
            {
                str(dataset): {chart.title: ["Multiline", [f"^{re.escape(chart.tag)}$"]] for chart in charts}
                for dataset, charts in _pages(study.results, study.curves).items()
            }
        )
        for title, text in _cards(page).items():
            writer.add_text(title, text)
    return folder


def safe_tag(name: object) -> str:
    """Return a name that is safe as a folder and as a tag: anything but letters, digits, _ and - becomes _."""
    return re.sub(r"[^\w-]+", "_", str(name))


def _metrics() -> dict[str, str]:
    """Return the titles of the metrics in tables, by name."""
    return {name: metric.title for name, metric in METRICS.items() if metric.in_tables}


def _pages(results: pd.DataFrame, curves: pd.DataFrame) -> dict[str, list[Chart]]:
    """Return the charts of each dataset, without curves that no arm has."""
    pages = {}
    for dataset in results["dataset"].unique():
        drawn = set(curves.loc[curves["dataset"] == dataset, "curve"])
        charts = {f"{title} on eval, by seed": name for name, title in _metrics().items()}
        charts |= {
            f"{curve} by optimization step, mean over seeds": safe_tag(curve)
            for curve in CURVE_TITLES.values()
            if curve in drawn
        }
        pages[dataset] = [Chart(title, f"{tag}/{safe_tag(dataset)}") for title, tag in charts.items()]
    return pages


def _cards(page: "Page") -> dict[str, str]:
    """Return the report's answer and its first tables as Markdown."""
    answer = [f"**{markdown.escape(warning)}**" for warning in page.warnings] + [markdown.escape(page.answer)]
    cards = {"answer": "\n\n".join(answer)}
    for section in page.sections[:2]:
        for table in section.tables:
            if not table.is_long:
                cards[f"tables/{table.name}"] = f"{markdown.escape(table.caption)}\n\n{markdown.table(table.shown)}"
    return cards


@contextmanager
def _writer(folder: Path) -> Iterator["SummaryWriter"]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        yield writer
