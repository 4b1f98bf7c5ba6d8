"""The study's pictures: what each choice does to the divergence, and what bits are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from repro.records.study import Study

Runs = dict[str, list[dict[str, float]]]
METRIC = "test/kl"
# Factors of the paper, what it calls them, and the arms that vary them.
FACTORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "weights": ("robust", ("free", "free_near_half", "free_random_half")),
    "features": ("robust", ("free", "free_noise", "free_mixup", "free_drop")),
    "calibration": ("robust", ("free", "free_64_images", "free_unbalanced", "free_noise_images")),
    "loss": ("important", ("free", "free_l1", "free_normalised", "free_cosine", "free_fisher")),
    "freedom": ("important", ("free", "offset", "free_scale", "free_bias")),
    "grid (3 bits)": ("important", ("uniform3", "power3")),
    "variable": ("important", ("adaround", "offset", "tanh")),
    "optimizer": ("important", ("free", "free_sgd", "free_sign_sgd", "free_rmsprop")),
}
COLOURS = {"robust": "C0", "important": "C3"}
PAIRS = ("adaround", "brecq", "qdrop", "vit_brecq", "decoder_brecq")  # each also improved
BY_BITS = (
    "nearest", "hessian", "adaround", "free", "uniform3", "mixed", "mixed_reversed",
    "mixed_random", "mixed_magnitude",
)  # fmt: skip


def figures(study: Study) -> dict[str, Figure]:
    """Draws the factors, the improvement of each method, and divergence against memory."""
    runs: Runs = {}
    for run in study.runs:
        summary = run.summary()
        if METRIC in summary:
            runs.setdefault(run.record()["arm"], []).append(summary)
    drawn = {"factors": _factors(runs), "guidelines": _guidelines(runs)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _values(runs: Runs, arm: str, metric: str = METRIC) -> np.ndarray:
    return np.array([summary[metric] for summary in runs.get(arm, [])])


def _factors(runs: Runs) -> Figure | None:
    if "free" not in runs:
        return None
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots()
    labels: list[str] = []
    for factor, (verdict, arms) in FACTORS.items():
        for arm in arms:
            values = _values(runs, arm)
            if not len(values):
                continue
            _dots(axes, len(labels), values, COLOURS[verdict])
            labels.append(f"{factor}: {arm.replace('_', ' ')}")
        axes.axhline(len(labels) - 0.5, color="0.85", lw=0.8)
    axes.axvline(np.exp(np.log(_values(runs, "free")).mean()), color="0.5", ls=":", lw=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="KL(float ‖ quantised) on noisy test images")
    for verdict, colour in COLOURS.items():
        axes.plot([], [], "o", color=colour, label=f"the paper: {verdict}")
    axes.legend(frameon=False, loc="lower right")
    axes.set_title("One choice at a time: seeds (dots) and their geometric mean (bar)")
    return figure


def _dots(axes: Axes, row: int, values: np.ndarray, colour: str) -> None:
    axes.plot(values, np.full(len(values), row), "o", color=colour, alpha=0.45, ms=4)
    mean = np.exp(np.log(np.maximum(values, 1e-12)).mean())
    axes.plot([mean], [row], "|", color=colour, ms=13, mew=2.5)


def _guidelines(runs: Runs) -> Figure | None:
    pairs = [arm for arm in PAIRS if arm in runs and f"{arm}_improved" in runs]
    by_bits = [arm for arm in BY_BITS if arm in runs]
    if not by_bits:
        return None
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, arm in enumerate(pairs):
        for name, colour, shift in ((arm, "C0", -0.12), (f"{arm}_improved", "C2", 0.12)):
            _dots(left, row + shift, _values(runs, name), colour)  # type: ignore[arg-type]
    left.set_yticks(range(len(pairs)), [arm.replace("_", " ") for arm in pairs])
    left.invert_yaxis()
    left.plot([], [], "o", color="C0", label="default")
    left.plot([], [], "o", color="C2", label="improved")
    left.legend(frameon=False)
    left.set(xscale="log", xlabel="KL(float ‖ quantised)", title="The guidelines together")
    for arm in by_bits:
        bits, values = _values(runs, arm, "bits/average"), _values(runs, arm)
        right.plot(bits, values, "o", alpha=0.6, ms=5, label=arm.replace("_", " "))
    right.set(
        xlabel="bits per weight, scales included", yscale="log", title="Mixed precision: memory"
    )
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
