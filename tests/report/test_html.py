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
from PIL import Image

from repro.claims.outcomes import Verdict
from repro.records.papers import load_papers

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


def test_seeds_are_counted_in_words(report: Any) -> None:
    """On a phone, where the table's head is hidden."""
    both = claim("C1", Verdict.SUPPORTED)
    check = both.checks[0].model_copy(update={"seeds": 1})
    alone = both.model_copy(update={"id": "C2", "checks": (check,)})
    make_study(OUTPUTS, verdicts=[both, alone])
    units = re.findall(r'data-unit="(\w+)">(\d+)<', page_of(report))
    assert units == [("seeds", "3"), ("seed", "1")]


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
        "+0.8 [−0.2, +1.9] points",
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


def test_the_page_begins_with_the_result(report: Any) -> None:
    verdicts = [claim("C1", Verdict.SUPPORTED), claim("C2", Verdict.INCONCLUSIVE)]
    make_study(OUTPUTS, verdicts=verdicts)
    assert "<h1>dgc: 1 of 2 tested claims supported, 1 inconclusive.</h1>" in page_of(report)
    make_study(OUTPUTS, paper="other", verdicts=[claim("C1", Verdict.NOT_SUPPORTED)])
    in_all = "2 papers: 1 of 3 tested claims supported, 1 not supported, 1 inconclusive."
    assert f"<h1>{in_all}</h1>" in page_of(report)


def test_every_effect_is_drawn_with_its_limit(report: Any) -> None:
    make_study(OUTPUTS)
    text = page_of(report)
    assert text.count('<svg class="forest"') == 1
    assert 'aria-label="+0.8 [−0.2, +1.9] points, claimed ≥ −1 %"' in text


def test_checks_that_agree_are_folded(report: Any) -> None:
    (check,) = claim("C1", Verdict.SUPPORTED).checks
    other = check.model_copy(update={"verdict": Verdict.INCONCLUSIVE})
    agree = claim("C1", Verdict.SUPPORTED).model_copy(update={"checks": (check,) * 3})
    divided = claim("C2", Verdict.INCONCLUSIVE).model_copy(update={"checks": (check, other)})
    away = claim("C3", Verdict.NOT_AT_SCALE).model_copy(update={"reason": "needs a GPU"})
    make_study(OUTPUTS, verdicts=[agree, divided, away])
    text = page_of(report)
    assert text.count("2 more, all supported") == 1
    assert text.count('<svg class="forest"') == 5
    assert "1 claim not tested at this scale" in text
    assert "needs a GPU" in text


def test_a_claim_that_another_scale_judges_is_only_named(report: Any) -> None:
    away = claim("C3", Verdict.NOT_AT_SCALE).model_copy(update={"reason": "needs a GPU"})
    make_study(OUTPUTS, verdicts=[claim("C1", Verdict.SUPPORTED), away])
    make_study(OUTPUTS, scale="full", verdicts=[claim("C3", Verdict.SUPPORTED)])
    text = page_of(report)
    assert "Judged at full: C3." in text
    assert "needs a GPU" not in text


def test_figures_are_inside_the_page_and_anything_else_is_not(report: Any, tmp_path: Path) -> None:
    figures = make_study(OUTPUTS) / "figures"
    figures.mkdir()
    Image.new("RGBA", (1800, 600), (0, 0, 255, 255)).save(figures / "wide.png")
    (figures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    (figures / "script.png").write_text("<svg onload='alert(1)'/>")
    text = page_of(report)
    assert "img-src data:" in text
    assert text.count("<img ") == 1
    assert 'width="1000" height="333" alt="wide"' in text
    assert re.search(r'<img src="data:image/(?:avif|webp);base64,[A-Za-z0-9+/=]+"', text)


def test_diverged_seeds_are_counted_in_the_legend(report: Any) -> None:
    folder = make_study(OUTPUTS)
    update_json(folder / "dgc/seed=0/run.json", status="diverged")
    text = page_of(report)
    assert "1 of 3 diverged" in text
    assert 'class="lost' in text


@pytest.mark.slow
def test_the_page_of_all_records_is_small_and_needs_no_run(report: Any) -> None:
    text = page_of(report, "--recorded")
    papers = [paper for paper in load_papers() if paper.recorded_scales]
    assert text.count('<section class="paper">') == len(papers) > 10
    assert text.count("<img ") >= len(papers)
    records = sum(len(paper.recorded_scales) for paper in papers)
    # Pictures, which are most of it, and the table of all runs: some have eighty seeds.
    assert len(text.encode()) <= 70_000 * records
    page = Page(text)
    assert not [link for link in page.links if link.startswith("./")]
    assert 'alt="mini_traffic"' in text
