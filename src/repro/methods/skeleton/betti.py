"""Betti numbers of binary images and volumes: components, tunnels, cavities."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage


def betti_numbers(mask: np.ndarray) -> tuple[int, ...]:
    """Counts components and holes (2-D), or components, tunnels and cavities (3-D).

    Foreground is connected by faces, edges and corners, background by faces only. The number of
    tunnels follows from the Euler number.

    Args:
        mask: (H, W) or (D, H, W), true in the foreground.

    Returns:
        (b0, b1) or (b0, b1, b2).
    """
    mask = np.pad(np.asarray(mask, dtype=bool), 1)
    dims = mask.ndim
    components = _count(mask, connectivity=dims)
    enclosed = _count(~mask, connectivity=1) - 1  # the outside is one of them
    if dims == 2:
        return components, enclosed
    return components, components + enclosed - euler_number(mask), enclosed


def euler_number(mask: np.ndarray) -> int:
    """Vertices − edges + faces − cells of the union of closed pixels or voxels.

    Args:
        mask: boolean, any number of axes, false all around its border.
    """
    total = 0
    for axes in itertools.product((False, True), repeat=mask.ndim):
        # Two neighbours along an axis share what is one dimension lower between them.
        shared = mask
        for axis, between in enumerate(axes):
            if between:
                low = [slice(None)] * mask.ndim
                high = [slice(None)] * mask.ndim
                low[axis], high[axis] = slice(None, -1), slice(1, None)
                shared = shared[tuple(low)] | shared[tuple(high)]
        total += (-1) ** (mask.ndim - sum(axes)) * int(shared.sum())
    return total


def betti_errors(mask: np.ndarray, skeleton: np.ndarray) -> tuple[int, ...]:
    """Absolute differences of the Betti numbers of two masks of the same shape."""
    return tuple(
        abs(a - b) for a, b in zip(betti_numbers(mask), betti_numbers(skeleton), strict=True)
    )


def topology_change(mask: np.ndarray, skeleton: np.ndarray) -> dict[str, float]:
    """What is different in a skeleton, and how thin it is.

    Args:
        mask: (H, W) or (D, H, W), true in the foreground.
        skeleton: of the same shape.

    Returns:
        ``betti_<k>_error`` of each Betti number; ``betti_error``, their sum; ``wrong``, whether
        there is one, 0 or 1; ``size``, skeleton points per point of the mask; ``thick``, blocks of
        2 x 2 (x 2) skeleton points per skeleton point.
    """
    errors = betti_errors(mask, skeleton)
    blocks = np.lib.stride_tricks.sliding_window_view(skeleton, (2,) * skeleton.ndim)
    full = blocks.all(axis=tuple(range(skeleton.ndim, 2 * skeleton.ndim)))
    points = max(1, int(skeleton.sum()))
    return {
        **{f"betti_{k}_error": float(error) for k, error in enumerate(errors)},
        "betti_error": float(sum(errors)),
        "wrong": float(any(errors)),
        "size": points / max(1, int(mask.sum())),
        "thick": int(full.sum()) / points,
    }


def _count(mask: np.ndarray, connectivity: int) -> int:
    structure = ndimage.generate_binary_structure(mask.ndim, connectivity)
    return int(ndimage.label(mask, structure)[1])
