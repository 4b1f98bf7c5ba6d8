"""The study's pictures: what is left when units are switched off, and error against width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from repro.records.study import Study

Runs = dict[str, list[dict[str, float]]]
SHARES = (5, 12.5, 25, 50, 75, 100)
WIDTHS = (25, 50, 100, 200)
# What is drawn: arm, order in which units are kept, label, line style.
CURVES = (
    ("gbnn", "first", "boosting, last units off", "-"),
    ("gbnn", "random", "boosting, random units off", ":"),
    ("nn_adam", "first", "Adam, last units off", "--"),
    ("nn_adam", "norm", "Adam, smallest norms off", "-."),
    ("nn_adam", "refit", "Adam, smallest norms off, output refitted", ":"),
    ("nn_lbfgs", "first", "L-BFGS, last units off", "--"),
    ("nn_lbfgs", "norm", "L-BFGS, smallest norms off", "-."),
    ("nn_lbfgs", "refit", "L-BFGS, smallest norms off, output refitted", ":"),
)
COLOURS = {"gbnn": "C0", "nn_adam": "C1", "nn_lbfgs": "C2"}


def figures(study: Study) -> dict[str, Figure]:
    """Draws scores against active units, and test errors against the width."""
    runs: Runs = {}
    for run in study.runs:
        runs.setdefault(run.record()["arm"], []).append(run.summary())
    drawn = {"truncation": _truncation(runs), "widths": _widths(runs)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _truncation(runs: Runs) -> Figure | None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    found = False
    for axes, measure in zip(panels, ("accuracy", "rmse"), strict=True):
        for arm, order, label, style in CURVES:
            names = [f"test/{order}/{share:g}/{measure}" for share in SHARES[:-1]]
            values = _stack(runs.get(arm, []), [*names, f"test/{measure}"])
            if values is None:
                continue
            found = True
            _line(axes, SHARES, values, label=label, linestyle=style, color=COLOURS[arm])
        axes.set(xlabel="units that are on (%)", ylabel=f"test {measure}", xscale="log")
        axes.set_xticks(SHARES, [f"{share:g}" for share in SHARES], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    if not found:
        return None
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=len)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle("Switching units off: mean and range over seeds")
    return figure


def _widths(runs: Runs) -> Figure | None:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    found = False
    for axes, measure in zip(panels, ("accuracy", "rmse"), strict=True):
        for arm, label in (("gbnn", "boosting"), ("nn_lbfgs", "L-BFGS, tuned for each width")):
            for widths in (WIDTHS, WIDTHS[:-1]):
                names = [f"test/width/{width}/{measure}" for width in widths]
                values = _stack(runs.get(arm, []), names)
                if values is not None:
                    found = True
                    _line(axes, widths, values, label=label, color=COLOURS[arm])
                    break
        axes.set(xlabel="hidden units", ylabel=f"test {measure}", xscale="log")
        shown = axes.lines[0].get_xdata() if axes.lines else WIDTHS
        axes.set_xticks(shown, [str(width) for width in shown], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=len)
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle("Test score against the width: mean and range over seeds")
    return figure if found else None


def _stack(runs: Sequence[dict[str, float]], names: Sequence[str]) -> np.ndarray | None:
    """The named metrics of all runs that have them, (runs, names); None if there is no such run."""
    rows = [[run[name] for name in names] for run in runs if all(name in run for name in names)]
    return np.array(rows) if rows else None


def _line(axes: Any, x: Sequence[float], values: np.ndarray, **style: Any) -> None:
    (line,) = axes.plot(x, values.mean(0), **style)
    axes.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.1)
