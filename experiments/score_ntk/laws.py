"""The laws of x_0 whose scores are learned: all of them have an exact one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from repro.errors import UserError
from repro.knobs import Count, NonNegative, Positive, checked
from repro.toolbox.exact_scores import PointMixture


@checked
def five_points(_data: Any, *, side: Positive = 0.9, variance: NonNegative = 0.0) -> PointMixture:
    """The corners (±side, ±side) and the origin, equally likely.

    Args:
        side: half the distance between corners.
        variance: above 0, of a Gaussian around each of them.
    """
    corners = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1], [0, 0]], dtype=torch.float64)
    return PointMixture.uniform(side * corners, variance)


@checked
def rows(
    data: Any, *, components: Count = 8, limit: Count | None = None, pool: Count | None = None
) -> PointMixture:
    """The training examples of the run's data set, each equally likely.

    Args:
        data: the run's data.
        components: principal components that are kept.
        limit: the first so many examples; None for all.
        pool: images become grey squares of so many pixels a side first; None leaves them alone.

    Returns:
        The law, centred, scaled such that the longest example has norm 1.

    Raises:
        UserError: there are fewer coordinates than components.
    """
    x = data.splits["train"][0][:limit].double()
    if pool is not None:
        x = adaptive_avg_pool2d(x.mean(1, keepdim=True), pool)
    x = x.flatten(1)
    if x.shape[1] < components:
        raise UserError(
            f"laws.rows.components={components}, but {data.name} has {x.shape[1]} coordinates: "
            "choose fewer, or another dataset."
        )
    return PointMixture.uniform(_principal(x - x.mean(0), components))


def _principal(x_ND: Tensor, components: int) -> Tensor:
    _, directions = torch.linalg.eigh(x_ND.mT @ x_ND)
    kept = x_ND @ directions[:, -components:].flip(1)
    longest: Tensor = kept.norm(dim=1).max()
    return kept / longest
