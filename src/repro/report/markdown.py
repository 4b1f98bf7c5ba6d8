"""The report as Markdown: the overview, and each paper's claims and arms."""

from __future__ import annotations

from collections.abc import Iterator

from repro.report import tables
from repro.report.collect import Collected, PaperEntry, StudyEntry
from repro.report.tables import escape_markdown as escape


def render(collected: Collected) -> str:
    """The report's text; what comes from run directories is escaped."""
    return "\n".join(_lines(collected)) + "\n"


def _lines(collected: Collected) -> Iterator[str]:
    yield from ("# What the studies say", "")
    if collected.problems:
        count, first = len(collected.problems), escape(collected.problems[0])
        yield from (f"{count} files could not be read, {first} the first of them.", "")
    rows = [
        [
            escape(paper.slug),
            escape(study.about.scale),
            *(study.count(*verdicts) for verdicts in tables.TALLY.values()),
            len(study.runs),
            study.when,
        ]
        for paper in collected.papers
        for study in paper.latest
    ]
    yield from tables.markdown_table(["paper", "scale", *tables.TALLY, "runs", "date"], rows)
    for paper in collected.papers:
        link = f", {escape(paper.link)}" if paper.link else ""
        yield from ("", "", f"## {escape(paper.title or paper.slug)}", "")
        yield f"{escape(paper.slug)}{link}. {escape(paper.question)}"
        for study in paper.latest:
            yield from _study(paper, study)


def _study(paper: PaperEntry, study: StudyEntry) -> Iterator[str]:
    scale = escape(study.about.scale)
    yield from ("", f"### {escape(paper.slug)} at scale={scale}, {study.when}", "")
    where = "" if study.is_recorded else f" in {escape(study.folder)}"
    yield f"With {escape(' '.join(study.about.typed))}{where}"
    if study.verdicts:
        yield from ("", *tables.verdicts_markdown(study.verdicts, escape, paper.judged_at))
    arms = tables.arm_rows(study.runs, paper.metrics)
    metrics = tables.metrics_of(arms, paper.metrics)
    rows = [
        map(escape, [arm.label, arm.states, *(arm.metrics.get(name, "–") for name in metrics)])
        for arm in arms
    ]
    yield from ("", *tables.markdown_table(["arm", "runs", *map(escape, metrics)], rows))
