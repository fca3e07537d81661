"""report.html in a real headless browser: every part works, and says so to everybody."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ccnn.compiler import CompileOptions, compile_model
from ccnn.compiler.driver import Compilation
from ccnn.compiler.report import build_report
from ccnn.compiler.report.html import report_html
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import simulate

pytestmark = pytest.mark.slow
MODEL = Path(__file__).parent / "data" / "resnet8_cifar" / "model.onnx"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = 1440, 390
PATIENCE = 120_000
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


def conventional() -> Compilation:
    return compile_model(MODEL, CompileOptions(batch=4))


def grouped() -> Compilation:
    """Layers in groups that take a mini-batch in several passes."""
    small = replace(load_machine("wavecore"), gbuf_bytes=2**20)
    return compile_model(
        MODEL,
        CompileOptions(small, 32, norm="group", serialize="mbs2", recompute="cheap"),
    )


def with_references(report: dict) -> dict:
    """The report with a strong baseline and a waterfall, whose figures are made up."""
    totals = report["totals"]
    steps = [("conventional", 3.0), ("fuse", 2.0), ("serialize", 0.5), ("recompute", 1.0)]
    keys = ("cycles", "seconds", "dram_read_bytes", "dram_write_bytes", "gbuf_bytes", "energy_pj")
    return report | {
        "strong_baseline": {key: 2 * value for key, value in totals.items()},
        "waterfall": [
            {"name": name, "says": f"what {name} does", "totals": {k: f * totals[k] for k in keys}}
            for name, f in steps
        ],
    }


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """File and report by name: one conventional, one with all that a report may have."""
    folder = tmp_path_factory.mktemp("reports")
    found = {}
    for make in (conventional, grouped):
        c = make()
        trace = simulate(c.program, c.machine)
        report = build_report(c, trace, trace, ("machine wavecore (--target)",))
        if make is grouped:
            report = with_references(report)
        file = folder / f"{make.__name__}.html"
        file.write_text(report_html(report, c.program, c.machine, c.mapping.tilings, trace))
        found[make.__name__] = file, report
    return found


@contextmanager
def opened(browser: Browser, file: Path, width: int, scheme: str = "light") -> Iterator[Page]:
    """A report, opened from disk and ready; in the end nothing may have gone wrong on it."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=True, color_scheme=scheme
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    yield page
    assert faults == []
    context.close()


CASES = [("conventional", DESKTOP), ("grouped", DESKTOP), ("grouped", PHONE)]


@pytest.fixture(params=CASES, ids=["conventional", "grouped", "grouped on a phone"])
def shown(browser, reports, request) -> Iterator[tuple[Page, dict]]:
    name, width = request.param
    file, report = reports[name]
    with opened(browser, file, width) as page:
        yield page, report


@pytest.fixture
def page(shown) -> Page:
    return shown[0]


@pytest.fixture
def report(shown) -> dict:
    return shown[1]


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


def chosen(page: Page) -> list[int]:
    """The layer that the address, the table, the detail and the graph have chosen, once each.

    The graph has forward layers: -1 for one that is only made backward.
    """
    return page.evaluate(
        """() => [
          +location.hash.slice(2),
          +document.querySelector("#layer-table tr.chosen").dataset.l,
          D.layers.findIndex((_, n) => title(n) ===
            document.querySelector("#detail-body .name").textContent),
          +(document.querySelector("#graph-plot .node.chosen")?.dataset.l ?? -1),
        ]"""
    )


def test_a_layer_chosen_anywhere_is_chosen_everywhere(page, report):
    for selector, layer in (
        ('#graph-plot .node[data-l="3"] text', 3),
        ("#layer-table #L5 a", 5),
        ("#roofline-plot .dot", None),
    ):
        place = page.locator(selector).first
        layer = int(place.get_attribute("data-l") or 0) if layer is None else layer
        place.dispatch_event("click")
        assert chosen(page) == [layer] * 4
    box = page.locator("#timeline-plot").bounding_box()
    page.locator("#timeline-plot").click(position={"x": box["width"] / 3, "y": 100})
    first, *others = page.evaluate("[state.layer]") + chosen(page)[:3]
    assert others == [first] * 3


