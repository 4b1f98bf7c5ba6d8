"""The page in a real browser: it renders, filters, stays inert, fits a phone, and is readable."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_outputs import claim, make_study
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright
from repro.cli.main import cli

from repro.claims.outcomes import Verdict

from .test_html import HOSTILE, make_hostile

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium")  # `make test` leaves these tests out where there is none
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = ViewportSize(width=1280, height=900)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Visit:
    """A page, its newest study of dgc, and everything that went wrong on it."""

    page: Page
    folder: Path
    wrong: list[str] = field(default_factory=list)

    def visible(self, selector: str) -> list[str]:
        """The texts of what is to be seen."""
        found = self.page.locator(selector).locator("visible=true")
        return [text.strip() for text in found.all_inner_texts()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over four studies, one of them hostile."""
    folder = tmp_path_factory.mktemp("site")
    outputs = folder / "outputs"
    bad = [claim("C1", Verdict.NOT_SUPPORTED)]
    make_study(outputs, created=datetime(2026, 1, 1), verdicts=bad)
    judged = make_study(outputs, created=datetime(2026, 2, 1), arms=["dense", "dgc", "random"])
    (judged / "figures").mkdir()
    Image.new("RGB", (1600, 500), "white").save(judged / "figures" / "traffic.png")
    make_study(outputs, scale="smoke", created=datetime(2026, 3, 1))
    make_hostile(make_study(outputs, paper="zebra", created=datetime(2026, 4, 1), arms=["a", "b"]))
    page = folder / "report.html"
    done = CliRunner().invoke(cli, ["report", "--outputs", str(outputs), "--html", str(page)])
    assert done.exit_code == 0, done.output
    return page


@pytest.fixture(params=["light"])
def visit(browser: Browser, site: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    context = browser.new_context(viewport=DESKTOP, color_scheme=request.param, offline=True)
    folder = site.parent / "outputs/dgc/mini/2026-02-01_00-00-00"
    visit = Visit(context.new_page(), folder)
    watch(visit)
    visit.page.goto(site.as_uri())
    yield visit
    context.close()
    assert visit.wrong == []


def watch(visit: Visit) -> None:
    """Notes console messages, script errors, dialogues, and requests for anything else."""
    page, wrong = visit.page, visit.wrong
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))  # type: ignore[call-overload, func-returns-value]
    page.on(
        "request",
        lambda request: wrong.append(request.url) if not request.is_navigation_request() else None,
    )


def test_it_renders(visit: Visit) -> None:
    assert visit.page.title() == "repro: report"
    assert len(visit.visible("#overview tbody tr")) == 3
    visit.page.click("#overview tbody tr:has-text('mini') a >> nth=0")
    study = visit.page.locator("details.study[open]")
    expect(study).to_have_count(1)
    expect(study.locator("figure").first).to_be_visible()
    box = study.locator("figure path.line").first.bounding_box()
    assert box is not None
    assert box["width"] > 100
    assert "✓ supported" in study.inner_text()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_link_leads_to_a_study_below_the_filters(visit: Visit, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 500})
    visit.page.click("#overview tbody tr:has-text('mini') a >> nth=0")
    expect(visit.page.locator("details.study[open]")).to_be_in_viewport()
    visit.page.wait_for_function(
        """() => {
            const bar = document.getElementById("filters").getBoundingClientRect();
            const top = document.querySelector("details.study[open]").getBoundingClientRect().top;
            return top >= Math.max(bar.bottom, 0) && top < innerHeight / 2;
        }"""
    )


def test_filter_by_scale(visit: Visit) -> None:
    visit.page.locator(".chip", has_text="mini").click()
    assert [row.split()[1] for row in visit.visible("#overview tbody tr")] == ["smoke"]
    assert len(visit.visible(".study")) == 1
    assert visit.visible("#shown") == ["1 of 4 studies"]
    visit.page.click("button[type=reset]")
    expect(visit.page.locator("#shown")).to_be_empty()
    assert len(visit.visible("details.study")) == 4


def test_filter_by_date_lets_an_older_study_speak(visit: Visit) -> None:
    def verdicts() -> list[str]:
        (row,) = visit.visible("#overview tbody tr:has-text('mini'):has-text('dgc')")
        return row.split()[2:4]

    assert verdicts() == ["1", "0"]
    visit.page.fill("#until", "2026-01-15")
    assert verdicts() == ["0", "1"]
    assert len(visit.visible(".study")) == 1
    visit.page.fill("#since", "2026-01-10")
    assert visit.visible("#nothing") == ["Nothing matches these filters."]
    assert visit.visible(".paper") == []


def test_search_finds_studies_and_their_runs(visit: Visit) -> None:
    visit.page.fill("#query", "RANDOM  seed=1")
    assert len(visit.visible("details.study")) == 1
    visit.page.locator("details.study:visible > summary").click()
    visit.page.locator("details.study:visible .part summary", has_text="9 runs").click()
    runs = visit.visible("details.study:visible .runs tbody tr")
    assert [run.split("\t")[0] for run in runs] == ["random seed=1"]
    visit.page.fill("#query", "no such thing")
    assert visit.visible(".study") == []


