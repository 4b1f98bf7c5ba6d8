"""metrics.csv: the series of a run, a row of numbers a step."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

KEYS = ("step", "epoch")  # whole numbers; the other columns are metrics
_DAMAGE = (OSError, ValueError, OverflowError, csv.Error)


def read_series(
    file: Path, metrics: Collection[str] | None = None, up_to_damage: bool = False
) -> list[dict[str, Any]]:
    """Reads metrics.csv: rows of numbers, without the cells that are empty.

    Args:
        file: metrics.csv; one that is missing has no rows.
        metrics: the metrics to read; all by default.
        up_to_damage: keep the rows before the first that cannot be read.

    A `ValueError` says so if a cell is not a number, unless ``up_to_damage``.
    """
    rows: list[dict[str, Any]] = []
    harmless = (FileNotFoundError, *(_DAMAGE if up_to_damage else ()))
    with suppress(*harmless), file.open(newline="", encoding="utf-8") as lines:
        rows.extend(rows_of(lines, metrics, str(file)))
    return rows


def rows_of(
    lines: Iterable[str], metrics: Collection[str] | None = None, origin: str = "a series"
) -> Iterator[dict[str, Any]]:
    """Reads the lines of a metrics.csv, as `read_series` does.

    Args:
        lines: of the file.
        metrics: the metrics to read; all by default.
        origin: what is read, for error messages.

    Raises:
        ValueError: a cell is missing or not a number.
    """
    reader = csv.reader(lines)
    columns = [
        (number, name, _whole if name in KEYS else float)
        for number, name in enumerate(next(reader, []))
        if metrics is None or name in metrics or name in KEYS
    ]
    last = max((number for number, *_ in columns), default=0)
    for cells in reader:
        if len(cells) <= last:
            raise ValueError(f"{origin}, line {reader.line_num}: cells are missing")
        yield {name: read(cells[number]) for number, name, read in columns if cells[number]}


def _whole(text: str) -> int:
    return int(float(text))
