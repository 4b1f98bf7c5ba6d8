"""Exact posterior means and scores of noised finite laws and Gaussian mixtures.

x_t = α x_0 + √h ε with standard normal ε. Where x_0 is one of K points, or comes from a mixture of
spherical Gaussians, E[x_0 | x_t] is a weighted mean, the weights a softmax; Tweedie's formula makes
the score of it: ``∇ log p_t(x) = (α E[x_0 | x_t = x] − x) / h``.

Tensors carry their shape: B examples, D dimensions, K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.knobs import NonNegative, checked
from repro.toolbox.diffusion import Predictor, VPProcess


@checked
@dataclass(frozen=True)
class PointMixture:
    """A finite law, or the mixture of spherical Gaussians around its points.

    Attributes:
        points: (K, D), points or means.
        weights: (K,), their probabilities.
        variance: of every coordinate around a point; 0 for the finite law.
    """

    points: Tensor
    weights: Tensor
    variance: NonNegative = 0.0

    @classmethod
    def uniform(cls, points: Tensor, variance: float = 0.0) -> PointMixture:
        """Equal probabilities."""
        K = len(points)
        return cls(points, torch.full((K,), 1 / K).to(points), variance)

    @property
    def dim(self) -> int:
        """D."""
        return self.points.shape[1]

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Draws x_0, (size, D)."""
        chosen = torch.multinomial(self.weights.cpu(), size, True, generator=generator)
        x = self.points[chosen.to(self.points.device)]
        if self.variance:
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x = x + math.sqrt(self.variance) * noise.to(x)
        return x

    def posterior_mean(self, x_BD: Tensor, alpha_B: Tensor, h_B: Tensor) -> Tensor:
        """E[x_0 | x_t], (B, D), for signal α and noise variance h > 0 of each example."""
        alpha, total = alpha_B[:, None], self._variance(alpha_B, h_B)[:, None]
        means_BD = self._log_joint(x_BD, alpha_B, h_B).softmax(1) @ self.points
        if not self.variance:
            return means_BD
        return means_BD + alpha * self.variance / total * (x_BD - alpha * means_BD)

    def score(self, x_BD: Tensor, alpha_B: Tensor, h_B: Tensor) -> Tensor:
        """∇ log p_t, (B, D)."""
        return tweedie(self.posterior_mean(x_BD, alpha_B, h_B), x_BD, alpha_B, h_B)

    def log_density(self, x_BD: Tensor, alpha_B: Tensor, h_B: Tensor) -> Tensor:
        """The log density of x_t, (B,)."""
        scale = 0.5 * self.dim * torch.log(2 * math.pi * self._variance(alpha_B, h_B))
        return self._log_joint(x_BD, alpha_B, h_B).logsumexp(1) - scale

    def _variance(self, alpha_B: Tensor, h_B: Tensor) -> Tensor:
        return alpha_B.square() * self.variance + h_B

    def _log_joint(self, x_BD: Tensor, alpha_B: Tensor, h_B: Tensor) -> Tensor:
        """Log of weight times likelihood, (B, K), but for a constant of each row."""
        # ‖x − αμ‖² term by term: one matrix product, and no (B, K, D).
        squares_BK = (
            x_BD.square().sum(1, keepdim=True)
            - 2 * alpha_B[:, None] * (x_BD @ self.points.mT)
            + alpha_B.square()[:, None] * self.points.square().sum(1)
        )
        return self.weights.log() - squares_BK / (2 * self._variance(alpha_B, h_B)[:, None])


def tweedie(mean_BD: Tensor, x_BD: Tensor, alpha_B: Tensor, h_B: Tensor) -> Tensor:
    """The score, (B, D), that belongs to a posterior mean of x_0."""
    return (alpha_B[:, None] * mean_BD - x_BD) / h_B[:, None]


def noise_in(law: PointMixture, process: VPProcess) -> Predictor:
    """The best predictor of the noise in x_t, (B, D), at times (B,): ``-σ`` times the score."""

    def predict(x_BD: Tensor, time_B: Tensor) -> Tensor:
        alpha_bar_B = process.alpha_bar(time_B)
        alpha_B, h_B = alpha_bar_B.sqrt(), 1 - alpha_bar_B
        mean_BD = law.posterior_mean(x_BD, alpha_B, h_B)
        return (x_BD - alpha_B[:, None] * mean_BD) / h_B.sqrt()[:, None]

    return predict
