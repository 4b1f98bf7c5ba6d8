"""How every figure looks: the paper's arms dark and thick, baselines grey, the rest thin.

Matplotlib is imported where something is drawn, so that declarations are checked in no time.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PANEL = (3.7, 2.9)  # inches of one panel
COLUMNS = 3  # of panels beside each other, unless a figure says otherwise
HEAT = "YlGnBu"
ROW = 0.26  # inches of one row of a panel whose axis holds names
LETTER = 0.07  # inches of a letter of titles and legends
WIDE, HIGH = 46, 34  # letters of a label along the axes of a panel
BAND = 0.15  # how opaque the range over seeds is
SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
OWN = ("#08306b", "#a50f15", "#00592d", "#4a1486", "#7f3b08", "#01665e")
OTHERS = (
    "#56a0d3", "#f08a24", "#3fa66a", "#c46fb0", "#a9962b", "#e0695d",
    "#35a9a3", "#8f7fd0", "#b0703c", "#7fa83a",
)  # fmt: skip
GREYS = ("0.25", "0.5", "0.68")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^v<>PX*"
STRETCH = 2.5  # how many times longer an axis has to be before lines are left outside
EDGE = 0.04  # of an axis that is left free beyond the data


@dataclass(frozen=True)
class Look:
    """How an arm, or a line of a figure, is drawn."""

    label: str
    colour: str
    width: float = 1.1
    dash: Any = "-"
    marker: str = "o"
    level: int = 2  # what is drawn over what

    @property
    def line(self) -> dict[str, Any]:
        """Arguments for `Axes.plot` of a line."""
        return {
            "color": self.colour,
            "linewidth": self.width,
            "linestyle": self.dash,
            "label": self.label,
            "zorder": self.level,
        }

    @property
    def dots(self) -> dict[str, Any]:
        """Arguments for `Axes.plot` of marks without a line."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": "none",
            "label": self.label,
            "zorder": self.level,
        }


def settings() -> AbstractContextManager[None]:
    """A context in which figures get the sizes and the grid of all figures."""
    import matplotlib

    return matplotlib.rc_context(SETTINGS)  # type: ignore[arg-type]


def looks(
    arms: Sequence[str], own: Mapping[str, str], baselines: Mapping[str, str]
) -> dict[str, Look]:
    """A look for each arm: the same in all figures of a paper.

    Args:
        arms: all arms of the paper, in its order.
        own: patterns (``dgc``, ``*_noise``) of the paper's own arms. All arms that a pattern
            matches first look alike, and are called as the pattern says, unless that is empty.
        baselines: the same of the arms that the paper compares with.
    """
    found: dict[str, Look] = {}
    grey = list(itertools.islice(itertools.product(DASHES, GREYS), len(baselines)))
    for number, (pattern, label) in enumerate(own.items()):
        for arm in _matching(arms, pattern, found):
            found[arm] = own_look(number, label or arm)
    for number, (pattern, label) in enumerate(baselines.items()):
        for arm in _matching(arms, pattern, found):
            dash, colour = grey[number % len(grey)]
            marker = MARKERS[(number + 1) % len(MARKERS)]
            found[arm] = Look(label or arm, colour, 1.5, dash, marker)
    others = [arm for arm in arms if arm not in found]
    return found | {arm: other_look(number, arm) for number, arm in enumerate(others)}


