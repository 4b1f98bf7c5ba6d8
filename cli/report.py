"""`repro report`: the verdicts of all studies on the terminal, in Markdown and as a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.text import Text

from repro.claims.outcomes import LEGEND
from repro.records import files
from repro.records.recorded import OLD_MEANS
from repro.report.collect import Collected, Filters, StudyEntry, collect, collect_recorded
from repro.report.settings import Settings
from repro.report.tables import TALLY

from . import render
from .verdicts import COLOURS

SHOWN_PROBLEMS = 3


def report(
    outputs: Path,
    filters: Filters,
    html: Path | None,
    markdown: Path | None,
    as_json: bool,
    command: str,
    recorded: bool = False,
) -> None:
    """Prints the overview of studies, or of what is recorded, and writes the files asked for."""
    collected = collect_recorded(filters) if recorded else collect(outputs, filters)
    if as_json:
        render.emit(_plain(collected))
    else:
        _print_overview(collected, outputs)
    for problem in collected.problems[:SHOWN_PROBLEMS]:
        render.message(f"left out: {_printable(problem)}")
    if len(collected.problems) > SHOWN_PROBLEMS:
        render.message(f"{len(collected.problems) - SHOWN_PROBLEMS} more files cannot be read.")
    if html is not None:
        from repro.report.html import render as render_html

        _write(html, render_html(collected, html, Settings.load(), command))
    if markdown is not None:
        from repro.report.markdown import render as render_markdown

        _write(markdown, render_markdown(collected))


def _print_overview(collected: Collected, outputs: Path) -> None:
    if not collected.papers:
        none = f"No studies in {outputs}. Start one: repro run SLUG"
        render.console.print("No study passes." if collected.found else none, markup=False)
        return
    marks = [verdicts[0].mark for verdicts in TALLY.values()]
    shown = render.table("paper", "scale", *marks, "runs", "date")
    for column in (shown.columns[1], shown.columns[-1]):
        column.no_wrap = True
    for study in _latest(collected):
        counts = [study.count(*verdicts) for verdicts in TALLY.values()]
        runs = ", ".join(f"{number} {status}" for status, number in study.statuses.items())
        shown.add_row(
            Text(_printable(study.about.paper)),
            Text(_printable(study.about.scale)),
            *(
                Text(
                    str(n) if study.verdicts else "–",
                    style=COLOURS.get(name, "") if n else "dim",
                )
                for name, n in zip(TALLY, counts, strict=True)
            ),
            runs,
            study.when,
        )
    render.console.print(shown)
    is_any_old = any(study.is_outdated for study in _latest(collected))
    legend = f"{LEGEND}; {OLD_MEANS}" if is_any_old else LEGEND
    render.console.print(legend, highlight=False)


def _latest(collected: Collected) -> list[StudyEntry]:
    return [study for paper in collected.papers for study in paper.latest]


def _plain(collected: Collected) -> dict[str, Any]:
    return {
        "studies": [
            {
                "paper": study.about.paper,
                "scale": study.about.scale,
                "folder": str(study.folder),
                "created": study.about.created.isoformat(),
                "runs": {str(status): number for status, number in study.statuses.items()},
                "claims": {claim.id: str(claim.verdict) for claim in study.verdicts},
            }
            for study in collected.studies
        ],
        "problems": collected.problems,
    }


def _write(path: Path, text: str) -> None:
    files.make_folder(path.absolute().parent)
    files.write_text(path, text)
    render.message(f"written: {path}")


def _printable(text: str) -> str:
    """The text without control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "�" for char in text)
