"""The study's pictures: what accuracy and loss cost in bytes sent, arm by arm."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from repro.records.series import read_series

if TYPE_CHECKING:
    from repro.records.study import Study

Curve = dict[str, list[np.ndarray]]


def figures(study: Study) -> dict[str, Figure]:
    """Draws test accuracy and training loss against the bytes one worker has sent."""
    curves = _curves(study)
    if not curves:
        return {}
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    colours = cycle(map(colormaps["tab20"], range(20)))
    for colour, (arm, curve) in zip(colours, curves.items(), strict=False):
        megabytes = np.mean(_cut(curve["bytes"]), axis=0) / 1e6
        line = "--" if arm == "dense" else "-"
        for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
            values = _cut(curve[name])
            low, high = values.min(axis=0), values.max(axis=0)
            axes.plot(megabytes, np.median(values, axis=0), line, color=colour, label=arm)
            axes.fill_between(megabytes, low, high, color=colour, alpha=0.12, lw=0)
    accuracy.set(ylabel="validation accuracy", title="Accuracy against traffic")
    loss.set(ylabel="training loss", yscale="log", title="Loss against traffic")
    loss.set_ylim(top=min(loss.get_ylim()[1], 1e3))  # what lies above has diverged
    for axes in (accuracy, loss):
        axes.set(xlabel="MB sent per worker", xscale="log")
        axes.grid(alpha=0.3)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.suptitle(f"{study.paper.slug}, scale={study.scale}: median and range over seeds")
    return {"traffic": figure}


def _curves(study: Study) -> dict[str, Curve]:
    """Per arm and seed: cumulated bytes, validation accuracy and training loss, epoch by epoch."""
    curves: dict[str, Curve] = {}
    for run in study.runs:
        rows = _epochs(read_series(run.folder / "metrics.csv"))
        if not rows:
            continue
        arm = run.record()["arm"]
        curve = curves.setdefault(arm, {"bytes": [], "accuracy": [], "loss": []})
        steps = np.diff([row["step"] for row in rows], prepend=-1)
        sent = np.cumsum(steps * np.array([row["comm/bytes_per_step"] for row in rows]))
        curve["bytes"].append(sent)
        curve["accuracy"].append(np.array([row["val/accuracy"] for row in rows]))
        curve["loss"].append(np.array([row["train/loss"] for row in rows]))
    return curves


def _epochs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = {"comm/bytes_per_step", "val/accuracy", "train/loss"}
    return [row for row in rows if wanted <= row.keys()]


def _cut(series: list[np.ndarray]) -> np.ndarray:
    """Stacks series after cutting them to the shortest (runs that diverged ended early)."""
    shortest = min(map(len, series))
    return np.stack([each[:shortest] for each in series])
