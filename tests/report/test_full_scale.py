"""The page of what full scales take: what is rehearsed, with what, and how it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from repro.planning.plan import PlannedRun, plan_study
from repro.records.papers import Paper, load_paper, load_papers
from repro.records.rehearsal import Rehearsal
from repro.report import full_scale, record
from repro.report.full_scale import ABSENT, DONE, FAILED, Row

SEEN = Rehearsal(
    device="Abacus", devices=1, precision="32-true", parameters=10, steps=4, resumed=True
)
EMPTY = "".join(
    f"<!-- {block} -->\n<!-- /{block} -->\n" for block in ("rehearsals", "rehearsals:whole")
)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of its own."""
    page = tmp_path / "full-scale.md"
    page.write_text(EMPTY)
    monkeypatch.setattr(full_scale, "document", lambda: page)
    return page


class Rehearser:
    """Stands in for what takes long; knows what it was asked, and at which of them to break off.

    Attributes:
        asked: slugs and scales.
        clock: seconds, 90 more after each.
        breaks_at: a scale at which the process is stopped.
        states: of scales that do not come to their last step.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.clock = 0.0
        self.breaks_at = ""
        self.states: dict[str, str] = {}

    def __call__(self, paper: Paper, scale: str, whole: bool) -> list[Row]:
        if scale == self.breaks_at:
            raise KeyboardInterrupt
        self.asked.append((paper.slug, scale))
        self.clock += 90.0
        state = self.states.get(scale, DONE)
        return [Row("arm", SEEN if state == DONE else None, state=state)]


@pytest.fixture
def rehearser(monkeypatch: pytest.MonkeyPatch) -> Rehearser:
    rehearser = Rehearser()
    monkeypatch.setattr(full_scale, "measured", rehearser)
    monkeypatch.setattr(full_scale.time, "monotonic", lambda: rehearser.clock)
    return rehearser


def titles(page: Path, block: str = "rehearsals") -> list[str]:
    """Of the parts of a block."""
    return list(full_scale.sections(record.filled(page.read_text(), block)))


def test_a_part_replaces_its_own_and_keeps_the_others(page: Path, rehearser: Rehearser) -> None:
    assert full_scale.main(["man", "dgc"]) == 0
    man, dgc = (
        [full_scale.heading(paper, scale) for _, scale in full_scale.full_scales([paper.slug])]
        for paper in map(load_paper, ("man", "dgc"))
    )
    assert titles(page) == sorted(dgc) + sorted(man)
    rehearser.states = {"full": FAILED}
    assert full_scale.main(["dgc"]) == 1
    assert page.read_text().count("failed") == 1
    assert titles(page) == sorted(dgc) + sorted(man)


def test_what_is_done_is_kept_and_what_is_missing_made_up(page: Path, rehearser: Rehearser) -> None:
    rehearser.breaks_at = "full_imagenet"
    with pytest.raises(KeyboardInterrupt):
        full_scale.main(["dgc"])
    assert titles(page) == [full_scale.heading(load_paper("dgc"), "full")]
    rehearser.breaks_at = ""
    rehearser.states = {"full_ptb": FAILED, "full_imagenet": ABSENT}
    assert full_scale.main(["--missing", "dgc"]) == 1  # what lacks a package has not failed
    assert len(rehearser.asked) == len(set(rehearser.asked)) == len(titles(page))
    full_scale.main(["--missing", "dgc"])  # both are tried again
    assert set(rehearser.asked[-2:]) == {("dgc", "full_imagenet"), ("dgc", "full_ptb")}
    assert page.read_text().count("| not here |") == 1


def test_what_is_whole_ends_with_its_minutes_and_stands_apart(
    page: Path, rehearser: Rehearser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    full_scale.main(["--whole", "--minutes", "4"])
    first = list(dict.fromkeys(paper.slug for paper in load_papers()))[:3]
    assert rehearser.asked == [(slug, load_first(slug)) for slug in first]
    assert titles(page) == []
    assert len(titles(page, "rehearsals:whole")) == 3
    assert "at `hardware=gpu`, on 1 × Abacus" in page.read_text()


def test_what_is_whole_takes_a_gpu(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        full_scale.main(["--whole"])
    assert page.read_text() == EMPTY


def load_first(slug: str) -> str:
    """The first full scale of a paper."""
    return next(scale for scale in load_paper(slug).scales if scale.startswith("full"))


def test_parts_of_scales_that_are_gone_are_dropped() -> None:
    old = record.fill(EMPTY, "rehearsals", "### `dgc` scale=full_of_old\n\n|a|\n\n")
    new = full_scale.with_section(old, "rehearsals", "### `man` scale=full\n\nwords\n\n")
    lead, _, rest = record.filled(new, "rehearsals").partition("\n\n")
    count = len(full_scale.full_scales())
    assert lead == f"Not rehearsed yet: {count - 1} of {count}."
    assert rest == "### `man` scale=full\n\nwords\n\n"


@pytest.mark.parametrize("slug", [paper.slug for paper in load_papers()])
def test_every_full_scale_is_composed_as_it_is_rehearsed(slug: str) -> None:
    """Reduced, all its arms; for one GPU those of the paper, as they differ in hardware only.

    As they are for any hardware, all arms are composed with the rooms.
    """
    paper = load_paper(slug)

    def rehearsed(scale: str, *typed: str, whole: bool) -> list[PlannedRun]:
        typed = (*typed, *full_scale.typed_for(paper, scale, whole))
        plan = plan_study([f"paper={slug}", f"scale={scale}", "seed=0", *typed])
        return full_scale.one_of_each_kind(plan).runs

    for _, scale in full_scale.full_scales([slug]):
        reduced = rehearsed(scale, whole=False)
        arms = ",".join(run.arm for run in reduced if run.arm in paper.arms)
        whole = rehearsed(scale, f"arm=[{arms}]", whole=True)
        for runs, accelerator in ((reduced, "cpu"), (whole, "gpu")):
            for run in runs:
                hardware = run.content["hardware"]
                assert hardware["accelerator"] == accelerator
                assert hardware["launcher"]["name"] == "basic"


def test_the_page_speaks_of_scales_that_there_are() -> None:
    known = {full_scale.heading(paper, scale) for paper, scale in full_scale.full_scales()}
    for block in ("rehearsals", "rehearsals:whole"):
        assert set(titles(full_scale.document(), block)) <= known
