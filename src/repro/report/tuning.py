"""What arms were tuned over: tables whose cells mark what was chosen with ``**``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby

from repro.errors import UserError
from repro.records.tuning import Grid, Setting, Try, Tuning
from repro.report.tables import escape_cell, markdown_table, with_minus

RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class TriesTable:
    """Grids that were judged alike, a row each.

    Attributes:
        judged: by what, where it is not what the file says.
        header: the columns' names.
        rows: cells in which ``**`` stands around what was chosen.
    """

    judged: str
    header: list[str]
    rows: list[list[str]]


def tries_markdown(name: str, tuning: Tuning) -> str:
    """The tables of a README's block; by what they were judged, where they are several.

    Args:
        name: ``tuning`` for all tries, ``tuning:chosen`` for the choices alone, or
            ``tuning:adam|sgd_*`` for the grids of these names.
        tuning: the tries.

    Raises:
        UserError: there are none.
    """
    selected = name.partition(":")[2]
    if selected in ("", "chosen"):
        tables = list(chosen_tables(tuning) if selected else tries_tables(tuning))
    else:
        patterns = selected.split("|")
        grids = [g for g in tuning.grids if any(fnmatchcase(g.name, each) for each in patterns)]
        tables = list(tries_tables(tuning.model_copy(update={"grids": grids})))
    if not tables:
        raise UserError(f"<!-- {name} -->: there are no such tries.")
    lines: list[str] = []
    for table in tables:
        lines += [""] if lines else []
        lines += [f"*{table.judged}:*", ""] if table.judged and len(tables) > 1 else []
        lines += markdown_table(table.header, [map(escape_cell, row) for row in table.rows])
    return "\n".join(lines) + "\n"


def tries_tables(tuning: Tuning) -> Iterator[TriesTable]:
    """All tries; where they vary one and the same setting, its values are columns."""
    for judged, grids in _judged_alike(tuning):
        legend = _legend(tuning, (tried for grid in grids for tried in grid.tries))
        setting = _shared_setting(grids)
        if setting is None:
            rows = [_listed(tuning, grid) for grid in grids]
            yield TriesTable(judged, ["arm", f"tries{legend}"], rows)
        else:
            values = _ordered(tried.settings[setting] for grid in grids for tried in grid.tries)
            rows = [_by_value(tuning, grid, values) for grid in grids]
            yield TriesTable(judged, [f"arm, {setting}{legend}", *map(in_words, values)], rows)


def chosen_tables(tuning: Tuning) -> Iterator[TriesTable]:
    """How many settings were tried, which were chosen and what came of them: for large grids."""
    for judged, grids in _judged_alike(tuning):
        made = [(grid, grid.chosen) for grid in grids if grid.chosen is not None]
        legend = _legend(tuning, (chosen for _, chosen in made))
        names = list(dict.fromkeys(name for _, chosen in made for name in chosen.settings))
        rows = [
            [
                grid.name,
                str(len({str(tried.settings) for tried in grid.tries})),
                *(in_words(chosen.settings.get(name, "–")) for name in names),
                result_of(tuning, chosen) or "–",
            ]
            for grid, chosen in made
        ]
        yield TriesTable(judged, ["arm", "tried", *names, f"result{legend}"], rows)


def in_words(value: Setting) -> str:
    """A setting's value, as short as it can be typed."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def result_of(tuning: Tuning, tried: Try) -> str:
    """What came of a try: a mean, or what seeds came to; raised, over how many; its note."""
    mean = tuning.mean(tried)
    found = [mean] if mean is not None else (tried.values or {}).values()
    digits = 6 if tried.mean is not None else 4  # a mean that was recorded was rounded then
    words = [value if isinstance(value, str) else f"{value:.{digits}g}" for value in found]
    shown = with_minus(", ".join(dict.fromkeys(words)))
    count = _unusual_count(tuning, tried)
    raised = f" {str(count).translate(RAISED)}" if count else ""
    return ", ".join(filter(None, (shown + raised, tried.note)))


def _judged_alike(tuning: Tuning) -> Iterator[tuple[str, list[Grid]]]:
    """Grids by what they were judged by; the file's own measure is said only to tell it apart."""
    parts = groupby(tuning.grids, key=lambda grid: grid.judged)
    for place, (judged, grids) in enumerate(parts):
        yield judged or (tuning.judged if place else ""), list(grids)


def _unusual_count(tuning: Tuning, tried: Try) -> int:
    """Over how many seeds a try was judged; 0 if over as many as most, or not known."""
    count = tuning.seed_count(tried)
    return count if tuning.seeds and count != len(tuning.seeds) else 0


def _legend(tuning: Tuning, tries: Iterable[Try]) -> str:
    """What raised numbers mean, where there are some."""
    counts = sorted({_unusual_count(tuning, tried) for tried in tries} - {0})
    marks = " ".join(str(count).translate(RAISED) for count in counts)
    return f" ({marks}: number of seeds)" if marks else ""


def _one_setting(tries: Iterable[Try]) -> str | None:
    """The name of the setting that tries vary, if it is one and the same."""
    names = {tuple(tried.settings) for tried in tries}
    if len(names) != 1:
        return None
    (together,) = names
    return together[0] if len(together) == 1 else None


def _shared_setting(grids: Sequence[Grid]) -> str | None:
    """The name of the setting that all grids vary, trying no value twice."""
    values = [[str(tried.settings) for tried in grid.tries] for grid in grids]
    is_once = all(len(set(tried)) == len(tried) for tried in values)
    return _one_setting(tried for grid in grids for tried in grid.tries) if is_once else None


def _ordered(values: Iterable[Setting]) -> list[Setting]:
    """Each value once: numbers by size, words as they come."""
    once = list({in_words(value): value for value in values}.values())
    numbers = [value for value in once if isinstance(value, int | float)]
    return sorted(numbers) if len(numbers) == len(once) else once


def _by_value(tuning: Tuning, grid: Grid, values: Sequence[Setting]) -> list[str]:
    cells = {
        in_words(value): _marked(result_of(tuning, tried), tried)
        for tried in grid.tries
        for value in tried.settings.values()
    }
    return [grid.name, *(cells.get(in_words(value), "") for value in values)]


def _listed(tuning: Tuning, grid: Grid) -> list[str]:
    """One cell with all tries; a setting that is the only one is named beside the grid."""
    alone = _one_setting(grid.tries)
    tries = []
    for tried in grid.tries:
        settings = [
            in_words(value) if alone else f"{name} {in_words(value)}"
            for name, value in tried.settings.items()
        ]
        words = ": ".join(filter(None, (", ".join(settings), result_of(tuning, tried))))
        tries.append(_marked(words, tried))
    return [f"{grid.name}, {alone}" if alone else grid.name, " · ".join(tries)]


def _marked(words: str, tried: Try) -> str:
    return f"**{words}**" if tried.chosen else words
