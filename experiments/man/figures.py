"""The study's pictures: accuracy arm by arm and along the number of blocks, and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from repro.records.study import Study

Values = dict[str, list[float]]  # arm -> one number per seed

FAMILIES = {
    "end to end": ["bp"],
    "DGL": ["dgl", "dgl_ema", "dgl_frozen", "dgl_bias", "dgl_man"],
    "InfoPro": ["infopro", "infopro_man"],
    "PredSim": ["predsim", "predsim_man"],
}


def figures(study: Study) -> dict[str, Figure]:
    """Draws test accuracy by arm and by number of blocks, and the peak memory of a step."""
    accuracy, blocks = _values(study, "test/accuracy"), _values(study, "local/blocks")
    drawn = {}
    if accuracy:
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_arms(left, accuracy)
        _draw_blocks(right, accuracy, blocks)
        figure.suptitle(
            f"{study.paper.slug}, scale={study.scale}: one dot a seed, bars at the mean"
        )
        drawn["accuracy"] = figure
    peak, kept = _values(study, "memory/peak_mb"), _values(study, "memory/kept_mb")
    if peak:
        drawn["memory"] = _draw_memory(peak, kept)
    return drawn


def _draw_arms(axes: Axes, accuracy: Values) -> None:
    """A row an arm, family by family."""
    rows = [arm for family in FAMILIES.values() for arm in family if arm in accuracy]
    for row, arm in enumerate(rows):
        colour = f"C{next(i for i, family in enumerate(FAMILIES.values()) if arm in family)}"
        values = 100 * np.array(accuracy[arm])
        axes.plot(values, np.full(len(values), row), "o", color=colour, alpha=0.6)
        axes.plot(values.mean(), row, "|", color=colour, markersize=18, markeredgewidth=2.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy (%)", title="With and without the momentum auxiliary network")
    axes.grid(axis="x", alpha=0.3)


def _draw_blocks(axes: Axes, accuracy: Values, blocks: Values) -> None:
    """Accuracy of plain local learning against the number of blocks; one block is end to end."""
    arms = [arm for arm in ("bp", "dgl_k2", "dgl_k4", "dgl") if arm in accuracy]
    points = [
        (blocks[arm][0] if arm in blocks else 1, 100 * np.array(accuracy[arm])) for arm in arms
    ]
    for count, values in points:
        axes.plot(np.full(len(values), count), values, "o", color="C1", alpha=0.6)
    axes.plot(
        [count for count, _ in points], [v.mean() for _, v in points], color="C1", label="DGL"
    )
    if "dgl_man" in accuracy:
        values = 100 * np.array(accuracy["dgl_man"])
        axes.plot(
            np.full(len(values), blocks["dgl_man"][0]), values, "s", color="C4", label="+ MAN"
        )
    axes.set(xlabel="blocks", ylabel="test accuracy (%)", title="More blocks, less accuracy")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)


def _draw_memory(peak: Values, kept: Values) -> Figure:
    """What a step takes at its peak, and how much of that is there all the time."""
    arms = [arm for arm in peak if arm.startswith("memory_")] or list(peak)
    figure = Figure(figsize=(7, 0.5 * len(arms) + 1.6), layout="constrained")
    axes = figure.subplots()
    steady = np.array([np.mean(kept[arm]) for arm in arms])
    highest = np.array([np.mean(peak[arm]) for arm in arms])
    axes.barh(arms, steady, color="C7", label="parameters, optimizer, batch")
    axes.barh(arms, highest - steady, left=steady, color="C0", label="activations, gradients")
    axes.invert_yaxis()
    axes.set(xlabel="MB at the peak of a training step", title="Measured memory")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _values(study: Study, metric: str) -> Values:
    """One metric of all finished runs, by arm."""
    values: Values = {}
    for run in study.runs:
        found = run.summary().get(metric)
        if found is not None:
            values.setdefault(run.record()["arm"], []).append(found)
    return values
