"""The kinds of panels that a paper's YAML may declare; see `repro.report.figures`.

A kind is a class: its attributes are the keys of a declaration, ``collect`` finds the numbers in a
study's table, ``paint`` draws them. `repro.report.style` says how everything looks.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)
from typing_extensions import override

from repro.errors import did_you_mean
from repro.records.names import ARTIFACTS, is_number
from repro.records.table import Curve, Measured, Table
from repro.report import style
from repro.report.style import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

X = "{x}"  # stands for a swept value in the name of a metric or an arm
FRAME = 0.47  # half the edge of a frame in a strip, whose columns are 1 apart
METRIC = "{metric}"  # stands for the panel's metric in the metric of a line or row


@dataclass(frozen=True)
class Context:
    """What the figures of a study share."""

    table: Table
    arms: Sequence[str]  # that have runs, in the paper's order
    looks: Mapping[str, Look]

    def select(self, patterns: Iterable[str]) -> list[str]:
        """The arms that have runs and match, in the order of the patterns."""
        found = (arm for each in patterns for arm in fnmatch.filter(self.arms, each))
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Line:
    """A line of a panel; ``x``, ``y``, ``low`` and ``high`` have the same length."""

    look: Look
    x: np.ndarray  # numbers, or the names of what is swept
    y: np.ndarray  # over seeds
    low: np.ndarray
    high: np.ndarray
    curves: Sequence[Curve] = ()
    diverged: bool = False


@dataclass(frozen=True)
class Dots:
    """A row of a panel, or a place of a plane: every seed of an arm."""

    look: Look
    y: np.ndarray
    x: np.ndarray | None = None
    diverged: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel that has something to show."""

    kind: Panels
    metric: str
    axis: Axis
    title: str
    content: Any


# -- Parts of declarations -------------------------------------------------------------------------


