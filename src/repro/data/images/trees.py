"""Simulated blood vessels: branching trees of tubes, as masks in 2-D or 3-D."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def vessel_tree(
    size: Sequence[int],
    generator: torch.Generator,
    roots: int = 2,
    radius: float = 2.4,
    thinnest: float = 0.7,
    branching: float = 0.06,
) -> Tensor:
    """Draws a branching tree of tubes that get thinner, as a mask of shape ``size``.

    A branch walks from the border, half a point a step, turning at random, until it leaves the
    field or has become too thin. At a fork both children are thinner than their parent by the
    factor 2^(−1/3) (Murray's law).

    Args:
        size: of the mask, 2-D or 3-D.
        generator: of all that is random.
        roots: branches that enter at the border.
        radius: of those, in points.
        thinnest: radius below which a branch ends.
        branching: probability of a fork at each step.
    """
    dims = len(size)
    edges = np.array(size, dtype=float)
    draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    most = 4 * max(size)  # steps of a branch: enough to cross the field twice
    pending = []
    for _ in range(roots):
        place = draw.random(dims) * edges
        axis = draw.integers(dims)
        place[axis] = edges[axis] * draw.integers(2)
        pending.append((place, edges / 2 - place + 3 * draw.standard_normal(dims), radius))
    points, radii = [], []
    while pending:
        place, direction, thickness = pending.pop()
        direction = direction / np.linalg.norm(direction)
        turns = direction + np.cumsum(0.12 * draw.standard_normal((most, dims)), 0)
        turns /= np.linalg.norm(turns, axis=1, keepdims=True)
        path = np.concatenate([place[None], place + np.cumsum(0.5 * turns, 0)[:-1]])
        forks = draw.random(most) < branching
        widths = thickness * 0.996 ** np.arange(most) * 0.5 ** (np.cumsum(forks) / 3)
        alive = (widths >= thinnest) & ((path >= 0) & (path <= edges)).all(1)
        length = most if alive.all() else int(np.argmin(alive))
        points.append(path[:length])
        radii.append(widths[:length])
        for at in np.flatnonzero(forks[:length]):
            sideways = turns[at] + 0.7 * draw.standard_normal(dims)
            pending.append((path[at], sideways, widths[at]))
    grid = torch.stack(torch.meshgrid(*[torch.arange(e) + 0.5 for e in size], indexing="ij"), -1)
    centres = torch.from_numpy(np.concatenate(points)).float()
    away = torch.cdist(grid.view(-1, dims), centres)
    return (away <= torch.from_numpy(np.concatenate(radii)).float()).any(1).view(*size)
