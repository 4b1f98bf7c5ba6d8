"""How far a mask is from one drawn at random."""

from __future__ import annotations

from torch import Tensor


def column_structure(pruned: Tensor) -> float:
    """Spread over input columns of the kept fraction, over that of independent draws.

    About 1 for a mask without structure; large where whole columns go or stay.

    Args:
        pruned: (outputs, inputs) bool.

    Returns:
        The standard deviation divided by ``sqrt(p (1 - p) / outputs)``; 1 where nothing, or
        everything, is pruned.

    Examples:
        >>> import torch
        >>> stripes = torch.tensor([True, False]).repeat(100, 8)
        >>> column_structure(stripes)
        10.0
    """
    kept = (~pruned).float()
    p = kept.mean()
    expected = (p * (1 - p) / len(kept)).sqrt()
    if expected == 0:
        return 1.0
    return float(kept.mean(0).std(correction=0) / expected)
