"""The study's pictures: how fast each schedule gets there, and how robust it ends."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from repro.records.series import read_series

if TYPE_CHECKING:
    from repro.records.study import Study

STATIC = (
    "constant_low", "piecewise_low", "sawtooth", "range_test", "one_cycle", "accelat",
    "constant_high", "cosine_high",
)  # fmt: skip
BATCH = ("pgd_at_low", "pgd_at", "pgd_at_accelat", "fgsm_at", "fast_at", "free_at")
MEASURES = ("adversarial", "", "fgsm", "pgd", "margin", "deepfool", "l2", "worst")
Series = dict[str, list[list[dict[str, float]]]]


def figures(study: Study) -> dict[str, Figure]:
    """Draws accuracy and learning rate by epoch, and the final accuracies by attack."""
    series: Series = {}
    ends: dict[str, list[dict[str, float]]] = {}
    for run in study.runs:
        rows = read_series(run.folder / "metrics.csv")
        epochs = [row for row in rows if {"val/adversarial_accuracy", "lr"} <= row.keys()]
        arm = run.record()["arm"]
        if epochs:
            series.setdefault(arm, []).append(epochs)
        ends.setdefault(arm, []).append(run.summary())
    drawn = {"schedules": _schedules(series), "robustness": _robustness(ends)}
    for figure in drawn.values():
        figure.suptitle(f"{study.paper.slug}, scale={study.scale}: mean over seeds")
    return drawn


def _schedules(series: Series) -> Figure:
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    titles = ("examples made once, before training", "every batch attacked anew")
    for column, arms, title in zip(axes.T, (STATIC, BATCH), titles, strict=True):
        for arm in (arm for arm in arms if arm in series):
            width = 2.5 if "accelat" in arm else 1.2
            dashes = "--" if arm.endswith(("high", "_at")) else "-"
            for panel, name in zip(column, ("val/adversarial_accuracy", "lr"), strict=True):
                values = _mean(series[arm], name)
                epochs = np.arange(1, len(values) + 1)
                panel.plot(epochs, values, dashes, lw=width, label=arm)
        column[0].set(title=title, ylabel="adversarial accuracy (control)", ylim=(0, 1))
        column[1].set(xlabel="epoch", ylabel="learning rate", yscale="log")
        column[1].set_ylim(1e-5, 10)
        for panel in column:
            panel.grid(alpha=0.3)
        if column[0].lines:
            column[0].legend(fontsize=8, ncols=2)
    return figure


def _robustness(ends: dict[str, list[dict[str, float]]]) -> Figure:
    arms = [arm for arm in (*STATIC, *BATCH) if arm in ends]
    table = np.full((len(arms), len(MEASURES)), np.nan)
    for row, arm in enumerate(arms):
        for column, measure in enumerate(MEASURES):
            name = f"test/{measure}_accuracy" if measure else "test/accuracy"
            values = [end[name] for end in ends[arm] if name in end]
            if values:
                table[row, column] = fmean(values)
    figure = Figure(figsize=(9, 0.4 * len(arms) + 2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            shade = "white" if value < 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=shade)
    names = ["static set", "clean", *MEASURES[2:]]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_title("accuracy on the test split: the static set, and fresh attacks")
    figure.colorbar(image)
    return figure


def _mean(runs: Sequence[Sequence[dict[str, float]]], name: str) -> np.ndarray:
    """The mean over seeds, as far as all of them got."""
    shortest = min(map(len, runs))
    return np.mean([[row[name] for row in run[:shortest]] for run in runs], axis=0)