class Declaration(BaseModel):
    """A part of what a paper declares: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _known_arm(pattern: str, info: ValidationInfo) -> str:
    context: Any = info.context  # every declaration is read with one
    arms = context["arms"]
    if not fnmatch.filter(arms, pattern.replace(X, "*")):
        raise ValueError(f"there is no arm '{pattern}'.{did_you_mean(pattern, arms)}")
    return pattern


def _named(value: Any) -> Any:
    """A list of names as a mapping to what they are called: nothing else."""
    if isinstance(value, list):
        value = dict.fromkeys(value, "")
    return {str(key): text for key, text in value.items()} if isinstance(value, dict) else value


Arm = Annotated[str, AfterValidator(_known_arm)]  # a name or a pattern
NamedArms = Annotated[dict[Arm, str], BeforeValidator(_named)]
Values = Annotated[dict[str, str], BeforeValidator(_named)]


class Axis(Declaration):
    """An axis; a text alone is its label.

    Attributes:
        label: what is shown, and its unit.
        log: whether the axis is logarithmic.
        limits: how far it reaches at most; null leaves an end open.
        scale: what values are multiplied by: 100 for per cent.
    """

    label: str = ""
    log: bool = False
    limits: tuple[float | None, float | None] = (None, None)
    scale: float = 1.0

    @property
    def kind(self) -> str:
        """What matplotlib calls it."""
        return "log" if self.log else "linear"

    @model_validator(mode="before")
    @classmethod
    def _label_alone(cls, raw: Any) -> Any:
        return {"label": raw} if isinstance(raw, str) else raw


class Along(Axis):
    """A horizontal axis that shows a metric.

    Attributes:
        metric: the metric; for curves ``step``, ``epoch`` or what is logged beside the others.
        total: whether a curve's metric is counted per step and is to be added up.
    """

    metric: str = "step"
    total: bool = False


class Source(Declaration):
    """Where the values of a line or row come from.

    Attributes:
        arm: an arm; for a line also a name with ``{x}``, or a mapping from arms to values of x.
        metric: a metric, by default the panel's (``{metric}``).
        minus: an arm whose value of the same seed is subtracted.
    """

    arm: Arm | dict[Arm, float]
    metric: str = METRIC
    minus: Arm | None = None

    def values(self, context: Context, metric: str, x: str = "") -> np.ndarray:
        """The value of every seed."""
        assert isinstance(self.arm, str)
        arm = self.arm.replace(X, x)
        name = self.metric.replace(METRIC, metric).replace(X, x)
        if self.minus is None:
            return context.table.values(arm, name)
        return context.table.differences(arm, self.minus, name)


class Chain(Declaration):
    """Marks of a scatter that a line joins from left to right.

    Attributes:
        arms: whose; the first one gives the line its look.
        x: the metric on the horizontal axis, by default the panel's.
        y: the metric on the vertical axis, by default the panel's.
    """

    arms: list[Arm] = Field(min_length=1)
    x: str | None = None
    y: str | None = None


# -- Kinds -----------------------------------------------------------------------------------------


class Panels(Declaration, ABC):
    """The panels of one kind: one for each metric and group that has numbers.

    Attributes:
        metrics: metric -> the axis that it is drawn on.
        arms: names or patterns of the arms to draw.
        groups: title -> arms, for a panel each; replaces ``arms``.
        title: stands over the panels where there are no groups.
    """

    says: ClassVar[str]  # the figure's title; {seeds}: how many there are
    measure: ClassVar[str] = "y"  # the axis of the metric
    needs_runs: ClassVar[bool] = False  # whether final metrics do not suffice
    metrics: dict[str, Axis] = Field(min_length=1)
    arms: list[Arm] = ["*"]
    groups: dict[str, list[Arm]] = {}
    title: str = ""

    def panels(self, context: Context) -> list[Panel]:
        """What there is to draw."""
        groups = self.groups or {self.title: self.arms}
        found = [
            Panel(
                self, metric, axis, title, self.collect(context, metric, axis, context.select(arms))
            )
            for metric, axis in self.metrics.items()
            for title, arms in groups.items()
        ]
        return [panel for panel in found if panel.content]

    @abstractmethod
    def collect(self, context: Context, metric: str, axis: Axis, arms: Sequence[str]) -> Any:
        """What a panel shows of a metric; empty if there is nothing."""

    @abstractmethod
    def paint(self, axes: Axes, panel: Panel) -> None:
        """Draws a panel."""

    def size(self, _panel: Panel, /) -> tuple[float, float]:
        """Width and height of a panel in inches."""
        return style.PANEL


class Curves(Panels):
    """A logged metric during training: the mean over seeds and the range between them.

    Attributes:
        x: the horizontal axis.
        seeds: whether each seed is drawn as a thin line instead of the range.
    """

    says: ClassVar[str] = "mean and range over {seeds}"
    needs_runs: ClassVar[bool] = True
    kind: Literal["curves"]
    x: Along = Along(label="step")
    seeds: bool = False

    def collect(self, context: Context, metric: str, axis: Axis, arms: Sequence[str]) -> list[Line]:
        """The arms' curves."""
        lines = []
        for arm in arms:
            found = context.table.curves(arm, metric, self.x.metric, self.x.total)
            curves = [replace(c, x=c.x * self.x.scale, y=c.y * axis.scale) for c in found]
            if curves:
                x, y, low, high = _over_seeds(curves)
                diverged = any(curve.diverged for curve in curves)
                kept = curves if self.seeds else ()
                lines.append(Line(context.looks[arm], x, y, low, high, kept, diverged))
        return lines

    def paint(self, axes: Axes, panel: Panel) -> None:
        """Lines with ranges or with the seeds behind them."""
        axes.set(xlabel=self.x.label, ylabel=panel.axis.label, xscale=self.x.kind)
        _paint_lines(axes, panel.content, panel.axis)
        _limit(self.x, "x", axes)


