"""README tables are made from the recorded results, and a stale one is an error."""

from __future__ import annotations

import pytest

from repro.engine import recording
from repro.engine.papers import Paper, load_paper, load_papers, paper_files

PAPERS = load_papers()


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.slug)
def test_room_tables_agree_with_the_record(paper: Paper) -> None:
    readme = (paper.room_folder / "README.md").read_text()
    assert recording.with_tables(readme, paper) == readme, f"run: repro record paper={paper.slug}"


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.slug)
def test_a_room_shows_its_recorded_study_or_says_that_there_is_none(paper: Paper) -> None:
    is_recorded = paper.results_file("mini").is_file()
    first_words = "`repro run" if is_recorded else "Not recorded yet."
    readme = (paper.room_folder / "README.md").read_text()
    assert f"<!-- results:mini -->\n{first_words}" in readme


def test_the_overview_agrees_with_the_records() -> None:
    readme = recording.project_readme().read_text()
    assert recording.fill(readme, "overview", recording.overview_markdown()) == readme


def test_filling_replaces_only_what_stands_between_the_markers() -> None:
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert recording.fill(text, "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    assert recording.fill(text, "y", "new\n") == text


def test_every_config_file_of_a_paper_is_listed() -> None:
    assert {load_paper(slug).slug for slug in paper_files()} == set(paper_files())
