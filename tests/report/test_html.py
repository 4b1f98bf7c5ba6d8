"""The page as text: escaping, links, its security policy, and what is left out of large folders."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from fake_outputs import claim, make_study, update_json

from repro.claims.verdicts import Verdict

OUTPUTS = Path("outputs")


class Page(HTMLParser):
    """Collects what a test asks about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attributes)
        self.links += [value for name, value in attributes if name in ("href", "src")]


def page_of(report: Any, *arguments: str, path: str = "r.html") -> str:
    result = report("--html", path, *arguments)
    assert result.exit_code == 0, result.output
    return Path(path).read_text()


def test_links_lead_to_run_directories_from_wherever_the_page_lies(report: Any) -> None:
    folder = make_study(OUTPUTS, arms=["a b#?%"], seeds=1)
    page = Page(page_of(report, path="some/where/r.html"))
    relative = [unquote(link) for link in page.links if link.startswith("./")]
    targets = {(Path("some/where") / link).resolve() for link in relative}
    assert targets == {folder.resolve(), (folder / "a b#?%/seed=0").resolve()}


def test_the_page_loads_nothing(report: Any) -> None:
    make_study(OUTPUTS)
    text = page_of(report)
    page = Page(text)
    assert not set(page.tags) & {"link", "img", "iframe", "object", "embed"}
    assert page.tags.count("script") == 1
    assert not re.search(r"@import|url\(|fetch\(|\binnerHTML\b", text)
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    outside = [link for link in page.links if not link.startswith(("#", "./"))]
    assert outside == ["https://arxiv.org/abs/1712.01887"]


HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}</style>"


def test_hostile_strings_add_no_element_and_no_attribute(report: Any) -> None:
    harmless = make_study(OUTPUTS, arms=["a", "b"], seeds=1)
    before = Page(page_of(report))
    make_hostile(harmless)
    after_text = page_of(report)
    after = Page(after_text)
    assert set(after.tags) <= set(before.tags) | {"sup", "ul", "li"}
    assert after.tags.count("script") == 1
    assert after.attributes <= before.attributes | {"title"}
    assert "onerror" not in after.attributes
    assert "{{ 7*7 }}" in after_text


def make_hostile(folder: Path) -> None:
    """Puts hostile text wherever a report shows text."""
    update_json(folder / "study.json", typed=[HOSTILE], notes=[HOSTILE])
    run = folder / "a" / "seed=0"
    update_json(
        run / "run.json",
        arm=HOSTILE,
        point={HOSTILE: HOSTILE},
        status="failed",
        error={"message": HOSTILE},
        versions={HOSTILE: HOSTILE},
        hardware={HOSTILE: [HOSTILE]},
        code={"sha256": HOSTILE},
        data={"name": HOSTILE},
    )
    config = run / "config.yaml"
    quoted = HOSTILE.replace("'", "''")
    config.write_text(config.read_text() + f"'{quoted}': '{quoted}'\n")
    hostile = claim("C1", Verdict.SUPPORTED, HOSTILE).model_copy(
        update={"where": HOSTILE, "reason": HOSTILE, "id": HOSTILE}
    )
    (folder / "verdicts.json").write_text(f"[{hostile.model_dump_json()}]")


def test_every_part_of_a_study_is_there(report: Any) -> None:
    make_study(OUTPUTS)
    text = page_of(report)
    for part in (
        "93.87 against 93.75 %",
        ">recalled</span>",
        "+0.8 [-0.2, +1.9] points",
        "optimizer.lr",
        "0123456789abcdef · 0123456789ab",
        "<dt>torch</dt><dd>2.13.0</dd>",
        "dgc seed=2",
        'class="band',
    ):
        assert part in text, part


def test_a_diverged_run_says_why(report: Any) -> None:
    folder = make_study(OUTPUTS)
    update_json(folder / "dgc/seed=0/run.json", status="diverged", reason="the loss is infinite")
    assert "the loss is infinite" in page_of(report)


def test_older_studies_get_a_line_but_the_one_that_speaks_is_whole(report: Any) -> None:
    judged = datetime(2026, 1, 1)
    for hour in range(8):
        make_study(OUTPUTS, created=judged + timedelta(hours=hour), seeds=1, verdicts=[])
    make_study(OUTPUTS, created=judged - timedelta(hours=1), seeds=1)
    text = page_of(report)
    assert text.count('<details class="study"') == 6  # five newest, and the one with verdicts
    assert text.count('<tr class="study"') == 3
    first = re.search(r'data-key="dgc mini" data-study="([^"]+)">', text)
    assert first is not None
    assert f'id="{first[1]}" data-scale="mini" data-date="2025-12-31" open' in text


def test_a_large_grid_draws_some_arms_and_says_so(report: Any) -> None:
    make_study(OUTPUTS, arms=[f"arm{number}" for number in range(20)], seeds=1)
    assert "4 further arms are not drawn" in page_of(report)


@pytest.mark.parametrize("name", ["a/b/../../x.html", "ü ä.html"])
def test_any_file_name_will_do(report: Any, name: str) -> None:
    make_study(OUTPUTS, seeds=1)
    Path("a/b").mkdir(parents=True)
    assert page_of(report, path=name).startswith("<!doctype html>")