class Swept(Panels):
    """A final metric against something swept: the mean over seeds and the range between them.

    What is swept stands as ``{x}`` in the name of the metric (a line for each arm) or of an arm.

    Attributes:
        x: the horizontal axis.
        values: the swept values, or a mapping to what the axis calls them; by default all found.
        leave_out: values that are found but not wanted.
        also: value -> metric, for values whose metric has another name.
        lines: label -> line, instead of a line for each arm.
        minus: an arm whose value of the same seed is subtracted from the arms' lines.
        reference: an arm's value drawn as a horizontal line.
        level: a number drawn as a horizontal line.
        centre: ``median`` shows median and quartiles, for what has no mean.
    """

    says: ClassVar[str] = "mean and range over {seeds}"
    kind: Literal["swept"]
    x: Axis
    values: Values = {}
    leave_out: list[str] = []
    also: Values = {}
    lines: dict[str, Source] = {}
    minus: Arm | None = None
    reference: Source | None = None
    level: float | None = None
    centre: Literal["mean", "median"] = "mean"

    def collect(self, context: Context, metric: str, axis: Axis, arms: Sequence[str]) -> list[Line]:
        """The lines, each over the swept values that it has."""
        if self.lines:
            sources = [(look, self.lines[name]) for name, look in _line_looks(self.lines, context)]
        else:
            sources = [
                (context.looks[arm], Source.model_construct(arm=arm, minus=self.minus))
                for arm in arms
                if arm != self.minus
            ]
        lines = []
        for look, source in sources:
            found = self._values(context, source, metric)
            if found:
                lines.append(self._line(look, found, axis))
        if lines and self.reference is not None:
            level = self.reference.values(context, metric)
            if np.isfinite(level).any():
                look = context.looks[str(self.reference.arm)]
                lines.append(self._line(look, {"": level}, axis))
        return lines

    def _line(self, look: Look, values: Mapping[str, np.ndarray], axis: Axis) -> Line:
        seeds = [each[np.isfinite(each)] * axis.scale for each in values.values()]
        if self.centre == "median":
            low, y, high = np.array([np.quantile(each, (0.25, 0.5, 0.75)) for each in seeds]).T
        else:
            y = np.array([style.centre(each, axis.log) for each in seeds])
            low, high = (np.array([end(each) for each in seeds]) for end in (np.min, np.max))
        return Line(look, np.array(list(values)), y, low, high)

    def _values(self, context: Context, source: Source, metric: str) -> dict[str, np.ndarray]:
        """Swept value -> the metric of every seed."""
        if isinstance(source.arm, dict):
            each = {
                f"{x:g}": source.model_copy(update={"arm": arm}).values(context, metric)
                for arm, x in source.arm.items()
            }
        else:
            names = self.values or _swept_in(context, source, metric)
            each = {x: source.values(context, metric, x) for x in names}
            for x, name in self.also.items():
                other = source.model_copy(update={"metric": name})
                each[x] = other.values(context, metric) if each else np.array([])
        return {
            x: found
            for x, found in each.items()
            if np.isfinite(found).any() and x not in self.leave_out
        }

    def paint(self, axes: Axes, panel: Panel) -> None:
        """Lines with ranges; names that are no numbers stand beside each other, not joined."""
        levels = [line for line in panel.content if list(line.x) == [""]]
        lines = [line for line in panel.content if list(line.x) != [""]]
        found = {name for line in lines for name in line.x}
        names = [n for n in self.values if n in found] or sorted(found, key=_by_numbers)
        is_numeric = all(map(is_number, names))
        places = {name: float(name) if is_numeric else i for i, name in enumerate(names)}
        axes.set(xlabel=self.x.label, ylabel=panel.axis.label, xscale=self.x.kind)
        style.name_ticks(axes, list(places.values()), [self.values.get(n) or n for n in names])
        if self.level is not None:
            axes.axhline(self.level, color="0.4", lw=0.9, ls=":")
        for line in levels:
            axes.axhline(line.y[0], **line.look.line)
        shifts = np.zeros(len(lines)) if is_numeric else style.beside(len(lines))
        placed = [_placed(a, places, shift) for a, shift in zip(lines, shifts, strict=True)]
        _paint_lines(axes, placed, panel.axis, marks=True)


