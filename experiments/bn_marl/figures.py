"""The study's pictures: the way to the optimum, by exact gradients and by PPO."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repro.records.series import read_series

if TYPE_CHECKING:
    from repro.records.study import Study

Series = dict[str, list[tuple[np.ndarray, np.ndarray]]]
SIZES = (2, 3, 5)


def figures(study: Study) -> dict[str, Figure]:
    """Draws POA and NE gap of the tabular arms, and POA and density of the PPO arms."""
    drawn = {}
    tabular = {n: _curves(study, f"val/poa_n{n}") for n in SIZES}
    tabular = {n: curves for n, curves in tabular.items() if curves}
    if tabular:
        drawn["tabular"] = _grid(
            study,
            [
                [(f"POA, {n} agents", curves, False) for n, curves in tabular.items()],
                [
                    (f"median NE gap / J*, {n} agents", _curves(study, f"val/gap_n{n}"), True)
                    for n in tabular
                ],
            ],
            "gradient steps",
        )
    value = _curves(study, "val/poa", prefix="ppo") or _curves(study, "val/return", prefix="ppo")
    if value:
        name = "POA" if _curves(study, "val/poa", prefix="ppo") else "return of an episode"
        density = _curves(study, "val/open_ratio", prefix="ppo")
        panels = [(name, value, False), ("share of possible edges", density, False)]
        drawn["ppo"] = _grid(study, [panels], "rollouts")
    return drawn


def _grid(study: Study, rows: list[list[tuple[str, Series, bool]]], along: str) -> Figure:
    columns = len(rows[0])
    figure = Figure(figsize=(1.5 + 3.6 * columns, 0.8 + 3.0 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, panels in zip(grid, rows, strict=True):
        for axes, (title, curves, logarithmic) in zip(row, panels, strict=True):
            _panel(axes, curves)
            axes.set(title=title, xlabel=along, yscale="log" if logarithmic else "linear")
            axes.grid(alpha=0.3)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(f"{study.paper.slug}, scale={study.scale}: mean and range over seeds")
    return figure


def _panel(axes: Axes, curves: Series) -> None:
    colours = cycle(map(colormaps["tab10"], range(10)))
    for colour, (arm, runs) in zip(colours, curves.items(), strict=False):
        shortest = min(len(x) for x, _ in runs)
        x = runs[0][0][:shortest]
        y = np.stack([values[:shortest] for _, values in runs])
        axes.plot(x, y.mean(axis=0), color=colour, label=arm)
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.12, lw=0)


def _curves(study: Study, metric: str, prefix: str = "") -> Series:
    """Per arm, one curve of the metric over updates per seed."""
    curves: Series = {}
    for run in study.runs:
        arm = run.record()["arm"]
        rows = [row for row in read_series(run.folder / "metrics.csv") if metric in row]
        if arm.startswith(prefix) and rows:
            x = np.array([row["train/updates"] for row in rows])
            curves.setdefault(arm, []).append((x, np.array([row[metric] for row in rows])))
    return curves
