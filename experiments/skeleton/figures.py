"""The study's pictures: skeletons beside each other, Betti errors, and what applications gain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from repro.records.study import Study

Runs = dict[str, list[dict[str, float]]]
SHOWN = ("horse", "retina", "digits")
PASSES = (1, 5, 20)
BETAS = ("0.05", "0.33", "1")


def figures(study: Study) -> dict[str, Figure]:
    """Draws skeletons of bundled pictures, errors of all arms, and the two applications."""
    runs: Runs = {}
    for run in study.runs:
        runs.setdefault(run.record()["arm"], []).append(run.summary())
    drawn = {"topology": _topology(runs), "soft": _soft(runs), "applications": _applications(runs)}
    if study.scale == "mini":
        drawn["skeletons"] = _skeletons()
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _topology(runs: Runs) -> Figure | None:
    """Mean Betti error against time, arm by arm."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    found = False
    for axes, kind in zip(figure.subplots(1, 2), ("2d", "3d"), strict=True):
        for arm, summaries in runs.items():
            points = _stack(summaries, [f"time/{kind}_ms", f"test/{kind}/betti_error"])
            if points is None:
                continue
            found = True
            axes.plot(*points.T, "o", label=arm, alpha=0.7)
        axes.set(xscale="log", xlabel="milliseconds a shape", ylabel="mean Betti error")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=-0.2)
        axes.set_title({"2d": "2-D", "3d": "3-D"}[kind])
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    figure.suptitle("Change of topology against cost, one point a seed")
    return figure if found else None


def _soft(runs: Runs) -> Figure | None:
    """Agreement of averaged random skeletons with the true one."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for beta in BETAS:
        names = [f"test/soft/beta_{beta}/dice_{count}" for count in PASSES]
        values = _stack(runs.get("boolean", []), names)
        if values is not None:
            (line,) = axes.plot(PASSES, values.mean(0), "o-", label=f"beta = {beta}")
            axes.fill_between(
                PASSES, values.min(0), values.max(0), color=line.get_color(), alpha=0.15
            )
    if not axes.lines:
        return None
    axes.set(xlabel="random skeletons averaged", ylabel="Dice with the true skeleton", xscale="log")
    axes.set_xticks(PASSES, [str(count) for count in PASSES])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.set_title("Skeletons of soft masks")
    return figure


def _applications(runs: Runs) -> Figure | None:
    """Per seed: what the skeletonisation in the loss makes of segmentation and registration."""
    panels = [
        ("seg_", "test/cldice", "clDice of segmentation"),
        ("seg_", "test/betti_0_error", "Betti-0 error of segmentation"),
        ("reg_", "test/landmark_error", "landmark error of registration (points)"),
    ]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    found = False
    for axes, (prefix, metric, title) in zip(figure.subplots(1, 3), panels, strict=True):
        arms = [arm for arm in runs if arm.startswith(prefix)]
        for place, arm in enumerate(arms):
            values = _stack(runs[arm], [metric])
            if values is None:
                continue
            found = True
            axes.plot([place] * len(values), values[:, 0], "o", alpha=0.6)
            axes.plot([place - 0.2, place + 0.2], [values.mean()] * 2, "k-")
        axes.set_xticks(range(len(arms)), [arm.removeprefix(prefix) for arm in arms])
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    return figure if found else None


def _skeletons() -> Figure:
    """Three bundled pictures with the skeletons of three methods."""
    from repro.data.images.shapes import picture_masks
    from repro.methods.skeleton import ClassicalSkeleton, Skeletonize, SoftSkeleton, betti_numbers

    methods: dict[str, Any] = {
        "this paper": Skeletonize(40, probabilistic=False),
        "morphological": SoftSkeleton(40),
        "Lee": ClassicalSkeleton("lee"),
    }
    masks = picture_masks()
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(len(SHOWN), len(methods), height_ratios=(6, 6, 1))
    for row, name in zip(grid, SHOWN, strict=True):
        mask = masks[name]
        for axes, (title, method) in zip(row, methods.items(), strict=True):
            thin = (method(mask.float()[None, None])[0, 0] > 0.5).numpy()
            axes.imshow(np.where(thin, 2, mask.numpy()), cmap="magma", interpolation="nearest")
            axes.set_title(f"{title}: Betti numbers {betti_numbers(thin)}", fontsize=9)
            axes.axis("off")
        row[0].set_title(f"{row[0].get_title()} of {betti_numbers(mask.numpy())}", fontsize=9)
    return figure


def _stack(summaries: list[dict[str, float]], names: list[str]) -> np.ndarray | None:
    """The named metrics of all runs that have them, (runs, names); None if there is none."""
    rows = [[one[name] for name in names] for one in summaries if all(n in one for n in names)]
    return np.array(rows) if rows else None