class DotRows(Panels):
    """A final metric by arm: a row for each, every seed as a dot, the mean and its interval.

    Attributes:
        rows: label -> where its values come from, instead of a row for each arm.
        level: a number drawn as a vertical line.
    """

    says: ClassVar[str] = "{seeds} as dots; bars: mean and its 95 % interval"
    measure: ClassVar[str] = "x"
    kind: Literal["dots"]
    rows: dict[str, Source] = {}
    level: float | None = None

    def collect(self, context: Context, metric: str, axis: Axis, arms: Sequence[str]) -> list[Dots]:
        """The rows."""
        if self.rows:
            rows = [(look, self.rows[name]) for name, look in _line_looks(self.rows, context)]
        else:
            rows = [
                (replace(context.looks[a], label=a), Source.model_construct(arm=a)) for a in arms
            ]
        dots = []
        for look, source in rows:
            values = source.values(context, metric) * axis.scale
            diverged = context.table.has_diverged(str(source.arm))
            if len(values) or diverged:
                dots.append(Dots(look, values, diverged=diverged))
        return dots if any(len(each.y) for each in dots) else []

    def paint(self, axes: Axes, panel: Panel) -> None:
        """Rows from top to bottom."""
        log = panel.axis.log
        for row, dots in enumerate(panel.content):
            place = np.full(len(dots.y), row)
            axes.plot(dots.y, place, **{**dots.look.dots, "label": "_", "alpha": 0.45, "ms": 4})
            low, high = style.interval(dots.y, log)
            axes.plot([low, high], [row, row], color=dots.look.colour, lw=1.3)
            mean = style.centre(dots.y, log)
            axes.plot([mean], [row], "|", color=dots.look.colour, ms=13, mew=dots.look.width + 0.6)
        if self.level is not None:
            axes.axvline(self.level, color="0.4", lw=0.9, ls=":")
        labels = [dots.look.label for dots in panel.content]
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set(xlabel=panel.axis.label, xscale=panel.axis.kind)
        _limit(panel.axis, "x", axes)
        for row, dots in enumerate(panel.content):
            if dots.diverged:
                at = axes.get_yaxis_transform()
                axes.text(1.0, row, " ×", transform=at, va="center", color=dots.look.colour)
        axes.grid(axis="y", visible=False)

    def size(self, panel: Panel) -> tuple[float, float]:
        """As high as there are rows."""
        return style.PANEL[0], 0.75 + style.ROW * len(panel.content)


class Scatter(Panels):
    """One final metric against another: a mark for each arm at the means, every seed as a dot.

    Attributes:
        x: the horizontal axis.
        y: the metric on the vertical axis, by default the panel's (``{metric}``).
        lines: label -> marks that a line joins, besides those of ``arms``.
        reference: an arm's value drawn as a horizontal line.
    """

    says: ClassVar[str] = "means over {seeds}, which are the small dots"
    kind: Literal["scatter"]
    x: Along
    y: str = METRIC
    lines: dict[str, Chain] = {}
    reference: Source | None = None

    def collect(
        self, context: Context, metric: str, axis: Axis, arms: Sequence[str]
    ) -> list[list[Dots]]:
        """The marks: those that a line joins, and each arm's alone."""
        firsts = {
            name: Source.model_construct(arm=chain.arms[0]) for name, chain in self.lines.items()
        }
        chains = [(look, self.lines[name]) for name, look in _line_looks(firsts, context)]
        chains += [(context.looks[arm], Chain.model_construct(arms=[arm])) for arm in arms]
        found = []
        for look, chain in chains:
            dots = []
            for arm in chain.arms:
                names = (chain.x or self.x.metric, (chain.y or self.y).replace(METRIC, metric))
                x, y = context.table.matrix(arm, names).T
                if len(x):
                    dots.append(Dots(look, y * axis.scale, x * self.x.scale))
            found.append(dots)
        if any(found) and self.reference is not None:
            level = self.reference.values(context, metric) * axis.scale
            found.append(
                [Dots(context.looks[str(self.reference.arm)], level)] if len(level) else []
            )
        return [dots for dots in found if dots]

    def paint(self, axes: Axes, panel: Panel) -> None:
        """Small dots for seeds, large ones for means."""
        axes.set(xlabel=self.x.label, xscale=self.x.kind)
        axes.set(ylabel=panel.axis.label, yscale=panel.axis.kind)
        for chain in panel.content:
            look = chain[0].look
            if chain[0].x is None:
                axes.axhline(style.centre(chain[0].y, panel.axis.log), **look.line)
                continue
            for dots in chain:
                axes.plot(dots.x, dots.y, **{**look.dots, "label": "_", "ms": 3, "alpha": 0.35})
            centres = [
                (style.centre(dots.x, self.x.log), style.centre(dots.y, panel.axis.log))
                for dots in chain
            ]
            x, y = zip(*sorted(centres), strict=True)
            line = look.line if len(chain) > 1 else look.dots
            axes.plot(x, y, **{**line, "marker": look.marker, "markersize": 4 + look.width})
        _limit(self.x, "x", axes)
        _limit(panel.axis, "y", axes)


