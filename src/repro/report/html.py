"""One HTML file that needs nothing else: style, script and pictures are inside.

Everything that comes from run directories passes through Jinja's autoescaping, and the page's
security policy names the hashes of its own style and script, so that a browser runs no other.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from repro.claims.outcomes import Verdict
from repro.records.run import MeasuredRun
from repro.records.status import Status
from repro.report import forest, pictures
from repro.report.collect import Collected, PaperEntry, StudyEntry
from repro.report.curves import claimed_first, curves_of
from repro.report.differences import Differences, differences, monitored
from repro.report.embedded import Embedded, embed
from repro.report.settings import Settings
from repro.report.tables import (
    TALLY,
    ArmRow,
    answer,
    arm_rows,
    in_reach,
    is_divided,
    metrics_of,
    out_of_reach,
    said_elsewhere,
    with_minus,
)

KINDS = {
    Verdict.SUPPORTED: "good",
    Verdict.NOT_SUPPORTED: "bad",
    Verdict.INCONCLUSIVE: "open",
    Verdict.NOT_TESTED: "none",
    Verdict.NOT_AT_SCALE: "none",
}
COLOURS = 8  # of the style sheet; further lines use them again, dashed
SCALES = ("smoke", "mini", "full")


@dataclass(frozen=True)
class LineStyle:
    """How the lines of an arm look, and the class by which the script finds them."""

    name: str
    key: str
    style: str
    note: str  # how many of its seeds diverged; may be empty


@dataclass(frozen=True)
class StudyLine:
    """A study and the name of its place on the page."""

    entry: StudyEntry
    id: str


@dataclass(frozen=True)
class ShownStudy(StudyLine):
    """A study with all that its section holds."""

    is_open: bool
    metrics: list[str]
    arms: list[ArmRow]
    environment: list[tuple[str, str]]
    figures: list[Embedded]
    legend: dict[str, LineStyle]
    left_out: int  # arms without a line
    pictures: list[pictures.Picture]
    differences: Differences


@dataclass(frozen=True)
class ShownPaper:
    """A paper's section."""

    entry: PaperEntry
    address: str
    studies: list[ShownStudy]
    older: list[StudyLine]


@dataclass(frozen=True)
class OverviewRow:
    """A study's row in the overview; the first of its paper and scale is the one to see."""

    line: StudyLine
    is_first: bool


def render(collected: Collected, target: Path, settings: Settings, command: str = "") -> str:
    """The page's text.

    Args:
        collected: what to show.
        target: where the page will lie; links to run directories are relative to it.
        settings: how much is drawn.
        command: the command that made it.
    """
    is_open = len(collected.papers) == 1  # a page about many is easier to oversee closed
    figures = sum(len(study.figures) for paper in collected.papers for study in paper.latest)
    most = 750 * settings.pictures_kb // max(1, figures)  # bytes: base64 takes a third more
    papers = [_show_paper(paper, settings, most, is_open) for paper in collected.papers]
    return _template(target.absolute().parent).render(
        style=_asset("report.css"),
        script=_asset("report.js"),
        frame=pictures,
        rows=forest,
        in_short=_in_short(collected),
        marks=[verdicts[0].mark for verdicts in TALLY.values()],
        papers=papers,
        studies=collected.studies,
        overview=[row for paper in papers for row in _overview(paper)],
        scales=_scales(collected.studies),
        has_dates=len({study.created.date() for study in collected.studies}) > 1,
        tally_names=list(TALLY),
        run_count=sum(len(study.runs) for study in collected.studies),
        problems=collected.problems,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        command=command,
    )