def own_look(number: int, label: str) -> Look:
    """The look of the paper's own arm of that number."""
    dash = DASHES[number // len(OWN) % len(DASHES)]
    return Look(label, OWN[number % len(OWN)], 2.5, dash, MARKERS[number % len(MARKERS)], 4)


def other_look(number: int, label: str) -> Look:
    """The look of an arm that is neither the paper's own nor a baseline, or of a line."""
    dash = DASHES[number // len(OTHERS) % len(DASHES)]
    marker = MARKERS[(number + number // len(OTHERS)) % len(MARKERS)]  # other pairs than before
    return Look(label, OTHERS[number % len(OTHERS)], 1.2, dash, marker, 3)


def _matching(arms: Iterable[str], pattern: str, taken: Collection[str]) -> list[str]:
    return [arm for arm in fnmatch.filter(arms, pattern) if arm not in taken]


def grid(sizes: Sequence[tuple[float, float]], columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each of some sizes (width and height in inches), row by row."""
    from matplotlib.figure import Figure

    columns = min(columns, len(sizes))
    rows = math.ceil(len(sizes) / columns)
    widths = [max(width for width, _ in sizes[place::columns]) for place in range(columns)]
    heights = [
        max(height for _, height in sizes[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    figure = Figure(figsize=(sum(widths) + 0.6, sum(heights) + 0.4), layout="constrained")
    ratios = {"width_ratios": widths, "height_ratios": heights}
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios)
    for axes in panels.flat[len(sizes) :]:
        axes.remove()
    return figure, list(panels.flat[: len(sizes)])


def share(panels: Sequence[tuple[Axes, str]], axis: str) -> None:
    """Gives panels of the same name the same ends of their ``x`` or ``y`` axes."""
    for name in {name for _, name in panels}:
        same = [axes for axes, each in panels if each == name]
        ends = [getattr(axes, f"get_{axis}lim")() for axes in same]
        for axes in same:
            low, high = min(low for low, _ in ends), max(high for _, high in ends)
            getattr(axes, f"set_{axis}lim")(low, high)


def finish(figure: Figure, title: str) -> None:
    """A title at the left, and one legend beside all panels with each label once."""
    figure.suptitle(title, x=0.01, ha="left")
    for axes in figure.axes:
        axes.set_title(textwrap.fill(axes.get_title(), WIDE))
        axes.set_xlabel(textwrap.fill(axes.get_xlabel(), WIDE))
        axes.set_ylabel(textwrap.fill(axes.get_ylabel(), HIGH))
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                _plain_ticks(axis)
    width, height = figure.get_size_inches()
    width = max(width, LETTER * len(title) + 0.4)
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        width += LETTER * max(map(len, handles)) + 0.6
        height = max(height, 0.18 * len(handles) + 0.3)
        figure.legend(handles.values(), handles, loc="outside right upper")
    figure.set_size_inches(width, height)


def centre(values: np.ndarray, log: bool) -> float:
    """The mean over seeds; on a logarithmic axis the geometric mean."""
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan
    if log and (values > 0).all():
        return float(np.exp(np.log(values).mean()))
    return float(values.mean())


def interval(values: np.ndarray, log: bool) -> tuple[float, float]:
    """The 95 % t interval of the mean; on a logarithmic axis that of the geometric mean."""
    from scipy.stats import t

    values = values[np.isfinite(values)]
    if len(values) < 2:
        return (math.nan, math.nan)
    is_log = log and bool((values > 0).all())
    values = np.log(values) if is_log else values
    reach = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    low, high = values.mean() - reach, values.mean() + reach
    return (math.exp(low), math.exp(high)) if is_log else (float(low), float(high))


def limits(
    lines: Sequence[np.ndarray], bands: Sequence[np.ndarray], astray: Sequence[bool], log: bool
) -> tuple[tuple[float, float] | None, list[bool]]:
    """Ends of an axis that lines gone astray and a huge range over seeds do not stretch.

    Args:
        lines: what lies on the axis, line by line.
        bands: the ends of the range over seeds of each line.
        astray: which lines have diverged.
        log: whether the axis is logarithmic.

    Returns:
        The ends, None where they are best left to matplotlib; and which lines count as astray:
        also those that end far from where the others end, if that stretches the axis much.
    """
    placed = [_on_axis(line, log) for line in lines]
    ends = np.array([line[-1] if len(line) else np.nan for line in placed])
    out = np.array(astray, dtype=bool)
    if np.isfinite(ends).any():
        far = np.abs(ends - np.nanmedian(ends))
        outlying = out | (far > max(10 * np.nanmedian(far), 1e-9))
        if _spread(placed, outlying) * STRETCH < _spread(placed, np.zeros_like(out)):
            out = outlying
    points = _points(placed, out)
    is_wide = _spread([_on_axis(band, log) for band in bands], out) > 10 * _spread(placed, out)
    if not (out.any() or is_wide) or len(points) < 2:
        return None, out.tolist()
    free = EDGE * float(np.ptp(points)) or 0.05
    low, high = float(points.min()) - free, float(points.max()) + free
    return ((10**low, 10**high) if log else (low, high)), out.tolist()


def _points(lines: Sequence[np.ndarray], out: np.ndarray) -> np.ndarray:
    kept = [line for line, is_out in zip(lines, out, strict=True) if not is_out]
    return np.concatenate(kept) if kept else np.array([])


def _spread(lines: Sequence[np.ndarray], out: np.ndarray) -> float:
    points = _points(lines, out)
    return float(np.ptp(points)) if len(points) else 0.0


def mark_leaving(axes: Axes, x: np.ndarray, y: np.ndarray, look: Look, diverged: bool) -> None:
    """A cross where an arm diverged, an arrow where it leaves the panel."""
    low, high = axes.get_ylim()
    is_in = (x >= axes.get_xlim()[0]) & (x <= axes.get_xlim()[1]) & np.isfinite(y)
    x, y = x[is_in], y[is_in]
    if not len(x):
        return
    is_outside = (y < low) | (y > high)
    outside, inside = np.flatnonzero(is_outside), np.flatnonzero(~is_outside)
    if diverged:  # where it leaves for good: it may have come from outside as well
        place = min(int(inside[-1]) + 1 if len(inside) else 0, len(y) - 1)
    elif len(outside):
        place = int(outside[0])
    else:
        return
    marker = "x" if diverged else ("^" if y[place] > high else "v")
    at = min(max(y[place], low), high)
    axes.plot(x[place], at, marker, color=look.colour, ms=6, mew=1.8, clip_on=False, zorder=6)


def beside(count: int) -> np.ndarray:
    """Shifts that put so many marks beside each other at a place of an axis with names."""
    return np.linspace(-0.2, 0.2, count) if count > 1 else np.zeros(1)


def name_ticks(axes: Axes, places: Sequence[float], labels: Sequence[str], long: int = 24) -> None:
    """Ticks of the horizontal axis at some places only; labels that take room stand aslant."""
    is_long = sum(map(len, labels)) > long
    axes.set_xticks(
        places, labels, rotation=40 if is_long else 0, ha="right" if is_long else "center"
    )
    axes.set_xticks([], minor=True)


def _plain_ticks(axis: Axis) -> None:
    """Numbers on a logarithmic axis: plain ones, or powers of ten where plain ones were long.

    Minor ones stand only where there are hardly any others.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    if isinstance(axis.get_major_locator(), FixedLocator):  # has ticks of its own
        return
    low, high = axis.get_view_interval()
    label = _plain if low > 1e-4 and high < 1e5 else _power
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    decades = math.log10(high / low) if low > 0 else 9.0
    if decades < 0.5:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        return
    digits = "2346" if decades <= 1 else "25" if decades <= 2 else ""
    axis.set_minor_formatter(
        FuncFormatter(lambda value, _: label(value) if f"{value:e}"[0] in digits else "")
    )


def _plain(value: float) -> str:
    return f"{value:g}"


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"${'' if mantissa == '1' else mantissa + ' · '}10^{{{int(exponent)}}}$"


def _on_axis(line: np.ndarray, log: bool) -> np.ndarray:
    line = line[np.isfinite(line)]
    return np.log10(line[line > 0]) if log else line