class Heat(Panels):
    """Final metrics as a table of colours: arms from top to bottom, means over seeds.

    The metrics are the columns of one panel; one with ``{x}`` stands for a column for each value
    that is found.

    Attributes:
        label: what the numbers are.
        digits: how many of them after the point.
        leave_out: values of ``{x}`` that are not wanted.
    """

    says: ClassVar[str] = "means over {seeds}"
    kind: Literal["heat"]
    label: str = ""
    digits: int = 2
    leave_out: list[str] = []

    def panels(self, context: Context) -> list[Panel]:
        """One panel for each group."""
        first, axis = next(iter(self.metrics.items()))
        found = [
            Panel(self, first, axis, title, self.collect(context, "", axis, context.select(arms)))
            for title, arms in (self.groups or {self.title: self.arms}).items()
        ]
        return [panel for panel in found if panel.content]

    @override
    def collect(self, context: Context, metric: str, axis: Axis, arms: Sequence[str]) -> Any:
        """Names of rows and columns, the numbers, and which arms diverged."""
        columns = {}
        for name, each in self.metrics.items():
            found = {
                x for arm in arms for x in _swept_in(context, Source.model_construct(arm=arm), name)
            }
            for x in sorted(found - set(self.leave_out), key=_by_numbers):
                columns[name.replace(X, x)] = (each.label or X).replace(X, x), each.scale
        values = np.array(
            [
                [style.centre(context.table.values(arm, name), False) * scale
                 for name, (_, scale) in columns.items()]
                for arm in arms
            ]
        ).reshape(len(arms), len(columns))  # fmt: skip
        if not np.isfinite(values).any():
            return None
        diverged = [context.table.has_diverged(arm) for arm in arms]
        kept = [n for n, row in enumerate(values) if np.isfinite(row).any() or diverged[n]]
        labels = [label for label, _ in columns.values()]
        return [arms[n] for n in kept], labels, values[kept], [diverged[n] for n in kept]

    def paint(self, axes: Axes, panel: Panel) -> None:
        """Cells with their numbers; arms that diverged say so."""
        arms, labels, values, diverged = panel.content
        axes.imshow(values, cmap=style.HEAT, aspect="auto")
        low, high = np.nanmin(values), np.nanmax(values)
        for (row, column), value in np.ndenumerate(values):
            empty = "×" if diverged[row] else "–"
            text = f"{value:.{self.digits}f}" if np.isfinite(value) else empty
            colour = "white" if value > low + 0.6 * (high - low) else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, size=7.5)
        style.name_ticks(axes, range(len(labels)), labels, long=6 * len(labels))
        axes.set_yticks(range(len(arms)), arms)
        axes.set_xlabel(self.label)
        axes.grid(visible=False)

    def size(self, panel: Panel) -> tuple[float, float]:
        """As large as the table."""
        arms, labels, _, _ = panel.content
        return 1.7 + 0.5 * len(labels), 1.0 + style.ROW * len(arms)


class Pictures(Panels):
    """Arrays that runs keep as artifacts (``.npy``): one of the first seed of each arm.

    Attributes:
        metrics: file name or pattern -> label; of those that an arm has the first is shown.
    """

    says: ClassVar[str] = "of one seed"
    needs_runs: ClassVar[bool] = True
    kind: Literal["pictures"]

    def panels(self, context: Context) -> list[Panel]:
        """A panel for each arm."""
        axis = next(iter(self.metrics.values()))
        found = [
            Panel(self, "", axis, arm, self.collect(context, "", axis, [arm]))
            for arm in context.select(self.arms)
        ]
        return [panel for panel in found if panel.content]

    @override
    def collect(self, context: Context, metric: str, axis: Axis, arms: Sequence[str]) -> Any:
        """The first file of the first run that has one."""
        return [picture for _, picture in itertools.islice(_kept(context, arms, self.metrics), 1)]

    def paint(self, axes: Axes, panel: Panel) -> None:
        """A picture without axes."""
        axes.imshow(panel.content[0], cmap="gray", interpolation="nearest")
        axes.set(xticks=[], yticks=[], xlabel=panel.axis.label)
        axes.grid(visible=False)

    @override
    def size(self, panel: Panel) -> tuple[float, float]:
        """Small squares."""
        return 1.9, 2.0


