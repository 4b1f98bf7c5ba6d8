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
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from repro.claims.verdicts import Verdict
from repro.report import pictures
from repro.report.arms import Arm, measured, table
from repro.report.collect import Collected, PaperEntry, RunEntry, StudyEntry
from repro.report.curves import curves_of
from repro.report.differences import Differences, differences, monitored
from repro.report.settings import Settings

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


@dataclass
class ShownStudy:
    """A study with all that its section holds."""

    entry: StudyEntry
    id: str
    is_open: bool
    metrics: list[str]
    arms: list[Arm]
    environment: list[tuple[str, str]]
    figures: list[Path]
    legend: dict[str, LineStyle] = field(default_factory=dict)
    pictures: list[pictures.Picture] = field(default_factory=list)
    left_out: int = 0  # arms without a line
    differences: Differences | None = None


@dataclass(frozen=True)
class ShownPaper:
    """A paper's section."""

    entry: PaperEntry
    address: str
    studies: list[ShownStudy]


@dataclass(frozen=True)
class OverviewRow:
    """A study's row in the overview; the first of its paper and scale is the one to see."""

    study: StudyEntry
    id: str
    is_first: bool


def render(collected: Collected, target: Path, settings: Settings, command: str = "") -> str:
    """The page's text.

    Args:
        collected: what to show.
        target: where the page will lie; links to run directories are relative to it.
        settings: how much is drawn.
        command: the command that made it.
    """
    environment = Environment(
        loader=PackageLoader("repro.report"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "hash_source": _hash_source,
        "kind": KINDS.__getitem__,
        "tally": _tally,
        "link": functools.partial(_link, start=target.absolute().parent),
        "number": _number,
        "seconds": _seconds,
    }
    papers = [_show_paper(paper, settings) for paper in collected.papers]
    page = environment.get_template("report.html.j2").render(
        style=_asset("report.css"),
        script=_asset("report.js"),
        frame=pictures,
        papers=papers,
        studies=collected.studies,
        overview=[row for paper in papers for row in _overview(paper)],
        scales=_scales(collected.studies),
        run_count=sum(len(study.runs) for study in collected.studies),
        problems=collected.problems,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        command=command,
    )
    return page


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


def _show_paper(paper: PaperEntry, settings: Settings) -> ShownPaper:
    in_force = {study.folder for study in paper.latest}
    shown = []
    seen: dict[str, int] = {}
    for number, study in enumerate(paper.studies):
        rank = seen[study.about.scale] = seen.get(study.about.scale, 0) + 1
        is_open = study.folder in in_force
        each = _show_study(paper, study, f"{paper.slug}-{number}", is_open)
        if is_open or rank <= settings.detailed:
            _add_details(each, paper, settings)
        shown.append(each)
    return ShownPaper(paper, web_address(paper.link), shown)


def _show_study(paper: PaperEntry, study: StudyEntry, name: str, is_open: bool) -> ShownStudy:
    metrics = measured(paper, study)
    return ShownStudy(
        entry=study,
        id=name,
        is_open=is_open,
        metrics=metrics,
        arms=table(study, metrics),
        environment=_environment(study.runs),
        figures=sorted((study.folder / "figures").glob("*.png")),
    )


def _add_details(shown: ShownStudy, paper: PaperEntry, settings: Settings) -> None:
    """Adds what takes reading files of every run: curves and settings."""
    study = shown.entry
    wanted = [*filter(None, [monitored(study)]), "train/loss", *paper.metrics, "val/loss"]
    groups = list(study.groups)
    shown.legend = {
        name: LineStyle(name, f"l{number}", _style(number))
        for number, name in enumerate(groups[: settings.lines])
    }
    shown.left_out = max(0, len(groups) - settings.lines)
    shown.pictures = [
        pictures.draw(metric, curves, settings.log_above)
        for metric, curves in curves_of(study, wanted, settings).items()
    ]
    shown.differences = differences(study, settings.lines)


def _style(number: int) -> str:
    return f"c{number % COLOURS}" + (" dashed" if number // COLOURS % 2 else "")


def _overview(paper: ShownPaper) -> list[OverviewRow]:
    """A row for every study: of each scale first those that were judged, newest first."""
    scales = _scales([shown.entry for shown in paper.studies])
    ranked = sorted(
        paper.studies,
        key=lambda shown: (scales.index(shown.entry.about.scale), not shown.entry.verdicts),
    )
    rows: list[OverviewRow] = []
    for shown in ranked:
        is_first = not rows or rows[-1].study.about.scale != shown.entry.about.scale
        rows.append(OverviewRow(shown.entry, shown.id, is_first))
    return rows


def _scales(studies: Sequence[StudyEntry]) -> list[str]:
    """The scales that there are: smoke, mini, full, each followed by its variants."""

    def size(scale: str) -> tuple[int, str]:
        first = scale.partition("_")[0]
        return (SCALES.index(first) if first in SCALES else len(SCALES), scale)

    return sorted({study.about.scale for study in studies}, key=size)


def _environment(runs: Sequence[RunEntry]) -> list[tuple[str, str]]:
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
    return [
        ("good", study.count(Verdict.SUPPORTED)),
        ("bad", study.count(Verdict.NOT_SUPPORTED)),
        ("open", study.count(Verdict.INCONCLUSIVE)),
        ("none", study.count(Verdict.NOT_TESTED, Verdict.NOT_AT_SCALE)),
    ]


def _asset(name: str) -> Markup:
    return Markup((package_files("repro.report") / "templates" / name).read_text())


def _hash_source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _link(path: Path, start: Path) -> str:
    # "./", because a first folder named like "javascript:" must not become a scheme.
    return quote("./" + os.path.relpath(path, start))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
