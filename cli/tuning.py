"""`repro show SLUG --tuning`: what the paper's arms were tuned over, and what was chosen."""

from __future__ import annotations

from rich.padding import Padding
from rich.text import Text

from repro.records.papers import Paper
from repro.records.tuning import read_tuning
from repro.report.tuning import TriesTable, tries_tables

from . import render


def show(paper: Paper, as_json: bool) -> None:
    """Prints all tries; as JSON what the file holds.

    A `UserError` says so if none are recorded.
    """
    tuning = read_tuning(paper.tuning_file)
    if as_json:
        render.emit(tuning.content())
        return
    seeds = f"; seeds {', '.join(map(str, tuning.seeds))}" if tuning.seeds else ""
    average = "" if tuning.average == "arithmetic" else f"; {tuning.average} means"
    for line in (f"By {tuning.judged}{seeds}{average}.", tuning.note):
        if line:
            render.console.print(line, markup=False, highlight=False)
    for table in tries_tables(tuning):
        _print(table)
    if tuning.grids:
        render.console.print("\n*: chosen")


def _print(table: TriesTable) -> None:
    """A table as it is where it is narrow; a list of tries below its arm's name."""
    if table.judged:
        render.console.print(f"\n{table.judged}", markup=False, highlight=False)
    if len(table.header) > 2:
        shown = render.table(*table.header)
        for row in table.rows:
            shown.add_row(*map(_with_bold, row))
        render.console.print(shown)
        return
    if table.header[-1] != "tries":
        render.console.print(Text(table.header[-1], "dim"))  # what raised numbers mean
    for name, tries in table.rows:
        render.console.print(Text(name, "bold"))
        render.console.print(Padding(_with_bold(tries), (0, 0, 0, 3)))


def _with_bold(cell: str) -> Text:
    """A cell in which ``**`` stands around what was chosen: bold, and marked without colours."""
    pieces = enumerate(cell.split("**"))
    return Text.assemble(*((f"{piece} *", "bold") if odd % 2 else piece for odd, piece in pieces))
