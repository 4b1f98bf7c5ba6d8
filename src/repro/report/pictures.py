"""Learning curves as small SVG pictures, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repro.report.curves import Curve

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24  # margins around the plotting area
TICKS = 5  # about so many on an axis


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A curve as SVG path data."""

    name: str
    mean: str
    band: str  # empty where there is but one seed


@dataclass(frozen=True)
class Picture:
    """What the template needs to draw one metric."""

    metric: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    is_log: bool


def draw(metric: str, curves: Sequence[Curve], log_above: float) -> Picture:
    """Lays out the curves of one metric."""
    low = min(value for curve in curves for value in curve.low)
    high = max(value for curve in curves for value in curve.high)
    first = min(curve.steps[0] for curve in curves)
    last = max(curve.steps[-1] for curve in curves)
    is_log = low > 0 and high / low >= log_above
    to_axis: Callable[[float], float] = math.log10 if is_log else float
    x = _scale(first, last, LEFT, WIDTH - RIGHT)
    vertical = _scale(to_axis(low), to_axis(high), HEIGHT - BOTTOM, TOP)

    def y(value: float) -> float:
        return vertical(to_axis(value))

    y_values = _decades(low, high) if is_log else nice_values(low, high)
    return Picture(
        metric=metric,
        lines=[Line(c.name, _mean(c, x, y), _band(c, x, y)) for c in curves],
        x_ticks=[Tick(x(value), _label(value)) for value in nice_values(first, last)],
        y_ticks=[Tick(y(value), _label(value)) for value in y_values],
        is_log=is_log,
    )


def nice_values(low: float, high: float) -> list[float]:
    """Round numbers between two ends, about `TICKS` of them.

    Examples:
        >>> nice_values(0, 390)
        [0.0, 100.0, 200.0, 300.0]
        >>> nice_values(0.5, 0.5)
        [0.5]
    """
    if high <= low:
        return [low]
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    start = math.ceil(low / step - 1e-9)
    end = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(start, end + 1)]


def _decades(low: float, high: float) -> list[float]:
    exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    stride = max(1, math.ceil(len(exponents) / (TICKS + 1)))
    return [10.0**exponent for exponent in exponents[::stride]]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    if high == low:  # a constant lies in the middle
        return lambda _value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _mean(curve: Curve, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    if len(curve.steps) == 1:  # a dot: a line of no length with round ends
        return f"M{x(curve.steps[0]):.1f} {y(curve.mean[0]):.1f}h0"
    return "M" + _points(curve.steps, curve.mean, x, y)


def _band(curve: Curve, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    if curve.low == curve.high:
        return ""
    there = _points(curve.steps, curve.high, x, y)
    back = _points(curve.steps[::-1], curve.low[::-1], x, y)
    return f"M{there}L{back}Z"


def _points(
    steps: Sequence[int],
    values: Sequence[float],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> str:
    return "L".join(
        f"{x(step):.1f} {y(value):.1f}" for step, value in zip(steps, values, strict=True)
    )


def _label(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e4:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        if exponent:
            return f"{mantissa}e{int(exponent)}"
        return f"{value / 1000:g}k" if abs(value) >= 1e4 else mantissa
    return f"{value:g}"
