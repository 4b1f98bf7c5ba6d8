"""Learning curves as small SVG pictures, coloured by the page's style sheet."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repro.report.curves import Curve

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 36  # margins around the plotting area
TICKS = 5  # about so many on an axis
STRETCH = 2.5  # how many times longer an axis has to be before points are left outside
CROSS = 4  # half the width of a cross
TAIL = 50  # one of so many points may lie outside on either side


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
    lost: str  # crosses where seeds diverged; may be empty


@dataclass(frozen=True)
class Picture:
    """What the template needs to draw one metric.

    Attributes:
        metric: what is drawn.
        lines: one an arm.
        x_ticks: marks on the horizontal axis.
        y_ticks: on the vertical one.
        x_ends: the steps at its left and right end.
        y_ends: the values at its bottom and top.
        is_log: whether the vertical axis is logarithmic.
        is_cut: whether some points lie outside.
    """

    metric: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_ends: tuple[int, int]
    y_ends: tuple[float, float]
    is_log: bool
    is_cut: bool


def draw(metric: str, curves: Sequence[Curve], log_above: float) -> Picture:
    """Lays out the curves of one metric; arms that diverged have no say in how long its axis is."""
    shown = [curve for curve in curves if not curve.is_lost] or list(curves)
    lowest = min(value for curve in shown for value in curve.low)
    highest = max(value for curve in shown for value in curve.high)
    first = min(curve.steps[0] for curve in curves)
    last = max(curve.steps[-1] for curve in curves)
    is_log = lowest > 0 and highest / lowest >= log_above
    to_axis: Callable[[float], float] = math.log10 if is_log else float
    means = [to_axis(value) for curve in shown for value in curve.mean]
    bottom, top = _core(means, to_axis(lowest), to_axis(highest))
    x = _scale(first, last, LEFT, WIDTH - RIGHT)
    vertical = _scale(bottom, top, HEIGHT - BOTTOM, TOP)

    def y(value: float) -> float:
        if is_log and value <= 0:  # of an arm that diverged
            return HEIGHT
        return min(max(vertical(to_axis(value)), 0.0), HEIGHT)

    low, high = (10**bottom, 10**top) if is_log else (bottom, top)
    y_values = _decades(low, high) if is_log else nice_values(low, high)
    return Picture(
        metric=metric,
        lines=[Line(c.name, _mean(c, x, y), _band(c, x, y), _lost(c, x, y)) for c in curves],
        x_ticks=[Tick(x(value), _label(value)) for value in nice_values(first, last)],
        y_ticks=[Tick(y(value), _label(value)) for value in y_values],
        x_ends=(first, last),
        y_ends=(low, high),
        is_log=is_log,
        is_cut=(bottom, top) != (to_axis(lowest), to_axis(highest)),
    )


def _core(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """The ends of an axis: those of all values, unless a few stretch it.

    Args:
        values: what is drawn, on the axis.
        low: the lowest of them and of their bands.
        high: the highest.
    """
    if len(values) < 2:
        return low, high
    cuts = statistics.quantiles(values, n=TAIL, method="inclusive")
    spread = cuts[-1] - cuts[0]
    if spread <= 0 or high - low <= STRETCH * spread:
        return low, high
    return max(low, cuts[0] - 0.1 * spread), min(high, cuts[-1] + 0.1 * spread)


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


def _lost(curve: Curve, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """A cross within the picture for each seed that diverged."""
    marks = []
    for step, value in curve.lost:
        height = min(max(y(value), TOP + CROSS), HEIGHT - BOTTOM - CROSS)
        start = f"M{x(step) - CROSS:.1f} {height - CROSS:.1f}"
        marks.append(f"{start}l{2 * CROSS} {2 * CROSS}m0 {-2 * CROSS}l{-2 * CROSS} {2 * CROSS}")
    return "".join(marks)


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
