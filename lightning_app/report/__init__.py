"""`influence report`: the results of an experiment as a page, tables and figures."""

from pathlib import Path

from jsonargparse import ArgumentParser
from matplotlib import rc_context

from lightning_app.errors import UsageError
from lightning_app.messages import parse
from lightning_app.report.dashboard import write_dashboard
from lightning_app.report.figures import MATPLOTLIB_STYLE
from lightning_app.report.loading import load_results
from lightning_app.report.page import write_page
from lightning_app.report.sections import Study, build_page, reading_notes, verdict_lines
from lightning_app.report.tables import comparison_table, summarize
from lightning_app.results.files import METRICS_FILE

__all__ = ["comparison_table", "latest_experiment", "load_results", "main", "summarize", "write_report"]


def write_report(folder: Path) -> str:
    """Write `report.html`, `report.md`, `tables/`, `figures/` and `dashboard/` into an experiment's folder.

    Returns:
        Text for the terminal: the comparison table, how to read it, the verdicts, and the path of the report.

    Raises:
        UsageError: If the folder holds no complete condition, or a file in it is damaged.
    """
    study = Study.read(folder)
    with rc_context(MATPLOTLIB_STYLE):
        page = build_page(study)
        write_page(folder, page)
    write_dashboard(study, page)
    notes = [*page.warnings, *reading_notes(study.results), *verdict_lines(study.comparison)]
    listed = "\n".join(f"* {note}" for note in notes)
    return f"{comparison_table(study.results)}\n\n{listed}\n\nReport: {folder / 'report.html'} (and report.md)"


def latest_experiment(outputs: Path) -> Path:
    """Return the folder of the experiment with the newest results.

    Raises:
        UsageError: If there is none.
    """
    newest = max(outputs.glob(f"*/*/*/seed*/{METRICS_FILE}"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UsageError(f"No results below {outputs.resolve()}. Make them: influence experiment")
    return newest.parents[3]


def build_parser() -> ArgumentParser:
    """Return the parser of `influence report`."""
    parser = ArgumentParser(
        prog="influence report", description="Tables and plots of an experiment's results.", exit_on_error=False
    )
    parser.add_argument("--results", type=str | None, default=None, help="Folder of an experiment; default the newest.")
    parser.add_argument("--outputs", type=str, default="outputs", help="Folder of all results.")
    return parser


def main(argv: list[str]) -> int:
    """Write the report of an experiment and print its table."""
    options = parse(build_parser(), argv)
    print(write_report(Path(options.results) if options.results else latest_experiment(Path(options.outputs))))
    return 0
