"""Random binarisation of probabilities, with the gradient of its relaxation."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8


def binarise(
    x: Tensor, beta: float = 0.33, tau: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draws 0 or 1 for every probability; the straight-through estimate carries the gradient.

    With logistic noise L, ``y = sigmoid((logit(x) + beta L) / tau)`` is rounded, and its gradient
    ``dy/dx = y (1 − y) / (tau x (1 − x))`` is passed on. Hence P(1) = x^(1/beta) / (x^(1/beta) +
    (1 − x)^(1/beta)), whatever tau is. As beta goes to 0 this becomes a threshold at 0.5, whose
    gradient is 1 for tau = 1.

    Args:
        x: probabilities in [0, 1], any shape.
        beta: scale of the noise, at least 0.
        tau: temperature of the relaxation, above 0.
        generator: of the uniform numbers; None for PyTorch's global one.

    Returns:
        Exactly 0 or 1, in the shape of x.
    """
    odds = (x + EPSILON) / (1 - x + EPSILON)
    uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    uniform = uniform.clamp(min=EPSILON)  # it is never 1, but may be 0
    logistic = uniform.log() - (1 - uniform).log()
    y = torch.sigmoid((odds.log() + beta * logistic) / tau)
    # (1 − y) + y is exactly 1 for y above 1/2, so the sum is exactly what was drawn.
    return (y > 0.5).to(x.dtype) - y.detach() + y
