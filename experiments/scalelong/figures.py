"""Samples of every arm beside real images; the other figures are declared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from repro.records.names import ARTIFACTS
from repro.records.table import table
from repro.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from repro.records.study import Study


def figures(study: Study) -> dict[str, Figure]:
    """Draws a row of real images, then a row of samples of each arm's first seed."""
    kept: dict[str, tuple[np.ndarray, int]] = {}
    for run in table(study).runs:
        file = run.folder / ARTIFACTS / "samples.npz"
        if file.is_file() and run.arm not in kept:
            with np.load(file) as saved:
                kept[run.arm] = (saved["images"], int(saved["real"]))
    if not kept:
        return {}
    images, count = next(iter(kept.values()))
    rows = {"real": images[:count]} | {arm: both[n : n + count] for arm, (both, n) in kept.items()}
    low, high = images[:count].min(), images[:count].max()
    figure, panels = style.grid([(9.0, 0.62)] * len(rows), columns=1)
    for axes, (name, row) in zip(panels, rows.items(), strict=True):
        strip = np.concatenate(list(row.transpose(0, 2, 3, 1)), axis=1)  # side by side
        strip = np.clip((strip - low) / (high - low), 0, 1)
        axes.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray_r")
        axes.set_yticks([strip.shape[0] / 2], [name])
        axes.set_xticks([])
        axes.grid(visible=False)
    style.finish(figure, f"{study.paper.slug}, scale={study.scale}: samples of one seed")
    return {"samples": figure}
