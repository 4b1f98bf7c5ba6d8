"""README tables are made from the recorded results, and a stale one is an error."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_outputs import claim, make_study

from repro.claims.file import load_claims
from repro.claims.outcomes import Verdict
from repro.errors import UserError
from repro.records.files import read_json
from repro.records.papers import Paper, load_paper, load_papers, paper_files
from repro.records.recorded import (
    OLD,
    recorded_commit,
    recorded_seconds,
    recorded_verdicts,
)
from repro.records.study import Study
from repro.records.table import table
from repro.report import record, style
from repro.report.draw import save_figure
from repro.report.figures import read_declared, recorded_figures, stock
from repro.report.tables import verdicts_markdown

PAPERS = load_papers()


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.slug)
def test_room_tables_agree_with_the_record(paper: Paper) -> None:
    readme = (paper.room_folder / "README.md").read_text()
    assert record.with_tables(readme, paper) == readme, f"run: repro record paper={paper.slug}"


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.slug)
def test_a_room_shows_its_recorded_study_or_says_that_there_is_none(paper: Paper) -> None:
    is_recorded = paper.results_file("mini").is_file()
    first_words = "`repro run" if is_recorded else "Not recorded yet."
    readme = (paper.room_folder / "README.md").read_text()
    assert f"<!-- results:mini -->\n{first_words}" in readme


RECORDS = [
    (paper, scale)
    for paper in PAPERS
    for scale in paper.scales
    if paper.results_file(scale).is_file()
]


@pytest.mark.parametrize(("paper", "scale"), RECORDS, ids=lambda it: getattr(it, "slug", it))
def test_recorded_verdicts_follow_from_recorded_runs_and_the_claims(
    paper: Paper, scale: str
) -> None:
    content = read_json(paper.results_file(scale))
    again = record.judged_again(load_claims(paper.claims_file), content)
    same = rounded(again) == rounded(content["claims"])
    assert same, f"run: repro record paper={paper.slug} --rejudge"


def rounded(content: Any) -> Any:
    """What JSON holds, its numbers to nine digits: the last ones are another processor's."""
    return json.loads(json.dumps(content), parse_float=lambda text: f"{float(text):.9g}")


@pytest.mark.parametrize(("paper", "scale"), RECORDS, ids=lambda it: getattr(it, "slug", it))
def test_an_overview_says_the_same_as_the_whole_record(paper: Paper, scale: str) -> None:
    content = read_json(paper.results_file(scale))
    seconds = [run["seconds"] for run in content["runs"] if run["seconds"] is not None]
    assert recorded_seconds(paper, scale) == pytest.approx(sum(seconds))
    verdicts = [claim["verdict"] for claim in content["claims"]]
    assert recorded_verdicts(paper)[scale] == Counter(verdicts)
    assert recorded_commit(paper, scale) == content["code"].get("commit", "unknown")


def test_an_overview_of_a_damaged_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper, damaged = load_paper("dgc"), tmp_path / "mini.json"
    damaged.write_text(
        paper.results_file("mini").read_text().replace('"claims": [', '"claims": ', 1)
    )
    monkeypatch.setattr(Paper, "results_file", lambda _, scale: damaged)
    with pytest.raises(UserError, match="cannot be read"):
        recorded_seconds(paper, "mini")


def test_a_changed_claim_is_judged_on_the_recorded_runs(tmp_path: Path) -> None:
    paper = load_paper("dgc")
    content = read_json(paper.results_file("mini"))
    stricter = tmp_path / "claims.yaml"
    stricter.write_text(paper.claims_file.read_text().replace("margin: 0.005", "margin: 0.001"))
    before, after = (
        {claim["id"]: claim["verdict"] for claim in claims}
        for claims in (content["claims"], record.judged_again(load_claims(stricter), content))
    )
    assert (before["C1"], after["C1"]) == ("supported", "inconclusive")


def test_a_curve_is_not_in_a_record_so_its_claim_keeps_its_verdict() -> None:
    paper = load_paper("scalelong")
    claims = load_claims(paper.claims_file)
    content = read_json(paper.results_file("mini"))
    (speed,) = (claim for claim in content["claims"] if claim["id"] == "C1")
    assert speed in record.judged_again(claims, content)
    with pytest.raises(UserError, match="does not hold what claim C1 reads"):
        record.judged_again(claims, {**content, "claims": []})