def _template(folder: Path) -> Template:
    """The page's template, for a page that will lie in a folder."""
    environment = Environment(
        loader=PackageLoader("repro.report"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "hash_source": _hash_source,
        "kind": KINDS.__getitem__,
        "tally": _tally,
        "breakable": _breakable,
        "forest": forest.row,
        "is_divided": is_divided,
        "in_reach": in_reach,
        "out_of_reach": out_of_reach,
        "said_elsewhere": said_elsewhere,
        "answer": answer,
        "minus": with_minus,
        "link": functools.partial(_link, start=folder),
        "number": _number,
        "seconds": _seconds,
    }
    return environment.get_template("report.html.j2")


def _in_short(collected: Collected) -> str:
    """The result in a sentence: of the newest judged study of each paper and scale."""
    judged = [study for paper in collected.papers for study in paper.latest if study.verdicts]
    if not judged:
        return "Nothing has been judged yet."
    names = dict.fromkeys(study.about.paper for study in judged)
    of = next(iter(names)) if len(names) == 1 else f"{len(names)} papers"
    return f"{of}: {answer(claim for study in judged for claim in study.verdicts)}."


def web_address(link: str) -> str:
    """The address that a paper's ``link`` means, or an empty string.

    Examples:
        >>> web_address("arXiv 1712.01887")
        'https://arxiv.org/abs/1712.01887'
        >>> web_address("javascript:alert(1)")
        ''
    """
    found = re.fullmatch(r"arXiv[ :](\d{4}\.\d{4,5}|[a-z-]+/\d{7})", link, re.IGNORECASE)
    if found:
        return f"https://arxiv.org/abs/{found[1]}"
    return link if link.startswith(("https://", "http://")) else ""


def _show_paper(paper: PaperEntry, settings: Settings, most: int, is_open: bool) -> ShownPaper:
    """A paper's section, with figures of ``most`` bytes each in the studies that speak for it."""
    in_force = {study.folder for study in paper.latest}
    lines = [StudyLine(study, f"{paper.slug}-{n}") for n, study in enumerate(paper.studies)]
    whole: list[ShownStudy] = []
    older: list[StudyLine] = []
    for scale in _scales(paper.studies):
        same = [line for line in lines if line.entry.about.scale == scale]
        for rank, line in enumerate(same):
            speaks = line.entry.folder in in_force
            if speaks or rank < settings.studies:
                figures = _embedded(line.entry, settings.pixels, most) if speaks else []
                whole.append(_show_study(paper, line, settings, figures, is_open and speaks))
            else:
                older.append(line)
    return ShownPaper(paper, web_address(paper.link), whole, older)


def _embedded(study: StudyEntry, width: int, most: int) -> list[Embedded]:
    found = (embed(file, width, most) for file in study.figures)
    return [picture for picture in found if picture is not None]


def _show_study(
    paper: PaperEntry, line: StudyLine, settings: Settings, figures: list[Embedded], is_open: bool
) -> ShownStudy:
    study = line.entry
    arms = arm_rows(study.runs, paper.metrics)
    drawn = [*filter(None, [monitored(study)]), "train/loss", *paper.metrics, "val/loss"]
    return ShownStudy(
        entry=study,
        id=line.id,
        is_open=is_open,
        metrics=metrics_of(arms, paper.metrics),
        arms=arms,
        environment=_environment(study.runs),
        figures=figures,
        legend=_legend(study, settings.lines),
        left_out=max(0, len(study.groups) - settings.lines),
        pictures=[
            pictures.draw(metric, curves, settings.log_above)
            for metric, curves in curves_of(study, drawn, settings).items()
        ],
        differences=differences(study, settings.lines),
    )


def _legend(study: StudyEntry, most: int) -> dict[str, LineStyle]:
    """Colours for the arms that claims compare; the others are grey."""
    order, named = claimed_first(study)
    legend = {}
    for number, name in enumerate(order[:most]):
        statuses = [run.status for run in study.groups[name]]
        lost = statuses.count(Status.DIVERGED)
        style = f"c{number % COLOURS}" if name in named else "muted"
        dashed = " dashed" if number // COLOURS % 2 else ""
        note = f"{lost} of {len(statuses)} diverged" if lost else ""
        legend[name] = LineStyle(name, f"l{number}", style + dashed, note)
    return legend


def _overview(paper: ShownPaper) -> list[OverviewRow]:
    """A row for every study: of each scale first those that were judged, newest first."""
    lines = [*paper.studies, *paper.older]
    rows: list[OverviewRow] = []
    for scale in _scales(paper.entry.studies):
        same = [line for line in lines if line.entry.about.scale == scale]
        same.sort(key=lambda line: (not line.entry.verdicts, -line.entry.created.timestamp()))
        rows += [OverviewRow(line, line is same[0]) for line in same]
    return rows


def _scales(studies: Sequence[StudyEntry]) -> list[str]:
    """The scales that there are: smoke, mini, full, each followed by its variants."""

    def size(scale: str) -> tuple[int, str]:
        first = scale.partition("_")[0]
        return (SCALES.index(first) if first in SCALES else len(SCALES), scale)

    return sorted({study.about.scale for study in studies}, key=size)


def _environment(runs: Sequence[MeasuredRun]) -> list[tuple[str, str]]:
    """What the runs rest on; where they differ, every value that occurs."""
    found: dict[str, dict[str, None]] = {}

    def note(name: str, value: Any) -> None:
        if value:
            found.setdefault(name, {})[str(value)] = None

    for run in runs:
        note("code", " · ".join(filter(None, [run.code.sha256, run.code.commit])))
        for package, version in run.versions.items():
            note(package, version)
        for name, value in run.hardware.items():
            note(name, ", ".join(map(str, value)) if isinstance(value, list) else value)
        if run.data:
            note("data", f"{run.data.get('name', '')} {str(run.data.get('sha256', ''))[:16]}")
    return [(name, "; ".join(values)) for name, values in found.items()]


def _tally(study: StudyEntry) -> list[tuple[str, int]]:
    return [(KINDS[verdicts[0]], study.count(*verdicts)) for verdicts in TALLY.values()]


def _asset(name: str) -> Markup:
    return Markup((package_files("repro.report") / "templates" / name).read_text(encoding="utf-8"))


def _hash_source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _link(path: Path, start: Path) -> str:
    # "./", because a first folder named like "javascript:" must not become a scheme.
    return quote("./" + os.path.relpath(path, start))


def _breakable(name: str) -> Markup:
    """A metric's name that may be broken where people would break it."""
    return Markup(re.sub("([/_])", r"\1<wbr>", str(escape(name))))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
