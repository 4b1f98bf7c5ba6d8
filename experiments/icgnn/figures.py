"""The study's pictures: spectral efficiency over sizes, conjugate-gradient steps and cost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from repro.records.study import Study

Runs = dict[str, list[dict[str, float]]]
PART = "test/relative_se"
CURVES = {  # arms over conjugate-gradient steps
    "icgnn_cg8": ("C0", "-"),
    "icgnn_cg4": ("C0", "--"),
    "icgnn_exact": ("C2", "-"),
    "icgnn_unscaled": ("C3", ":"),
    "rzf": ("C1", "-"),
    "rzf_cg4": ("C1", "--"),
}
SKIPPED_SIZES = ("mrt", "rzf_cg4", "icgnn_forgetful", "icgnn_unscaled")  # too many to tell apart


def figures(study: Study) -> dict[str, Figure]:
    """Draws the pictures that the finished runs allow."""
    runs: Runs = {}
    seen: set[str] = set()
    for run in study.runs:
        if summary := run.summary():
            runs.setdefault(run.record()["arm"], []).append(summary)
            dataset = run.config().dataset
            seen |= set(dataset[dataset.kind].seen)
    title = f"{study.paper.slug}, scale={study.scale}"
    drawn = {
        "sizes": _sizes(runs, seen, title),
        "steps": _steps(runs, title),
        "cost": _cost(runs, title),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _sizes(runs: Runs, seen: set[str], title: str) -> Figure | None:
    """Part of the reference's spectral efficiency at every size, in a cell and without cells."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=[2, 1])
    found = False
    for axes, kind in zip(panels, ("cellular", "cellfree"), strict=True):
        arms = {arm: each for arm, each in runs.items() if _kind(each) == kind}
        arms = {arm: each for arm, each in arms.items() if arm not in SKIPPED_SIZES}
        cells = sorted({c for each in arms.values() for c in _cells(each[0])}, key=_in_numbers)
        for index, (arm, each) in enumerate(arms.items()):
            values = np.array([[s.get(f"{PART}/{c}", np.nan) for c in cells] for s in each])
            found = True
            place = np.arange(len(cells)) + 0.07 * (index - len(arms) / 2)
            axes.errorbar(
                place, values.mean(0), _reach(values), fmt="o" if "icgnn" in arm else "_", label=arm
            )
        labels = [cell if _size(cell, seen) else f"{cell}*" for cell in cells]
        axes.set_xticks(range(len(cells)), labels, rotation=40, ha="right", fontsize=8)
        axes.axhline(1, color="grey", lw=0.8)
        axes.grid(alpha=0.3)
        if arms:
            axes.legend(fontsize=8, frameon=False)
    if not found:
        return None
    panels[0].set(title="In a cell: users x antennas", ylabel="spectral efficiency / WMMSE's")
    panels[1].set(title="Without cells: access points x users", ylabel="… / gradient ascent's")
    figure.suptitle(f"{title}: mean and range over seeds; * not seen in training")
    return figure


def _steps(runs: Runs, title: str) -> Figure | None:
    """Part of WMMSE's spectral efficiency against the steps of conjugate gradients at test."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    found = False
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("seen", "unseen"), strict=True):
        for arm, (colour, line) in CURVES.items():
            points = {
                int(match[1]): name
                for name in runs.get(arm, [{}])[0]
                if (match := re.fullmatch(rf"{PART}_at/(\d+)/{kind}", name))
            }
            if not points:
                continue
            found = True
            steps = sorted(points)
            values = np.array([[summary[points[t]] for t in steps] for summary in runs[arm]])
            axes.plot(steps, values.mean(0), line, color=colour, marker=".", label=arm)
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="conjugate-gradient steps at test", xscale="log", title=f"{kind} sizes")
        axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axes.grid(alpha=0.3)
    if not found:
        return None
    figure.axes[0].set_ylabel("spectral efficiency / WMMSE's")
    figure.axes[1].legend(fontsize=8, frameon=False)
    figure.suptitle(title)
    return figure


def _cost(runs: Runs, title: str) -> Figure | None:
    """Part of WMMSE's spectral efficiency against multiplications, at the seen sizes."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    wanted = ("test/multiplications/seen", f"{PART}/seen")
    for arm, each in runs.items():
        if _kind(each) != "cellular" or not all(name in each[0] for name in wanted):
            continue
        cost, part = (float(np.mean([summary[name] for summary in each])) for name in wanted)
        marker = "o" if "icgnn" in arm else "s"
        axes.plot(cost, part, marker, color=colormaps["tab20"](len(axes.lines)), label=arm)
    if not axes.lines:
        return None
    axes.set(
        xscale="log",
        xlabel="real multiplications per channel",
        ylabel="spectral efficiency / WMMSE's",
        title=f"{title}: seen sizes",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _kind(summaries: list[dict[str, float]]) -> str:
    names = summaries[0]
    return "cellfree" if any(n.startswith("test/points_per_user") for n in names) else "cellular"


def _cells(summary: dict[str, Any]) -> list[str]:
    names = [name.removeprefix(f"{PART}/") for name in summary if name.startswith(f"{PART}/")]
    return [name for name in names if name not in ("seen", "unseen")]


def _size(cell: str, sizes: set[str]) -> bool:
    """Whether a cell, named like ``8x16_10dB`` or ``24x8_antennas8``, has one of the sizes."""
    return cell in sizes or re.sub(r"_[-.\d]+dB$", "", cell) in sizes


def _in_numbers(cell: str) -> list[float]:
    """Sorts by the numbers in a name rather than by its letters."""
    return [float(number) for number in re.findall(r"[\d.]+", cell)]


def _reach(values: np.ndarray) -> np.ndarray:
    """How far the range over seeds reaches below and above the mean."""
    mean = values.mean(0)
    return np.stack([mean - values.min(0), values.max(0) - mean])
