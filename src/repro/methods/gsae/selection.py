"""Which latents of a k-sparse layer stay on: by size, by size and gradient, or at random.

A `Selector` scores the latents of each token; the k best are kept, at the value of z and not of the
score. Any k-sparse layer can use one: it needs the layer's activations z, its decoder directions
and, for `GradientAugmented`, the gradient of the model's loss at the place that is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from repro.knobs import NonNegative, checked

TINY = 1e-30  # of float32; a token whose gradient is exactly zero divides by it


class Selector(Protocol):
    """Scores latents; larger is kept. Scores are never differentiated."""

    @property
    def needs_gradient(self) -> bool:
        """Whether `scores` reads the gradient."""

    def scores(self, z_BN: Tensor, W_dec_ND: Tensor, g_BD: Tensor | None) -> Tensor:
        """Returns (B, N) scores.

        Args:
            z_BN: activations of the latents, at least 0.
            W_dec_ND: the decoder, one direction a row.
            g_BD: gradient of the summed loss at each token; None if the selector does not need it.
        """


def attribution(W_dec_ND: Tensor, g_BD: Tensor) -> Tensor:
    """First-order effect on the loss of one unit of each latent, a = |g · w|: (B, N)."""
    return (g_BD @ W_dec_ND.T).abs_()


@dataclass(frozen=True)
class Magnitude(Selector):
    """Plain TopK (Gao et al. 2024): score = z."""

    needs_gradient = False

    @override
    def scores(self, z_BN: Tensor, W_dec_ND: Tensor, g_BD: Tensor | None) -> Tensor:
        """The activations themselves."""
        return z_BN


@dataclass(frozen=True)
class RandomChoice(Selector):
    """A control: positive latents in random order, drawn from torch's generator."""

    needs_gradient = False

    @override
    def scores(self, z_BN: Tensor, W_dec_ND: Tensor, g_BD: Tensor | None) -> Tensor:
        """Uniform numbers where z is positive, else 0."""
        return torch.rand_like(z_BN) * (z_BN > 0)


@checked
@dataclass(frozen=True)
class GradientAugmented(Selector):
    """The paper's rule: score = z + β z ∘ |W_decᵀ ∇_x L|.

    Removing a latent changes the loss by about -z w·g, so z |w·g| is the size of its attribution.

    Attributes:
        beta: weight β ≥ 0 of the attribution; 0 is plain TopK.
        mode: ``add`` as above, or ``mul`` for its limit of large β, score = z ∘ |W_decᵀ ∇_x L|.
        grad_norm: ``token`` divides |w·g| by its mean over the token's latents, which makes β a
            plain number and the rule blind to the scale of the loss; ``batch`` divides by the mean
            over the batch; ``none`` takes it raw, so the loss should be a sum over tokens.

    Raises:
        UserError: a knob is out of range.
    """

    beta: NonNegative = 1.0
    mode: Literal["add", "mul"] = "add"
    grad_norm: Literal["token", "batch", "none"] = "token"
    needs_gradient = True

    @torch.no_grad()
    def scores(self, z_BN: Tensor, W_dec_ND: Tensor, g_BD: Tensor | None) -> Tensor:
        """The augmented activations.

        Raises:
            ValueError: there is no gradient.
        """
        if g_BD is None:
            raise ValueError("this selector needs the gradient at the activations")
        a_BN = attribution(W_dec_ND, g_BD)
        if self.grad_norm == "token":
            a_BN /= a_BN.mean(dim=1, keepdim=True).clamp_min(TINY)
        elif self.grad_norm == "batch":
            a_BN /= a_BN.mean().clamp_min(TINY)
        if self.mode == "add":
            a_BN.mul_(self.beta).add_(1)  # z + β z a = (1 + β a) z, exactly z at β = 0
        return a_BN.mul_(z_BN)