class Strips(Panels):
    """Frames (T, H, W, C) that runs keep as an artifact (``.npy``): time goes from left to right.

    A row for each arm, of its first seed that has the file.

    Attributes:
        metrics: file name or pattern -> label of time.
        beside: final metric of the same run -> what the number below the arm's name is called.
    """

    says: ClassVar[str] = "of one seed"
    needs_runs: ClassVar[bool] = True
    kind: Literal["strips"]
    beside: Values = {}

    @override
    def collect(self, context: Context, metric: str, axis: Axis, arms: Sequence[str]) -> Any:
        """What stands beside each row, and its frames."""
        rows = [next(_kept(context, [arm], [metric]), None) for arm in arms]
        return [(self._label(run), frames) for run, frames in filter(None, rows)]

    def _label(self, run: Measured) -> str:
        shown = [name for name in self.beside if name in run.metrics]
        return "\n".join([run.arm, *(f"{self.beside[n]} {run.metrics[n]:.3g}" for n in shown)])

    def paint(self, axes: Axes, panel: Panel) -> None:
        """Frames as squares in a grid; shorter episodes end earlier."""
        for row, (_, frames) in enumerate(panel.content):
            for column, frame in enumerate(frames):
                square = (column - FRAME, column + FRAME, row + FRAME, row - FRAME)
                axes.imshow(frame, cmap="gray", interpolation="nearest", extent=square)
        rows, columns = self._grid(panel)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel=panel.axis.label)
        axes.set_yticks(range(rows), [label for label, _ in panel.content])
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)

    @override
    def size(self, panel: Panel) -> tuple[float, float]:
        """As large as the grid, and the names beside it."""
        rows, columns = self._grid(panel)
        return 1.2 + 0.62 * columns, 0.5 + 0.62 * rows

    @staticmethod
    def _grid(panel: Panel) -> tuple[int, int]:
        """Rows and columns."""
        return len(panel.content), max(len(frames) for _, frames in panel.content)


Kind = Annotated[
    Curves | Swept | DotRows | Scatter | Heat | Pictures | Strips, Field(discriminator="kind")
]


# -- Helpers ---------------------------------------------------------------------------------------


def _kept(
    context: Context, arms: Sequence[str], patterns: Iterable[str]
) -> Iterator[tuple[Measured, np.ndarray]]:
    """The runs of some arms with an array that they keep, by the first pattern that fits."""
    for run in context.table.runs:
        folder = run.folder / ARTIFACTS
        fitting = (file for each in patterns for file in sorted(folder.glob(each)))
        if run.arm in arms and (file := next(fitting, None)):
            yield run, np.load(file, allow_pickle=False)


def _over_seeds(curves: Sequence[Curve]) -> tuple[np.ndarray, ...]:
    """x, mean, lowest and highest, row by row; the last rows rest on the seeds that got there."""
    rows = max(len(curve.y) for curve in curves)
    x, y = np.full((2, len(curves), rows), np.nan)
    for seed, curve in enumerate(curves):
        x[seed, : len(curve.x)] = curve.x
        y[seed, : len(curve.y)] = np.where(np.isfinite(curve.y), curve.y, np.nan)
    has = np.isfinite(y).any(axis=0)
    x, y = x[:, has], y[:, has]
    return np.nanmean(x, 0), np.nanmean(y, 0), np.nanmin(y, 0), np.nanmax(y, 0)


def _placed(line: Line, places: Mapping[str, float], shift: float) -> Line:
    """A swept line from left to right, with a gap before each name that is no number."""
    gap = np.full(1, np.nan)
    parts: list[tuple[np.ndarray, ...]] = []
    for name in (name for name in places if name in line.x):
        at = list(line.x).index(name)
        if not is_number(name):
            parts.append((gap, gap, gap, gap))
        values = (line.y, line.low, line.high)
        parts.append((np.array([places[name] + shift]), *(each[at : at + 1] for each in values)))
    x, y, low, high = (np.concatenate(each) for each in zip(*parts, strict=True))
    return replace(line, x=x, y=y, low=low, high=high)


