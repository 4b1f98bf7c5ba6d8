"""The pictures: training curves, features and gradients, the theory at the start, samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from repro.records.series import read_series

if TYPE_CHECKING:
    from repro.records.study import Study

Curves = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # arm -> (steps, values) of every seed
COLOURS = {"org": "C3", "const": "C1", "cs": "C0", "ls": "C2"}
PLAIN = StrMethodFormatter("{x:g}")
FAMILIES = {"": "MLP", "sgd_": "plain SGD", "uvit_": "U-ViT", "deep_": "deeper"}


def figures(study: Study) -> dict[str, Figure]:
    """Draws the curves of training, the theory at initialisation, and samples of every arm."""
    drawn = {}
    curves = {
        name: _curves(study, name) for name in ("val/loss", "train/grad_norm", "train/feature_norm")
    }
    families = [
        prefix for prefix in FAMILIES if any(prefix + arm in curves["val/loss"] for arm in COLOURS)
    ]
    if families:
        drawn["training"] = _training(study, curves, families)
    theory = _theory(study)
    if theory is not None:
        drawn["theory"] = theory
    samples = _samples(study)
    if samples is not None:
        drawn["samples"] = samples
    return drawn


def _training(study: Study, curves: dict[str, Curves], rows: list[str]) -> Figure:
    """One row a family of arms: validation loss, gradient norm, feature norm against steps."""
    figure = Figure(figsize=(11, 3.2 * len(rows) + 0.6), layout="constrained")
    titles = {
        "val/loss": "validation loss",
        "train/grad_norm": "gradient norm",
        "train/feature_norm": "feature norm",
    }
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for axes_row, prefix in zip(grid, rows, strict=True):
        for axes, (name, title) in zip(axes_row, titles.items(), strict=True):
            for arm, colour in COLOURS.items():
                _draw(axes, curves[name].get(prefix + arm, []), prefix + arm, colour)
            axes.set(title=f"{FAMILIES[prefix]}: {title}", xlabel="step", yscale="log")
            axes.yaxis.set_minor_formatter(PLAIN)
            axes.yaxis.set_major_formatter(PLAIN)
            axes.grid(alpha=0.3, which="both")
        axes_row[0].legend(frameon=False)
    figure.suptitle(f"{study.paper.slug}, scale={study.scale}: one thin line a seed, means bold")
    return figure


def _draw(axes: Axes, curves: list[tuple[np.ndarray, np.ndarray]], label: str, colour: str) -> None:
    if not curves:
        return
    length = min(len(values) for _, values in curves)
    for steps, values in curves:
        axes.plot(steps, values, color=colour, alpha=0.3, lw=0.7)
    mean = np.mean([values[:length] for _, values in curves], axis=0)
    axes.plot(curves[0][0][:length], mean, color=colour, lw=1.8, label=label)


def _theory(study: Study) -> Figure | None:
    """Gain, gradient norm and sensitivity of fresh networks against the number of skips."""
    measures = {
        "gain": "||h_0||² / ||z_0||²",
        "grad_norm": "gradient norm",
        "sensitivity": "sensitivity to the input",
    }
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    grid = figure.subplots(1, 3)
    found = False
    for axes, (measure, title) in zip(grid, measures.items(), strict=True):
        for arm, colour in COLOURS.items():
            summaries = [run.summary() for run in study.runs if run.record()["arm"] == arm]
            depths = sorted(
                int(name.split("/")[1][1:])
                for name in (summaries[0] if summaries else {})
                if name.startswith("init/") and name.endswith(f"/{measure}")
            )
            if not depths:
                continue
            found = True
            values = np.array(
                [[summary[f"init/n{n}/{measure}"] for n in depths] for summary in summaries]
            )
            axes.plot(depths, values.T, "o", color=colour, alpha=0.4)
            axes.plot(depths, values.mean(axis=0), color=colour, label=arm)
            over = f"init/n{depths[0]}/gain_over_theory"
            if measure == "gain" and over in summaries[0]:
                theory = [
                    summaries[0][f"init/n{n}/gain"] / summaries[0][f"init/n{n}/gain_over_theory"]
                    for n in depths
                ]
                axes.plot(depths, theory, "k:", lw=1)
            axes.set_xscale("log")
            axes.set_xticks(depths, map(str, depths), minor=False)
            axes.set_xticks([], minor=True)
        axes.set(title=title, xlabel="skips", yscale="log")
        axes.yaxis.set_minor_formatter(PLAIN)
        axes.yaxis.set_major_formatter(PLAIN)
        axes.grid(alpha=0.3, which="both")
    if not found:
        return None
    grid[0].legend(frameon=False)
    figure.suptitle("At initialisation; dotted: 1 + sum of κ²")
    return figure


def _samples(study: Study) -> Figure | None:
    """Real images and samples, a row an arm, of each arm's first seed."""
    pictures = {}
    for run in study.runs:
        file = run.folder / "artifacts" / "samples.npz"
        if file.is_file() and run.record()["arm"] not in pictures:
            with np.load(file) as kept:
                pictures[run.record()["arm"]] = (kept["images"], int(kept["real"]))
    if not pictures:
        return None
    images, real = next(iter(pictures.values()))
    rows = {"real": images[:real]} | {arm: kept[n:] for arm, (kept, n) in pictures.items()}
    low, high = images[:real].min(), images[:real].max()
    figure = Figure(figsize=(11, 0.62 * len(rows) + 0.4), layout="constrained")
    for axes, (name, row) in zip(
        figure.subplots(len(rows), squeeze=False)[:, 0], rows.items(), strict=True
    ):
        strip = np.concatenate(list(row[:real].transpose(0, 2, 3, 1)), axis=1)
        strip = np.clip((strip - low) / (high - low), 0, 1)
        axes.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray_r")
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
    return figure


def _curves(study: Study, name: str) -> Curves:
    """A logged series of all runs, by arm."""
    curves: Curves = {}
    for run in study.runs:
        rows = [row for row in read_series(run.folder / "metrics.csv") if name in row]
        if rows:
            steps, values = (np.array([row[key] for row in rows]) for key in ("step", name))
            curves.setdefault(run.record()["arm"], []).append((steps, values))
    return curves
