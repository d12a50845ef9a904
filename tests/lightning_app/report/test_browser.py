"""What is on the screen, in a real browser that may ask nobody but this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tensorboard import program

from influence_masking.masks.mask import Mask
from influence_masking.reporting import log_mask
from lightning_app.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HERE = (None, "localhost", "127.0.0.1")
HOSTILE = "sst2<img src=x onerror=alert(1)>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, write) -> Path:
    """Return an experiment of three arms on two datasets, one with a hostile name, with curves, a mask and pictures."""
    folder = tmp_path_factory.mktemp("outputs") / "study"
    for dataset in ("sst2", "agnews"):
        write.study(folder, dataset, baseline=0.75, influence=0.52, random_matched=0.73)
    write.study(folder, HOSTILE.replace("/", ""), baseline=0.75)
    run = folder / "sst2" / "influence" / "seed0"
    flags = torch.arange(64).reshape(8, 8) % 8 < 4
    names = [f"layers.{layer}.mlp.{name}.weight" for layer in range(2) for name in ("up", "down")]
    digest = write.mask(run, dict.fromkeys(names, flags))
    sizes = {"masked_parameters": 128, "candidate_parameters": 256}
    changes = {"predicted_change": 8.9, "measured_change": 1.1, "mask_digest": digest}
    write.condition(folder, "sst2", "influence", 0, 0.52, **changes, **sizes)
    logger = TensorBoardLogger(str(run), name="", version="")
    log_mask([logger], Mask.load(run / "mask.safetensors"), {"predicted_change": 8.9}, torch.randn(1000), 0)
    logger.finalize("success")
    for arm in ("baseline", "influence"):
        write.curves(folder / "sst2" / arm / "seed0", val__accuracy={9: 0.6, 19: 0.7}, train__loss={5: 0.6, 15: 0.5})
    write.sweep(folder, "sst2")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Yield a tab; the test fails if it reports an error or asks another machine for anything."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda asked: complaints.append(asked.url) if urlsplit(asked.url).hostname not in HERE else None)
    yield page
    page.close()
    assert complaints == []


@pytest.mark.parametrize("width", [1400, 390], ids=["desktop", "phone"])
def test_the_report_shows_its_tables_and_figures_and_is_no_wider_than_the_screen(study, page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((study / "report.html").as_uri())
    expect(page.get_by_role("heading", level=1)).to_have_text("study")
    expect(page.locator(".answer")).to_contain_text("Masking hurts")
    for table in ("arms", "verdicts", "differences", "sweep", "mask_shares", "expected", "protocol"):
        page.locator(f"#table-{table}").scroll_into_view_if_needed()
        expect(page.locator(f"#table-{table}")).to_be_visible()
    figures = page.locator("figure svg")
    drawn = [figure.bounding_box() for figure in figures.all()]
    assert len(drawn) == page.locator("figure").count() > 5
    assert all(box and box["width"] > 200 and box["height"] > 50 for box in drawn)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.locator("img")).to_have_count(0)


@pytest.fixture(scope="module")
def tensorboard(study) -> str:
    """Return the address of a TensorBoard of the experiment, once it has read it."""
    server = program.TensorBoard()
    server.configure(argv=[None, "--logdir", str(study.parent), "--port", "0", "--reload_interval", "1"])
    return server.launch()


def test_tensorboard_opens_on_the_arms_side_by_side(tensorboard, page):
    page.goto(tensorboard)
    expect(page.get_by_text("accuracy/sst2", exact=True).first).to_be_visible(timeout=60_000)
    for arm in ("baseline", "influence", "random_matched"):
        expect(page.get_by_text(f"study/dashboard/{arm}", exact=True).first).to_be_visible()


def test_tensorboard_has_a_custom_page_a_dataset(tensorboard, page):
    page.goto(f"{tensorboard}#custom_scalars")
    page.get_by_text("accuracy on eval, by seed").first.wait_for(timeout=60_000)
    for dataset in ("sst2", "agnews"):
        expect(page.locator("tf-category-paginated-view", has_text=dataset).first).to_be_visible()
    expect(page.get_by_text("Matches (3)").first).to_be_visible()  # baseline, influence, random_matched
    expect(page.get_by_text("Matches (0)")).to_have_count(0)


def test_tensorboard_tells_the_verdict_in_text_that_is_not_markup(tensorboard, page):
    page.goto(f"{tensorboard}#text")
    expect(page.get_by_text("masking hurts").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text(HOSTILE).first).to_be_visible()
    expect(page.locator("img[src=x]")).to_have_count(0)


def test_tensorboard_shows_the_mask_by_layer_and_the_scores(tensorboard, page):
    page.goto(f"{tensorboard}#images")
    picture = page.locator("tf-image-loader img").first
    picture.wait_for(timeout=60_000)
    assert picture.evaluate("image => image.naturalWidth") > 100
    page.goto(f"{tensorboard}#histograms")
    page.get_by_text("masking/scores").first.wait_for(timeout=60_000)
