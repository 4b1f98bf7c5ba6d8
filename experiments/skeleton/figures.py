"""Skeletons of bundled pictures beside each other; the other figures are declared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from repro.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from repro.records.study import Study

SHOWN = ("horse", "retina", "digits")
WIDTH = 3.6  # inches of a picture


def figures(study: Study) -> dict[str, Figure]:
    """Draws three bundled pictures with the skeletons of three methods, once: at mini."""
    if study.scale != "mini":
        return {}
    from repro.data.images.shapes import picture_masks
    from repro.methods.skeleton import ClassicalSkeleton, Skeletonize, SoftSkeleton, betti_numbers

    methods: dict[str, Any] = {
        "this paper": Skeletonize(40, probabilistic=False),
        "morphological": SoftSkeleton(40),
        "Lee": ClassicalSkeleton("lee"),
    }
    masks = {name: picture_masks()[name] for name in SHOWN}
    sizes = [
        (WIDTH, 0.4 + WIDTH * mask.shape[0] / mask.shape[1])
        for mask in masks.values()
        for _ in methods
    ]
    figure, panels = style.grid(sizes, columns=len(methods))
    cases = [(mask, title, method) for mask in masks.values() for title, method in methods.items()]
    for axes, (mask, title, method) in zip(panels, cases, strict=True):
        thin = (method(mask.float()[None, None])[0, 0] > 0.5).numpy()
        axes.imshow(np.where(thin, 2, mask.numpy()), cmap="magma", interpolation="nearest")
        axes.set_title(f"{title}: {betti_numbers(thin)} of {betti_numbers(mask.numpy())}")
        axes.axis("off")
    style.finish(figure, f"{study.paper.slug}, scale={study.scale}: Betti numbers of skeletons")
    return {"skeletons": figure}
