"""How much a weight is worth: low scores are pruned.

W (outputs, inputs) are the weights, A (inputs,) norms of the inputs, G (outputs, inputs) norms of
the gradients; see `repro.toolbox.pruning.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

TINY = 1e-8  # keeps the inverse of a gradient finite, as in the official code


def magnitude(w: Tensor, a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W|``."""
    return w.abs()


def wanda(w: Tensor, a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W| A`` (Sun et al. 2023)."""
    assert a is not None
    return w.abs() * a


def gradient(w: Tensor, a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W| G``: what a first-order expansion of each sequence's loss says."""
    assert g is not None
    return w.abs() * g


def gblm(w: Tensor, a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W| A + |W| G``, the paper's score."""
    assert a is not None
    assert g is not None
    return w.abs() * a + w.abs() * g  # not |W| (A + G): at alpha = 0 equal to Wanda to the last bit


def gblm_inverse(w: Tensor, a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W| A / (G + 1e-8)``, a negative control."""
    assert a is not None
    assert g is not None
    return w.abs() * a / (g + TINY)


def gradient_inverse(w: Tensor, a: Tensor | None, g: Tensor | None) -> Tensor:
    """``|W| / (G + 1e-8)``, a negative control."""
    assert g is not None
    return w.abs() / (g + TINY)


SCORES: dict[str, Callable[[Tensor, Tensor | None, Tensor | None], Tensor]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "gradient": gradient,
    "gblm": gblm,
    "gblm_inverse": gblm_inverse,
    "gradient_inverse": gradient_inverse,
}
NEED_GRADIENTS = {"gradient", "gblm", "gblm_inverse", "gradient_inverse"}