def test_the_legend_hides_an_arm(visit: Visit) -> None:
    visit.page.goto(f"{visit.page.url}#dgc-1")
    study = visit.page.locator("#dgc-1")
    lines = study.locator("figure path.line:visible")
    before = lines.count()
    charts = study.locator("svg.chart").count()
    study.locator(".legend button", has_text="random").click()
    assert lines.count() == before - charts
    study.locator(".legend button", has_text="random").click()
    assert lines.count() == before


def test_hostile_strings_are_shown_as_text(visit: Visit) -> None:
    for details in visit.page.locator("details").all():
        details.evaluate("element => element.open = true")
    zebra = visit.page.locator(".paper", has_text="zebra")
    assert (zebra.text_content() or "").count(HOSTILE) >= 10
    assert visit.page.evaluate("document.scripts.length") == 1
    assert visit.page.evaluate("document.images.length") == 1  # the figure of another study


def test_the_policy_stops_even_a_script_that_got_in(browser: Browser, site: Path) -> None:
    page = browser.new_page()
    page.goto(site.as_uri())
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        "document.body.append(s)"
    )
    assert page.evaluate("window.hit") is None
    page.close()


@pytest.mark.parametrize("visit", ["light", "dark"], indirect=True)
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_page_is_wider_than_its_screen(visit: Visit, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 800})
    for details in visit.page.locator("details").all():
        details.evaluate("element => element.open = true")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width


def test_figures_are_shown_offline(visit: Visit) -> None:
    visit.page.goto(f"{visit.page.url}#dgc-1")
    picture = visit.page.locator("#dgc-1 .drawing img")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") == 1000


def test_the_pointer_reads_values_off_a_chart(visit: Visit) -> None:
    visit.page.goto(f"{visit.page.url}#dgc-1")
    chart = visit.page.locator("#dgc-1 .chart").nth(1)
    assert chart.get_attribute("aria-label") == "train/loss over steps"
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    share = (400 - 10 - 1) / 400  # close to the right end: the last step
    visit.page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    tip = visit.page.locator("#tip")
    expect(tip).to_be_visible()
    lines = tip.inner_text().split("\n")
    assert lines[0] == "step 599"
    shown = dict(line.strip().split("\t") for line in lines[1:])
    rows = [
        (visit.folder / f"dense/seed={seed}/metrics.csv").read_text().splitlines()[-1].split(",")
        for seed in range(3)
    ]
    mean = sum(float(row[4]) for row in rows) / 3
    assert float(shown["dense"]) == pytest.approx(mean, rel=0.05)
    visit.page.mouse.move(0, 0)
    expect(tip).to_be_hidden()


def test_two_studies_and_several_runs_are_compared(visit: Visit) -> None:
    page = visit.page
    page.locator("#dgc-1 .compare").click()
    expect(page.locator("#tray #compare")).to_be_disabled()
    page.locator("#dgc-2 .compare").click()
    page.click("#tray #compare")
    heads, first, *_ = page.locator("#comparison tr").all_inner_texts()
    assert heads.split("\t")[1:] == ["dgc mini 02-01 00:00", "dgc mini 01-01 00:00"]
    assert first.split("\t")[0] == "C1"
    assert "✓ supported" in first
    assert "✗ not supported" in first
    page.click("#close")
    page.click("#clear")
    expect(page.locator("#tray")).to_be_hidden()
    page.goto(f"{page.url}#dgc-1")
    page.locator("#dgc-1 .part summary", has_text="9 runs").click()
    for seed in (0, 1, 2):
        page.locator("#dgc-1 .runs tr", has_text=f"random seed={seed}").locator(".pick").check()
    page.click("#tray #compare")
    rows = [text.split("\t") for text in page.locator("#comparison tr").all_inner_texts()]
    assert rows[0][1:] == [f"dgc random seed={seed}" for seed in (0, 1, 2)]
    assert rows[1] == ["status", "finished", "finished", "finished"]


@pytest.mark.parametrize("visit", ["light", "dark"], indirect=True)
def test_text_is_readable_in_both_schemes(visit: Visit, request: pytest.FixtureRequest) -> None:
    for details in visit.page.locator("details").all():
        details.evaluate("element => element.open = true")
    for selector in ("h1", ".faint", ".verdict", "td a", ".source", "td.failed", ".legend button"):
        ratio = contrast(visit.page.locator(selector).first)
        assert ratio >= 4.5, (selector, ratio)  # WCAG AA
    background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    scheme = request.node.callspec.params["visit"]
    assert (luminance(background) < 0.1) == (scheme == "dark")


def contrast(element: Locator) -> float:
    """The contrast between an element's text and what is behind it."""
    text, behind = element.evaluate(
        """element => {
          let behind = element;
          const back = () => getComputedStyle(behind).backgroundColor;
          while (back() === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
          return [getComputedStyle(element).color, back()];
        }"""
    )
    darker, lighter = sorted((luminance(text), luminance(behind)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of ``rgb(r, g, b)``, as WCAG defines it."""
    channels = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
