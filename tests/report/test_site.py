"""The pages of the documentation site: every link leads to a page or file of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from repro.records.papers import load_papers
from repro.report.record import project_readme
from repro.report.site import LINK, Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    found = Site(project_readme().parent, tmp_path_factory.mktemp("site"))
    found.lay_out()
    return found


def test_no_link_is_broken(site: Site) -> None:
    links = 0
    for page in site.pages.rglob("*.md"):
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in LINK.findall(prose):
            if "://" not in link:
                links += 1
                assert (page.parent / link).is_file(), (page, link)
    assert links > 300


def test_papers_have_their_figures_and_verdicts(site: Site) -> None:
    gallery = (site.pages / "gallery.md").read_text()
    for paper in load_papers():
        assert f"({paper.room_folder.relative_to(site.checkout)}/README.md)" in gallery
    counted = r"(\d+ supported, )?(\d+ not supported, )?(\d+ inconclusive, )?\d+ not tested at"
    assert re.search(rf"`repro run dgc`\s+mini: {counted}", gallery)
    assert "results/mini_traffic.png" in gallery  # mini's own, before those of its variants


def test_modules_are_linked_by_their_page_of_the_api(site: Site) -> None:
    page = Path("experiments/dgc/README.md")
    text = site.linked(page, "[x](../../src/repro/methods/dgc#a) [y](https://a.b)")
    assert text == "[x](../../api/methods/dgc.md#a) [y](https://a.b)"


def test_every_page_of_the_navigation_exists(site: Site) -> None:
    lines = (site.checkout / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = re.findall(r"^  - .*: (\S+\.md)$", lines, flags=re.MULTILINE)
    assert pages
    assert all((site.pages / page).is_file() for page in pages)


def test_its_search_needs_no_server(site: Site) -> None:
    """Material's `offline` plugin makes a script of the index, which loads from a disk."""
    assert "\n  - offline" in (site.checkout / "mkdocs.yml").read_text()
