"""The study's pictures: how restarts leave their start with and without noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from repro.records.series import read_series

if TYPE_CHECKING:
    from repro.records.study import Study

Curves = dict[str, list[tuple[np.ndarray, np.ndarray]]]
NOISE = "_noise"


def figures(study: Study) -> dict[str, Figure]:
    """Draws validation accuracy against steps, a panel for each pair of arms, a line a seed."""
    curves = _curves(study)
    pairs = [arm for arm in curves if f"{arm}{NOISE}" in curves]
    if not pairs:
        return {}
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(pairs) :]:
        axes.set_visible(False)
    for axes, arm in zip(panels.flat, pairs, strict=False):
        for name, colour, label in ((arm, "0.45", "no noise"), (arm + NOISE, "C1", "noise")):
            for steps, accuracy in curves[name]:
                axes.plot(steps, accuracy, color=colour, alpha=0.7, linewidth=1, label=label)
                label = "_"  # one entry of the legend for all seeds
        axes.set(title=arm, xlabel="step", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    panels[0][0].set(ylabel="validation accuracy")
    panels[0][0].legend(frameon=False)
    title = f"{study.paper.slug}, scale={study.scale}: mean over restarts, a line a seed"
    figure.suptitle(title, wrap=True)
    return {"escape": figure}


def _curves(study: Study) -> Curves:
    """Steps and mean validation accuracy of each run, by arm."""
    curves: Curves = {}
    for run in study.runs:
        rows = [row for row in read_series(run.folder / "metrics.csv") if "val/accuracy" in row]
        if rows:
            steps = np.array([row["step"] for row in rows])
            accuracy = np.array([row["val/accuracy"] for row in rows])
            curves.setdefault(run.record()["arm"], []).append((steps, accuracy))
    return curves