def _paint_lines(axes: Axes, lines: Sequence[Line], axis: Axis, marks: bool = False) -> None:
    """Lines with ranges on an axis that those gone astray do not stretch."""
    bands = [np.concatenate([line.low, line.high]) for line in lines]
    diverged = [line.diverged for line in lines]
    ends, astray = style.limits([line.y for line in lines], bands, diverged, axis.log)
    for line, is_astray in zip(lines, astray, strict=True):
        look = line.look
        marker = look.marker if marks or len(line.x) == 1 else ""
        axes.plot(line.x, line.y, marker=marker, markersize=3 + look.width / 2, **look.line)
        for curve in line.curves:
            thin = {**look.line, "linewidth": 0.6, "alpha": 0.4, "label": "_"}
            axes.plot(curve.x, curve.y, **thin)
        if not is_astray and not line.curves:
            band: dict[str, Any] = {"color": look.colour, "alpha": style.BAND, "lw": 0}
            axes.fill_between(line.x, line.low, line.high, zorder=look.level - 1, **band)
            around = np.concatenate([[np.nan], line.y, [np.nan]])
            alone = np.isnan(around[:-2]) & np.isnan(around[2:])  # a band shows nothing there
            ends_of = (line.x[alone], line.low[alone], line.high[alone])
            axes.vlines(*ends_of, color=look.colour, lw=1)
    axes.set_yscale(axis.kind)
    if ends is not None:
        axes.set_ylim(*ends)
    _limit(axis, "y", axes)
    for line in lines:
        style.mark_leaving(axes, line.x, line.y, line.look, line.diverged)


def _limit(axis: Axis, name: str, axes: Any) -> None:
    """Draws the ends of the ``x`` or ``y`` axis in to those that are declared."""
    ends = getattr(axes, f"get_{name}lim")()
    low, high = axis.limits
    inside = (
        ends[0] if low is None else max(ends[0], low),
        ends[1] if high is None else min(ends[1], high),
    )
    if inside[0] < inside[1]:
        getattr(axes, f"set_{name}lim")(*inside)


def _line_looks(lines: Mapping[str, Source], context: Context) -> list[tuple[str, Look]]:
    """A look for each named line: its arm's, with dashes of its own where lines share the arm.

    Where all lines are of one arm, its colour would tell nothing: each has its own.
    """
    arms = [_foremost(source, context) for source in lines.values()]
    are_of_one_arm = len(arms) > 1 and len(set(arms)) == 1
    found, drawn = [], dict[str, int]()
    for number, (label, arm) in enumerate(zip(lines, arms, strict=True)):
        if arm in context.looks and not are_of_one_arm:
            nth = drawn[arm] = drawn.get(arm, -1) + 1
            look = context.looks[arm]
            dash = style.DASHES[nth % len(style.DASHES)] if nth else look.dash
            look = replace(look, label=label, dash=dash, width=look.width - 0.4 * (nth > 0))
        else:
            look = style.other_look(number - 1, label) if number else style.own_look(0, label)
        found.append((label, look))
    return found


def _foremost(source: Source, context: Context) -> str:
    """The arm of a source that is drawn over the others."""
    arms = [source.arm] if isinstance(source.arm, str) else list(source.arm)
    return max(arms, key=lambda each: context.looks[each].level if each in context.looks else 0)


def _swept_in(context: Context, source: Source, metric: str) -> list[str]:
    """The values that stand for ``{x}`` in what the study has; one empty one if there is no x."""
    name = source.metric.replace(METRIC, metric)
    arm = str(source.arm)
    if X in arm:
        return _matches(arm, context.arms)
    return _matches(name, context.table.metrics_of(arm))


def _matches(pattern: str, names: Iterable[str]) -> list[str]:
    if X not in pattern:
        return [""] if pattern in names else []
    swept = re.compile(re.escape(pattern).replace(re.escape(X), "(?P<x>[^/]+)"))
    return list(dict.fromkeys(m["x"] for name in names if (m := swept.fullmatch(name))))


def _by_numbers(name: str) -> tuple[bool, list[float], str]:
    """Sorts by the numbers in a name, those that are nothing but a number first."""
    return not is_number(name), [float(n) for n in re.findall(r"\d+\.?\d*", name)], name
