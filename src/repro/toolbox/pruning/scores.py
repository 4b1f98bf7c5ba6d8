"""How much a weight is worth: low scores are pruned.

W (outputs, inputs) are the weights, A (inputs,) norms of the inputs, G (outputs, inputs) norms of
the gradients; see `repro.toolbox.pruning.statistics`.
"""

from __future__ import annotations

from torch import Tensor


def magnitude(w: Tensor, _a: Tensor | None, _g: Tensor | None) -> Tensor:
    """``|W|``."""
    return w.abs()


def wanda(w: Tensor, a: Tensor | None, _g: Tensor | None) -> Tensor:
    """``|W| A`` (Sun et al. 2023)."""
    assert a is not None
    return w.abs() * a
