"""The settings that a paper's arms were tuned over (``results/tuning.json``), typed by hand."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, model_validator

from repro.records.typed import Record, read_record

Setting = bool | int | float | str | list[int]
Value = int | float | str  # a number, or in words why there is none: diverged
BySeed = dict[int, Value]
AVERAGES = {"arithmetic": statistics.fmean, "geometric": statistics.geometric_mean}


class _Typed(Record):
    """Written by people: a key that means nothing is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Try(_Typed):
    """What was tried, and what came of it; nothing where only the choice is known.

    Attributes:
        settings: by name; none for an arm as it is.
        values: what was judged, by seed.
        mean: the same over seeds, where their values are not known.
        seeds: over which `mean` was taken, if not over the file's; how many, if not which.
        also: what else was measured, by name.
        note: what else there is to say, in a few words.
        chosen: whether the arm has these settings.
    """

    settings: dict[str, Setting]
    values: BySeed | None = None
    mean: float | None = None
    seeds: list[int] | int | None = None
    also: dict[str, BySeed | Value] | None = None
    note: str = ""
    chosen: bool = False

    @model_validator(mode="after")
    def _is_known_once(self) -> Self:
        if self.values is not None and not (self.mean is None and self.seeds is None):
            raise ValueError("values by seed leave neither a mean nor seeds to be said")
        return self


class Grid(_Typed):
    """The tries of an arm.

    Attributes:
        name: the arm, or the arms that share them.
        judged: by what, if not as the file says.
        tries: in any order; at most one was chosen.
    """

    name: str
    judged: str = ""
    tries: list[Try]

    @model_validator(mode="after")
    def _has_one_choice(self) -> Self:
        if not self.tries:
            raise ValueError("there are no tries")
        if sum(each.chosen for each in self.tries) > 1:
            raise ValueError("more than one try is chosen")
        return self

    @property
    def chosen(self) -> Try | None:
        """The try whose settings the arm has."""
        return next((each for each in self.tries if each.chosen), None)


class Tuning(_Typed):
    """All tries of a paper.

    Attributes:
        judged: the measure, the data, the steps, and whether more or less of it is better.
        average: how values of seeds become one number.
        seeds: those of most tries.
        note: what else there is to say; why there are no grids, where there are none.
        grids: in the order in which they are shown.
    """

    judged: str
    average: Literal["arithmetic", "geometric"] = "arithmetic"
    seeds: tuple[int, ...] = ()
    note: str = ""
    grids: list[Grid]

    @model_validator(mode="after")
    def _says_why_it_is_empty(self) -> Self:
        if not self.grids and not self.note:
            raise ValueError("without grids, a note has to say why")
        names = [(grid.name, grid.judged) for grid in self.grids]
        twice = next((name for name, _ in names if names.count((name, _)) > 1), None)
        if twice is not None:
            raise ValueError(f"there are two grids '{twice}'")
        return self

    @model_validator(mode="after")
    def _has_means(self) -> Self:
        try:
            for grid in self.grids:
                for tried in grid.tries:
                    self.mean(tried)
        except statistics.StatisticsError as error:
            raise ValueError(f"grid '{grid.name}': {error}") from None
        return self

    def mean(self, tried: Try) -> float | None:
        """The one number of a try; None where it is not known, or not all its seeds have one."""
        if tried.values is None:
            return tried.mean
        numbers = [value for value in tried.values.values() if not isinstance(value, str)]
        whole = len(numbers) == len(tried.values) > 0
        return AVERAGES[self.average](numbers) if whole else None

    def seed_count(self, tried: Try) -> int:
        """Over how many seeds a try was judged; 0 where nothing is known of it."""
        if tried.values is not None:
            return len(tried.values)
        if tried.mean is None:
            return 0
        seeds = self.seeds if tried.seeds is None else tried.seeds
        return seeds if isinstance(seeds, int) else len(seeds)


def read_tuning(file: Path) -> Tuning:
    """Reads a paper's tries.

    A `UserError` says in a line if there are none, or which value is of the wrong kind.
    """
    return read_record(Tuning, file)