def test_the_overview_agrees_with_the_records() -> None:
    readme = record.project_readme().read_text()
    current = record.fill(readme, "overview", record.overview_markdown())
    # Marks come and go while somebody works on a paper; the next record brings them up to date.
    assert current.replace(f" {OLD}", "") == readme.replace(f" {OLD}", "")


def test_filling_replaces_only_what_stands_between_the_markers() -> None:
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert record.fill(text, "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    assert record.fill(text, "y", "new\n") == text


def test_reasons_of_margins_stand_below_the_table() -> None:
    plain = claim("C1", Verdict.SUPPORTED)
    (check,) = plain.checks
    reason = check.model_copy(update={"margin_because": "half of 2 points | table 1"})
    explained = plain.model_copy(update={"checks": (reason, reason)})
    assert verdicts_markdown([plain])[-1].startswith("| C1")
    *_, empty, last = verdicts_markdown([plain, explained])
    assert (empty, last) == ("", "Limits: C1 ≥ −1 %, half of 2 points \\| table 1.")


def test_every_config_file_of_a_paper_is_listed() -> None:
    assert {load_paper(slug).slug for slug in paper_files()} == set(paper_files())


def test_a_paper_from_elsewhere_is_not_in_the_overview(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "recorded_verdicts", lambda paper: {"mini": {"supported": 1}})
    monkeypatch.setattr(record, "recorded_seconds", lambda paper, scale: 60.0)
    monkeypatch.setattr(record, "is_outdated", lambda paper, scale: paper.slug == "dgc")
    overview = record.overview_markdown()
    assert next(row for row in overview.splitlines() if "[`dgc`]" in row).count("mini †") == 1
    assert overview.count("†") == 2  # there, and in the legend
    assert "toy" not in overview


def test_results_of_an_installed_paper_go_beside_the_study(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_study(toy / "outputs")
    room = toy / "lib" / "site-packages" / "room"
    monkeypatch.setattr(Paper, "room_folder", property(lambda _: room))
    monkeypatch.setattr(record, "draw_study", lambda study: [])
    monkeypatch.setattr(record, "verdicts_of", lambda study: [])
    assert record.record({}, toy / "outputs", folder) == folder / "results" / "mini.json"
    assert (folder / "results" / "mini.json").is_file()
    assert not room.exists()


def test_seeds_that_arms_were_tuned_on_are_not_reported(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study has the seeds 0 to 2."""
    folder = make_study(toy / "outputs")
    tuning_file = toy / "tuning.json"
    tuning_file.write_text('{"judged": "x", "seeds": [1, 100], "note": "x", "grids": []}')
    monkeypatch.setattr(Paper, "tuning_file", property(lambda _: tuning_file))
    with pytest.raises(UserError, match=r"tuned on: 1\. Report others .*max_seeds=1\)"):
        record.record({}, toy / "outputs", folder)


def test_a_record_is_drawn_as_its_runs_were(tmp_path: Path) -> None:
    """Final metrics give the very picture; one of curves needs the runs."""
    folder = make_study(tmp_path)
    study = Study.open(folder)
    spec = {"kind": "dots", "metrics": {"test/accuracy": "accuracy"}}
    curves = {"kind": "curves", "metrics": {"train/loss": "loss"}}
    paper = replace(study.paper, figures={"final": spec, "learning": curves})
    with style.settings():
        drawn = stock(table(study), paper, study.scale)
    again = recorded_figures(record.results_of(study), paper)
    assert (set(drawn), set(again)) == ({"final", "learning"}, {"final"})
    for name, figure in {"runs": drawn["final"], "record": again["final"]}.items():
        save_figure(figure, tmp_path / f"{name}.png")
    assert (tmp_path / "runs.png").read_bytes() == (tmp_path / "record.png").read_bytes()


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.slug)
def test_what_a_room_shows_is_declared_or_of_its_own(paper: Paper) -> None:
    """A picture in its README is one that a new record would draw again."""
    shown = re.findall(r"\(results/(\w+)\.png\)", (paper.room_folder / "README.md").read_text())
    scales = "|".join(sorted(paper.scales, key=len, reverse=True))
    names = {re.sub(rf"^({scales})_", "", each) for each in shown}
    own = paper.room_folder / "figures.py"
    special = set(re.findall(r'"(\w+)": figure', own.read_text())) if own.is_file() else set()
    assert names <= set(read_declared(paper).drawings) | special