def test_a_link_to_a_layer_chooses_it(page, report):
    backward = next(n for n, row in enumerate(report["layers"]) if row["phase"] == "backward")
    page.evaluate(f"location.hash = '#L{backward}'")
    page.wait_for_selector(f"#layer-table #L{backward}.chosen", state="attached")
    name = page.text_content("#detail-body .name") or ""
    assert name.startswith(report["layers"][backward]["node"])
    page.locator("#detail-body p a").first.dispatch_event("click")  # the same node, forward
    again = page.evaluate("state.layer")
    assert again != backward
    assert report["layers"][again]["node"] == report["layers"][backward]["node"]


def test_every_link_inside_the_page_leads_somewhere(page):
    lost = page.eval_on_selector_all(
        "a[href]",
        "all => all.filter(a => !document.querySelector(a.getAttribute('href'))).map(a => a.href)",
    )
    assert lost == []


def test_the_roofline_shows_each_layer_on_the_array(page, report):
    dots = page.locator("#roofline-plot .dot")
    assert dots.count() == sum(1 for row in report["layers"] if row["pe_utilisation"])
    path = page.get_attribute("#roofline-plot .roof", "d") or ""
    roof = float(re.findall(r"[\d.]+", path)[3])
    heights = [float(dot.get_attribute("cy") or 0) for dot in dots.all()]
    assert min(heights) >= roof - 0.01, "a layer does more than the array can"


def test_the_timeline_zooms_to_the_chosen_layer(page, report):
    layer = next(n for n, row in enumerate(report["layers"]) if n and row["kind"] == "conv")
    page.locator(f'#graph-plot .node[data-l="{layer}"]').dispatch_event("click")
    whole = page.inner_text("#t-window")
    page.locator('[data-zoom="layer"]').click()
    cycles = report["totals"]["cycles"]
    start, end = page.evaluate("[state.from, state.to]")
    own = page.evaluate(f"kernelsOf[{layer}].flatMap(k => spans(D.kernels[k], {layer}))")
    assert 0 <= start <= min(a for a, _ in own) < max(b for _, b in own) <= end <= cycles
    assert end - start < cycles / 2
    expect(page.locator("#t-window")).not_to_have_text(whole, timeout=PATIENCE)
    if not report["groups"]:
        page.wait_for_selector("#timeline-plot rect.busy", state="attached")
        assert page.locator("#timeline-plot rect.busy").count() > 5


def test_charts_work_with_the_keyboard_alone(page, report):
    page.focus("#graph-plot")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert chosen(page) == [1] * 4
    page.focus("#roofline-plot")
    page.keyboard.press("End")
    most = max(
        row["macs"] / (row["dram_read_bytes"] + row["dram_write_bytes"])
        for row in report["layers"]
        if row["dram_read_bytes"] + row["dram_write_bytes"] and row["cycles"]
    )
    row = report["layers"][page.evaluate("state.layer")]
    assert row["macs"] / (row["dram_read_bytes"] + row["dram_write_bytes"]) == most
    page.focus("#timeline-plot")
    page.keyboard.press("+")
    width = page.evaluate("state.to - state.from")
    assert width == pytest.approx(report["totals"]["cycles"] / 2)
    page.keyboard.press("0")
    assert page.evaluate("[state.from, state.to]") == [0, report["totals"]["cycles"]]
    page.keyboard.press("Home")
    assert page.evaluate("state.layer") != page.evaluate("D.layers.length")
    page.keyboard.press("Escape")
    assert page.locator("aside.open").count() == 0


def area(path: str) -> float:
    """What lies inside a path of horizontal and vertical lines that ends below its start."""
    start = x = y = total = 0.0
    for kind, to in re.findall(r"([MHVz])([\d. ]*)", path):
        if kind == "M":
            start, y = map(float, to.split())
            x = start
        elif kind == "V":
            y = float(to)
        else:
            end = start if kind == "z" else float(to)
            total, x = total + (x - end) * y, end
    return total


