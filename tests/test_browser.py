"""report.html in a real headless browser: every part works, and says so to everybody."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from ccnn.compiler import CompileOptions, compile_model
from ccnn.compiler.report import build_report
from ccnn.compiler.report.html import report_html
from ccnn.targets.simulator import simulate

pytestmark = pytest.mark.slow
MODEL = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 300_000
"""Milliseconds until a page that never gets ready fails its test; never waited for in full."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium: the system's own, or the one Playwright has installed."""
    with sync_playwright() as driver:
        own = driver.chromium.executable_path
        path = next(filter(None, map(shutil.which, CHROMIUMS)), own)
        if not Path(path).exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        browser = driver.chromium.launch(
            executable_path=path,
            timeout=PATIENCE,
            args=["--no-sandbox", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """report.html of a small network, and the report it shows."""
    c = compile_model(MODEL, CompileOptions(batch=4))
    trace = simulate(c.program, c.machine)
    report = build_report(c, trace, trace, ("machine wavecore (--target)",))
    file = tmp_path_factory.mktemp("report") / "report.html"
    text = report_html(report, c.program, c.machine, c.mapping.tilings, trace)
    file.write_text(text, encoding="utf-8")
    return file, report


@pytest.fixture(params=[1440, 390], ids=["desktop", "phone"])
def page(browser, written, request) -> Iterator[Page]:
    """The page, opened from disk and ready; in the end nothing may have gone wrong on it."""
    context = browser.new_context(viewport={"width": request.param, "height": 900}, offline=True)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.goto(written[0].as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    yield page
    assert faults == []
    context.close()


@pytest.fixture(scope="module")
def report(written):
    return written[1]


def shown_layers(page: Page) -> list[int]:
    """Numbers of the layers that the table shows, from top to bottom."""
    return page.eval_on_selector_all(
        "#layer-table tbody tr:not([hidden])", "rows => rows.map(r => +r.dataset.l)"
    )


def words(row: dict) -> str:
    """What the search looks through."""
    return " ".join((row["node"], row["kind"], row["phase"], *row["ops"])).lower()


def test_the_table_sorts(page, report):
    page.click('#layer-table th button[data-key="cycles"]')
    cycles = [report["layers"][n]["cycles"] for n in shown_layers(page)]
    assert cycles == sorted((row["cycles"] for row in report["layers"]), reverse=True)


def test_the_table_can_be_searched_and_filtered(page, report):
    everything = list(range(len(report["layers"])))
    page.fill("#f-text", "conv")
    found = shown_layers(page)
    assert found == [n for n in everything if "conv" in words(report["layers"][n])]
    assert 0 < len(found) < len(everything)
    assert page.text_content("#f-count") == f"{len(found)} of {len(everything)} layers"
    page.select_option("#f-phase", "backward")
    both = [n for n in found if report["layers"][n]["phase"] == "backward"]
    assert shown_layers(page) == both
    page.fill("#f-text", "")
    page.select_option("#f-phase", "")
    assert shown_layers(page) == everything


def test_a_layer_chosen_anywhere_is_chosen_everywhere(page, report):
    page.click('#graph-plot .node[data-l="3"]')
    assert page.evaluate("location.hash") == "#L3"
    assert page.get_attribute("#layer-table tr.chosen", "id") == "L3"
    assert report["layers"][3]["node"] in (page.text_content("#detail-body .name") or "")


def test_the_roofline_shows_each_layer_on_the_array(page, report):
    dots = page.locator("#roofline-plot .dot").count()
    assert dots == sum(1 for row in report["layers"] if row["macs"] and row["cycles"])


def test_the_timeline_zooms_to_the_chosen_layer(page, report):
    page.click('#graph-plot .node[data-l="3"]')
    page.click('[data-zoom="layer"]')
    page.wait_for_selector("#timeline-plot rect.busy", state="attached")
    start, end = page.evaluate("[state.from, state.to]")
    assert 0 <= start < end < report["totals"]["cycles"]
    assert page.locator("#timeline-plot rect.busy").count() > 5


def test_nothing_is_wider_than_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
