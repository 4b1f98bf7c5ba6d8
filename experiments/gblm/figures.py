"""The study's pictures: loss against sparsity, arm by arm and next to Wanda, and mask structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from repro.records.study import Study

Values = dict[str, dict[int, dict[str, float]]]  # arm -> seed -> metric -> value

COLOURS = {
    "random": "0.6",
    "magnitude": "C7",
    "wanda": "C0",
    "sparsegpt": "C2",
    "gradient": "C1",
    "gblm": "C3",
    "gblm_l2": "C6",
    "gblm_inverse": "C5",
}
COUNTS = {"gblm_n4": 4, "gblm_n16": 16, "gblm": 64, "gblm_n256": 256}


def figures(study: Study) -> dict[str, Figure]:
    """Draws what pruning costs, how it differs from Wanda, and the structure of the masks."""
    values: Values = {}
    for run in study.runs:
        record = run.record()
        values.setdefault(record["arm"], {})[record["seed"]] = run.summary()
    arms = [arm for arm in COLOURS if arm in values]
    patterns = _patterns(values)
    if not arms or not patterns:
        return {}
    levels = Figure(figsize=(12, 4.4), layout="constrained")
    left, middle, right = levels.subplots(1, 3)
    _draw_levels(left, values, arms, patterns)
    _draw_differences(middle, values, arms, patterns)
    _draw_structure(right, values, arms, patterns)
    levels.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=9,
                  frameon=False)  # fmt: skip
    levels.suptitle(f"{study.paper.slug}, scale={study.scale}: mean and range over calibrations")
    drawn = {"pruning": levels}
    masks = _masks(study)
    if masks:
        drawn["masks"] = _draw_masks(masks)
    if len([arm for arm in COUNTS if arm in values]) > 1 and "60" in patterns:
        drawn["sequences"] = _draw_counts(values)
    return drawn


def _patterns(values: Values) -> list[str]:
    """Names of patterns: fractions in order, then N:M."""
    prefix = "test/loss_"
    names = {
        key.removeprefix(prefix)
        for seeds in values.values()
        for summary in seeds.values()
        for key in summary
        if key.startswith(prefix)
    } - {"0"}
    return sorted(names, key=lambda name: ("of" in name, float(name.split("of")[0]), name))


def _label(pattern: str) -> str:
    return pattern.replace("of", ":") if "of" in pattern else f"{pattern} %"


def _series(values: Values, arm: str, metric: str) -> np.ndarray:
    """The metric of every seed of an arm that has it."""
    return np.array([s[metric] for s in values[arm].values() if metric in s])


def _draw_levels(axes: Axes, values: Values, arms: list[str], patterns: list[str]) -> None:
    for arm in arms:
        _draw_line(axes, arm, [_series(values, arm, f"test/loss_{p}") for p in patterns])
    if "dense" in values:
        dense = _series(values, "dense", "test/loss_0").mean()
        axes.axhline(dense, color="k", lw=1, ls=":", label="dense")
    # Random pruning is far worse than all else: it may leave the picture.
    others = [arm for arm in arms if arm != "random"]
    losses = [_series(values, arm, f"test/loss_{p}") for arm in others for p in patterns]
    if "random" in arms and others:
        axes.set_ylim(top=1.05 * max(series.max() for series in losses if len(series)))
    axes.set(title="What pruning costs", ylabel="test loss (nats per token)")
    _name_patterns(axes, patterns)


def _draw_differences(axes: Axes, values: Values, arms: list[str], patterns: list[str]) -> None:
    """Paired by seed, because all arms of a seed see the same sequences."""
    axes.axhline(0, color=COLOURS["wanda"], lw=1)
    for arm in arms:
        if arm in ("random", "wanda") or "wanda" not in values:
            continue
        shared = sorted(values[arm].keys() & values["wanda"].keys())
        pairs = [(values[arm][seed], values["wanda"][seed]) for seed in shared]
        metrics = [f"test/loss_{p}" for p in patterns]
        _draw_line(
            axes, arm, [np.array([own[m] - wanda[m] for own, wanda in pairs]) for m in metrics]
        )
    axes.set_ylim(-0.15, 0.25)
    axes.set(title="Difference to Wanda", ylabel="test loss minus Wanda's")
    _name_patterns(axes, patterns)


def _differences(pairs: list[tuple[dict[str, float], dict[str, float]]], metric: str) -> np.ndarray:
    return np.array([own[metric] - other[metric] for own, other in pairs if metric in own])


def _draw_structure(axes: Axes, values: Values, arms: list[str], patterns: list[str]) -> None:
    for arm in arms:
        _draw_line(axes, arm, [_series(values, arm, f"structure/columns_{p}") for p in patterns])
    axes.axhline(1, color="k", lw=1, ls=":")
    axes.set(title="Structure of masks", ylabel="spread over columns (independent draws: 1)")
    _name_patterns(axes, patterns)


def _draw_line(axes: Axes, arm: str, series: list[np.ndarray]) -> None:
    places = [i for i, values in enumerate(series) if len(values)]
    mean = np.array([series[i].mean() for i in places])
    low, high = (np.array([f(series[i]) for i in places]) for f in (np.min, np.max))
    axes.errorbar(places, mean, [mean - low, high - mean], fmt="o-", ms=4, lw=1.2, capsize=2,
                  color=COLOURS[arm], label=arm)  # fmt: skip


def _name_patterns(axes: Axes, patterns: list[str]) -> None:
    axes.set_xticks(range(len(patterns)), [_label(p) for p in patterns])
    axes.set_xlabel("weights pruned")
    axes.grid(alpha=0.3)


def _masks(study: Study) -> dict[str, np.ndarray]:
    """The kept corner of a mask at 50 % (else the first pattern), of one seed of each arm."""
    masks: dict[str, np.ndarray] = {}
    for run in study.runs:
        arm = run.record()["arm"]
        found = sorted((run.folder / "artifacts").glob("mask_*.npy"))
        half = [file for file in found if file.name == "mask_50.npy"]
        if arm in COLOURS and arm not in masks and found:
            masks[arm] = np.load((half or found)[0], allow_pickle=False)
    return masks


def _draw_masks(masks: dict[str, np.ndarray]) -> Figure:
    """Masks as pictures: a column is an input, a row an output, white is pruned."""
    figure = Figure(figsize=(2.4 * len(masks), 2.9), layout="constrained")
    for axes, (arm, mask) in zip(np.atleast_1d(figure.subplots(1, len(masks))), masks.items(),
                                 strict=True):  # fmt: skip
        axes.imshow(mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
        axes.set(title=arm, xticks=[], yticks=[])
    figure.suptitle("One layer's mask: inputs from left to right, white is pruned")
    return figure


def _draw_counts(values: Values) -> Figure:
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for arm, count in COUNTS.items():
        if arm in values:
            losses = _series(values, arm, "test/loss_60")
            axes.plot(np.full(len(losses), count), losses, "o", color=COLOURS["gblm"], alpha=0.6)
            axes.plot(count, losses.mean(), "_", color=COLOURS["gblm"], ms=18, mew=2)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="calibration sequences", ylabel="test loss at 60 %", title="gblm")
    axes.grid(alpha=0.3)
    return figure
