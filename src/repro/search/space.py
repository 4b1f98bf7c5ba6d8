"""What a search may vary: Hydra's sweep syntax as Optuna's distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from repro.errors import UserError
from repro.planning.compose import Point

INSIDE = 0.618  # a place between the ends of an interval where no whole number is likely to lie


@dataclass(frozen=True)
class Parameter:
    """One key that is searched.

    Attributes:
        key: what messages and tables call it, e.g. ``method.ratio``.
        element: the key as typed, with a ``+`` or a package if there was one.
        distribution: what its values are drawn from.
    """

    key: str
    element: str
    distribution: BaseDistribution

    def override(self, value: Any) -> str:
        """The override that makes ``value`` the one point of a grid."""
        return f"{self.element}=choice({write(value)})"

    def examples(self) -> list[Any]:
        """Values that stand for the rest when the space is checked before the search."""
        found: Any = self.distribution
        if isinstance(found, CategoricalDistribution):
            return list(found.choices)
        if isinstance(found, FloatDistribution) and found.step is None:
            return [found.low, found.low + INSIDE * (found.high - found.low), found.high]
        return [found.low, found.high]


def read_space(overrides: Sequence[Override]) -> list[Parameter]:
    """Reads the searched keys from overrides such as ``a=interval(0,1)`` or ``b=choice(x,y)``.

    A `UserError` says so if an interval is impossible, or a kind of sweep is unknown.
    """
    return [
        Parameter(each.key_or_group, each.get_key_element(), _distribution(each))
        for each in overrides
    ]


def write(value: Any) -> str:
    """A drawn value in Hydra's syntax."""
    return value if isinstance(value, str) else repr(value)


def to_point(parameters: Sequence[Parameter], values: dict[str, Any]) -> Point:
    """Drawn values as the point of a grid."""
    return {each.key: write(values[each.key]) for each in parameters}


def _distribution(override: Override) -> BaseDistribution:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return _interval(override.input_line or "", sweep)
    if isinstance(sweep, RangeSweep) or (isinstance(sweep, ChoiceSweep) and sweep.list):
        texts = list(override.sweep_string_iterator())
        if sweep.tags:
            raise UserError(f"'{override.input_line}': a tag belongs to an interval.")
        if isinstance(sweep, RangeSweep) and isinstance(sweep.start, int | float):
            return _range([float(text) for text in sorted(texts, key=float)])
        return CategoricalDistribution(list(dict.fromkeys(texts)))
    raise UserError(f"'{override.input_line}' cannot be searched: list the values, choice(a,b).")


def _interval(text: str, sweep: IntervalSweep) -> BaseDistribution:
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    unknown = sweep.tags - {"log"}
    log = "log" in sweep.tags
    if unknown:
        raise UserError(f"'{text}': the only tag is log, as in tag(log, interval(1e-4,1e-1)).")
    if not low < high:
        raise UserError(f"'{text}' is empty: its lower end {low:g} must lie below {high:g}.")
    if log and low <= 0:
        raise UserError(f"'{text}': a logarithmic interval starts above 0, not at {low:g}.")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(values: list[float]) -> BaseDistribution:
    if len(values) < 2:
        return CategoricalDistribution([f"{value:g}" for value in values])
    if all(value.is_integer() for value in values):
        step = int(min(right - left for left, right in pairwise(values)))
        return IntDistribution(int(values[0]), int(values[-1]), step=step)
    # A range of fractions: its listed values, because sums of steps are not quite the same numbers.
    return CategoricalDistribution([f"{value:.12g}" for value in values])
