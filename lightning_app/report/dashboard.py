"""The start page of `tensorboard --logdir outputs`: the arms of an experiment side by side, one run per arm.

Every condition writes its own curves, pictures and text into its folder. What compares conditions is written here, into
`<experiment>/dashboard`, which each report replaces.
"""

import re
import shutil
from typing import Any

from lightning_app.report.loading import CURVE_TITLES
from lightning_app.report.page import Page
from lightning_app.report.sections import Study
from lightning_app.results import markdown
from lightning_app.results.files import make_report_folder
from lightning_app.results.metrics import METRICS


def write_dashboard(study: Study, page: Page) -> None:
    """Write the TensorBoard runs that compare the arms of an experiment.

    There is one run per arm, and `overview` with the report's answer and tables as text cards and with custom charts.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = make_report_folder(study.folder / "dashboard")
    shutil.rmtree(folder, ignore_errors=True)
    for arm, results in study.results.groupby("arm", sort=False):
        with SummaryWriter(str(folder / safe_tag(arm))) as writer:
            for row in results.itertuples():
                for name in _metrics():
                    writer.add_scalar(f"{name}/{safe_tag(row.dataset)}", getattr(row, name), row.seed)
            for (dataset, curve), points in study.curves[study.curves["arm"] == arm].groupby(
                ["dataset", "curve"], sort=False
            ):
                for step, value in points.groupby("step")["value"].mean().items():
                    writer.add_scalar(f"{safe_tag(curve)}/{safe_tag(dataset)}", value, step)
    with SummaryWriter(str(folder / "overview")) as writer:
        datasets = study.results["dataset"].unique()
        writer.add_custom_scalars({str(dataset): _charts(study, dataset) for dataset in datasets})
        for title, text in _cards(page).items():
            writer.add_text(title, text)


def safe_tag(name: object) -> str:
    """Return a name that is safe as a folder and as a tag: anything but letters, digits, _ and - becomes _."""
    return re.sub(r"[^\w-]+", "_", str(name))


def _metrics() -> dict[str, str]:
    """Return the titles of the metrics in tables, by name."""
    return {name: metric.title for name, metric in METRICS.items() if metric.in_tables}


def _charts(study: Study, dataset: str) -> dict[str, list[Any]]:
    """Return the charts of a dataset's page as TensorBoard takes them, without curves that no arm has."""
    drawn = set(study.curves.loc[study.curves["dataset"] == dataset, "curve"])
    tags = {f"{title} on eval, by seed": name for name, title in _metrics().items()}
    tags |= {
        f"{curve} by optimization step, mean over seeds": safe_tag(curve)
        for curve in CURVE_TITLES.values()
        if curve in drawn
    }
    return {title: ["Multiline", [f"^{re.escape(f'{tag}/{safe_tag(dataset)}')}$"]] for title, tag in tags.items()}


def _cards(page: Page) -> dict[str, str]:
    """Return the report's answer and its first tables as Markdown."""
    answer = [f"**{markdown.escape(warning)}**" for warning in page.warnings] + [markdown.escape(page.answer)]
    cards = {"answer": "\n\n".join(answer)}
    for section in page.sections[:2]:
        for table in section.tables:
            if not table.is_long:
                cards[f"tables/{table.name}"] = f"{markdown.escape(table.caption)}\n\n{markdown.table(table.shown)}"
    return cards