def test_lanes_are_as_full_as_the_engines_were(page, report):
    """The areas that are drawn for busy and for stalled, against the totals of each engine."""
    lane = page.locator("#timeline-plot .lane").first
    room = float(lane.get_attribute("width") or 0) * float(lane.get_attribute("height") or 0)
    paths = page.locator("#timeline-plot path[data-engine]").all()
    shares = [abs(area(path.get_attribute("d") or "")) / room for path in paths]
    cycles = report["totals"]["cycles"]
    for n, engine in enumerate(report["engines"]):
        busy, stalled = engine["busy_cycles"], sum(engine["stalls"].values())
        assert shares[2 * n] == pytest.approx(busy / cycles, abs=0.02), engine["engine"]
        assert shares[2 * n + 1] == pytest.approx(stalled / cycles, abs=0.03), engine["engine"]


def test_groups_show_in_graph_and_detail(page, report):
    bands = page.locator("#graph-plot .band").count()
    assert bands == sum(
        1 for g in report["groups"] if not g["kernel"].startswith(("loss/grad", "update"))
    )
    words = page.eval_on_selector_all("#graph-plot text.soft", "all => all.map(t => t.textContent)")
    for group in report["groups"][:bands]:
        passes = f"{group['passes']} passes of up to {group['sub_batch']} samples"
        assert any(passes in word for word in words)
    page.locator('#graph-plot .node[data-l="3"]').dispatch_event("click")
    facts = page.eval_on_selector_all("#detail-body dt", "all => all.map(d => d.textContent)")
    assert ("group" in facts) == bool(report["groups"])


def test_places_in_the_buffer_do_not_overlap(page):
    """Two buffers at one address are there at different times, as the page draws them."""
    assert (
        page.evaluate(
            """() => D.kernels.flatMap(k => {
          const all = k.u.filter(u => u[1] === "gbuf"), last = k.g.length - 1;
          const life = u => u.length > 7 ? [u[7], u[8]] : [0, last];
          return all.flatMap((a, i) => all.slice(0, i).filter(b =>
            a[2] < b[2] + b[3] && b[2] < a[2] + a[3]
            && life(a)[0] <= life(b)[1] && life(b)[0] <= life(a)[1]).map(b => [k.n, a[0], b[0]]));
        })"""
        )
        == []
    )


def test_the_waterfall_is_there_when_the_report_has_one(page, report):
    steps = report.get("waterfall", [])
    names = page.eval_on_selector_all(
        "#waterfall tbody th", "all => all.map(each => each.textContent)"
    )
    assert names == [step["name"] for step in steps]
    times = page.locator("#waterfall tbody td:nth-child(3) small").all_text_contents()
    assert times == (["-33.3 %", "-75.0 %", "+100.0 %"] if steps else [])
    head = page.locator("#summary thead th").all_text_contents()
    assert ("strong baseline" in head) == ("strong_baseline" in report)


def test_a_browser_too_old_for_the_charts_is_told(browser, reports):
    context = browser.new_context()
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto(reports["conventional"][0].as_uri())
    page.wait_for_selector("#trouble:not([hidden])", timeout=PATIENCE)
    assert "newer browser" in page.inner_text("#trouble")
    assert page.locator("#layer-table tbody tr").count() == len(
        reports["conventional"][1]["layers"]
    )
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_is_for_everybody(browser, reports, width, scheme):
    """axe-core finds nothing that keeps people with a screen reader or weak eyes from it."""
    with opened(browser, reports["grouped"][0], width, scheme) as page:
        page.evaluate("choose(3, 'table')")
        found = Axe().run(page).response["violations"]
    assert [f"{v['impact']}: {v['id']} {v['nodes'][0]['target']}" for v in found] == []


def test_nothing_is_wider_than_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
