"""What comes from data, configurations and error messages is text, wherever it is shown."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

from influence_masking import Mask
from lightning_app.errors import printable
from lightning_app.report import write_report
from lightning_app.report.page import escape_formula
from lightning_app.results import markdown
from lightning_app.results.markdown import condition_card
from lightning_app.results.records import settings_digest

SCRIPT = "<script>alert(1)<!--"
PICTURE = "![x](http://evil.example/x.png)"
FORMULA = "=cmd|' !A0"
LATEX = r"\input{x}$%#_&~^{}"
HOSTILE = SCRIPT + PICTURE + "|`" + LATEX


@pytest.fixture(scope="module")
def hostile(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report on results in which every text that the checks let through is hostile."""
    folder = shutil.copytree(original, tmp_path_factory.mktemp("hostile") / f"study{SCRIPT.replace('/', '')}")
    (folder / "docstrings").rename(folder / "=set")
    arm = f"{FORMULA} {SCRIPT}$x$"
    (folder / "=set" / "influence").rename(folder / "=set" / arm)
    for file in folder.rglob("metrics.json"):
        metrics = json.loads(file.read_text())
        texts = dict.fromkeys(("backbone", "eval_split", "device", "precision"), HOSTILE)
        texts |= {"dataset": f"@{HOSTILE}", "versions": {HOSTILE: HOSTILE}}
        texts |= {"split_sizes": metrics["split_sizes"] | {HOSTILE: 1}, "arm": file.parents[1].name}
        file.write_text(json.dumps(metrics | texts))
    for file in folder.rglob("condition.json"):
        made = {"configs": [], "overrides": [f"--data.x={HOSTILE}"]}
        file.write_text(json.dumps({"digest": settings_digest(made), "settings": made}))
    for file in folder.rglob("sweep.json"):
        record = json.loads(file.read_text())
        points = [point | {"score": HOSTILE} for point in record["points"]]
        file.write_text(json.dumps(record | {"points": points}))
    _hostile_masks(folder)
    write_report(folder)
    return folder


def _hostile_masks(folder: Path) -> None:
    """Replace masks by ones over parameters of hostile names."""
    for file in folder.rglob("mask.safetensors"):
        mask = Mask.from_flags(
            {f"layers.0.{HOSTILE}.weight": torch.eye(4) > 0, "layers.1.$y$.weight": torch.eye(4) > 0}
        )
        mask.save(file)
        for name in ("metrics.json", "fit.json"):
            record = json.loads(file.with_name(name).read_text())
            file.with_name(name).write_text(json.dumps(record | {"mask_digest": mask.digest}))


class Tags(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_has_no_element_and_no_address_that_it_did_not_make(hostile):
    page = (hostile / "report.html").read_text()
    tags = Tags(page).found
    assert not {"script", "img", "iframe", "object", "input"} & {tag for tag, _ in tags}
    addresses = [attrs[name] for _, attrs in tags for name in ("href", "src", "xlink:href") if name in attrs]
    assert all(address.startswith(("#", "data:image/png;")) for address in addresses)
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert page.count("&lt;script&gt;alert(1)") > 20


def without_code(text: str) -> str:
    """Markdown without what stands between backticks."""
    return re.sub(r"`[^`]*`", "", text)


def test_the_markdown_has_no_element_link_or_picture_that_it_did_not_make(hostile):
    page = (hostile / "report.md").read_text()
    assert "<script" not in page
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", page)
    assert links
    assert all(re.fullmatch(r"(tables|figures)/\w+\.(csv|tex|png)", link) for link in links)


def test_a_table_in_markdown_keeps_its_columns(hostile):
    rows = [line for line in (hostile / "report.md").read_text().splitlines() if line.startswith("|")]
    headers = [row for row, below in pairwise(rows) if below.startswith("|:-")]
    assert len(headers) > 5
    table: list[str] = []
    for row in rows:
        table = [row] if row in headers else [*table, row]
        columns = [len(re.findall(r"(?<!\\)\|", line)) for line in table]
        assert set(columns) == {columns[0]}


def test_no_cell_of_a_csv_file_is_a_formula(hostile):
    cells = 0
    for file in (hostile / "tables").glob("*.csv"):
        with file.open(newline="") as lines:
            for row in csv.reader(lines):
                for cell in row:
                    cells += 1
                    harmless = not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
                    assert harmless or re.fullmatch(r"(?:[-+\d.,()%e ]|to|nan|inf)*", cell)
    assert cells > 500
    assert f"'@{SCRIPT}" in (hostile / "tables" / "arms.csv").read_text()


def test_latex_sees_no_command_of_a_stranger(hostile):
    for file in (hostile / "tables").glob("*.tex"):
        text = file.read_text()
        assert r"\input" not in text
        assert not re.search(r"(?<!\\)[$#%]", text)


def test_tensorboards_text_has_no_element_link_or_picture(hostile):
    events = EventAccumulator(str(hostile / "dashboard" / "overview"), size_guidance={TENSORS: 0}).Reload()
    texts = [
        value.tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        if tag.endswith("text_summary")
        for value in events.Tensors(tag)
    ]
    assert any("script" in text for text in texts)
    for text in [*texts, condition_card({HOSTILE: HOSTILE})]:
        assert "<script" not in text
        assert "](" not in text


def test_the_page_is_made_where_a_name_is_a_broken_formula(hostile):
    assert "$x$" in (hostile / "report.html").read_text()
    assert "$y$" in (hostile / "figures" / "mask_0.svg").read_text()


@given(st.text(max_size=30))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_escaped_text_has_neither_lines_nor_elements_nor_cells_nor_links(text):
    escaped = markdown.escape(text)
    assert "<" not in escaped
    assert "](" not in escaped
    assert "][" not in escaped
    assert escaped.isprintable()
    assert not re.search(r"(?<!\\)\|", escaped.replace("\\\\", ""))


@given(st.text(max_size=30))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_what_is_printed_does_not_steer_the_terminal(text):
    assert printable(text).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("+0.123 (-0.1 to +nan)", "+0.123 (-0.1 to +nan)"),
        ("-1e-05", "-1e-05"),
        (-0.5, -0.5),
        ("lora", "lora"),
    ],
)
def test_a_cell_is_no_formula(cell, written):
    assert escape_formula(cell) == written
