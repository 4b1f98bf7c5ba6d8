"""Gradient reversal (Ganin and Lempitsky, ICML 2015): features that a classifier cannot use.

A classifier behind a reversal descends its loss, and what lies before the reversal ascends it. In a
plain loop::

    loss = task_loss + cross_entropy(classifier(reverse(features, dann_strength(done))), domain)
    loss.backward()
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -ctx.strength * gradients[0], None


def reverse(x: Tensor, strength: float = 1.0) -> Tensor:
    """The same numbers, whose gradient comes back times ``-strength``.

    Args:
        x: any tensor.
        strength: 0 lets no gradient through, a negative one helps the classifier.
    """
    reversed_: Tensor = _Reverse.apply(x, strength)
    return reversed_


def dann_strength(done: float) -> float:
    """``2 / (1 + exp(-10 p)) - 1 = tanh(5 p)``: the strength after a fraction p of training."""
    return math.tanh(5 * done)
