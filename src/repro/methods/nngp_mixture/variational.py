"""Sparse variational inference for classification: the NNGP (SVGP) and its t mixture (SVTP)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.internals import standard_gamma
from repro.knobs import Count, Positive, checked
from repro.methods.nngp_mixture.kernels import unsoftplus


class SparseProcess(nn.Module):
    """C latent functions with M inducing inputs Z, under one common random scale σ².

    The prior is u_c | σ² ~ N(0, σ² K_ZZ) with σ² ~ IG(α, β); the posterior is sought among
    q(σ²) = IG(a, b), q(u_c | σ²) = N(m_c, σ² diag(s_c)). With A = K_xZ (K_ZZ + εI)⁻¹,

        f_c(x) | σ² ~ N(A m_c, σ² [A diag(s_c) Aᵀ + K_xx − A K_Zx]),

    and σ² integrated out gives Student's t with 2a degrees of freedom. Without a prior (``alpha``
    None) σ² is 1: the usual sparse variational Gaussian process. Everything is float64.

    Args:
        kernel: called with (x, z), and with x alone; has `with_diagonals`.
        inducing: (M, …) the first Z; trained.
        classes: C.
        alpha: shape of the prior of σ², or None for a fixed scale.
        beta: its scale.
        jitter: ε.
        sampling: ``shared`` draws one σ² for all points and classes, as the process has;
            ``official_iid`` one for each, as the authors' code does at test time.

    Raises:
        UserError: a value is out of its range.
    """

    @checked
    def __init__(
        self,
        kernel: Any,
        inducing: Tensor,
        classes: Count,
        alpha: Positive | None = None,
        beta: Positive = 2.0,
        jitter: float = 1e-6,
        sampling: Literal["shared", "official_iid"] = "shared",
    ) -> None:
        super().__init__()
        self.kernel, self.alpha, self.beta = kernel, alpha, beta
        self.jitter, self.sampling = jitter, sampling
        M = len(inducing)
        self.inducing = nn.Parameter(inducing.double().clone())
        self.mean = nn.Parameter(torch.zeros(M, classes, dtype=torch.float64))
        self.raw_variance = nn.Parameter(unsoftplus(torch.ones(M, classes)))
        if alpha is not None:
            self.raw_scale = nn.Parameter(unsoftplus([alpha, beta]))

    @property
    def variance(self) -> Tensor:
        """The diagonals s_c, (M, C)."""
        return F.softplus(self.raw_variance)

    def scale_posterior(self) -> tuple[Tensor, Tensor]:
        """The parameters a and b of q(σ²)."""
        a, b = F.softplus(self.raw_scale)
        return a, b

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at σ² = 1 of every f_c(x), both (B, C)."""
        _, _, mean, variance = self._solve(x)
        return mean, variance

    def sample(self, x: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the latent functions at x, (S, B, C), reparametrised."""
        return self._draw(*self.marginals(x), samples, generator)

    def elbo(
        self,
        x: Tensor,
        y: Tensor,
        size: int,
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Evidence lower bound per training example, estimated on a batch.

        Args:
            x: (B, …).
            y: (B,) labels.
            size: N, examples in the training set.
            samples: draws of the expectation.
            generator: of those draws.
        """
        L, whitened, mean, variance = self._solve(x)
        logits = self._draw(mean, variance, samples, generator)
        log_prob = torch.log_softmax(logits, -1).gather(-1, y.expand(samples, -1)[..., None])
        return log_prob.mean() - self._divergence(L, whitened) / size

    def divergence(self) -> Tensor:
        """KL(q(u, σ²) ‖ p(u, σ²)), a scalar."""
        return self._divergence(*self._factor())

    def log_predictive(
        self, x: Tensor, samples: int, generator: torch.Generator | None = None, chunk: int = 100
    ) -> Tensor:
        """Log of the class probabilities averaged over draws, (B, C); `chunk` draws at a time."""
        mean, variance = self.marginals(x)
        parts = []
        for start in range(0, samples, chunk):
            draws = self._draw(mean, variance, min(chunk, samples - start), generator)
            parts.append(torch.log_softmax(draws, -1).logsumexp(0))
        total = torch.stack(parts).logsumexp(0)
        return total - torch.log(torch.tensor(float(samples), dtype=total.dtype))

    def _factor(self) -> tuple[Tensor, Tensor]:
        """Cholesky factor L of K_ZZ + εI, and L⁻¹ [m, I]."""
        K = self.kernel(self.inducing)
        eye = torch.eye(len(K), dtype=K.dtype, device=K.device)
        L = torch.linalg.cholesky(K + self.jitter * eye)
        both = torch.cat([self.mean, eye], 1)
        return L, torch.linalg.solve_triangular(L, both, upper=False)

    def _solve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        L, whitened = self._factor()
        K_xZ, K_xx = self.kernel.with_diagonals(x, self.inducing)
        inverse = whitened[:, self.mean.shape[1] :]  # L⁻¹
        W_BM = K_xZ @ inverse.T
        A_BM = W_BM @ inverse
        left = (K_xx - W_BM.square().sum(1)).clamp_min(1e-12)
        variance = A_BM.square() @ self.variance + left[:, None]
        return L, whitened, A_BM @ self.mean, variance

    def _divergence(self, L: Tensor, whitened: Tensor) -> Tensor:
        M, C = self.mean.shape
        m_white, inverse = whitened[:, :C], whitened[:, C:]
        s = self.variance
        gaussian = (
            2 * C * L.diagonal().log().sum()
            - s.log().sum()
            - C * M
            + (inverse.square().sum(0)[:, None] * s).sum()
        )
        squares = m_white.square().sum()
        if self.alpha is None:
            return 0.5 * (gaussian + squares)
        a, b = self.scale_posterior()
        # E_q[1/σ²] = a/b
        return 0.5 * (gaussian + a / b * squares) + inverse_gamma_kl(a, b, self.alpha, self.beta)

    def _draw(
        self, mean: Tensor, variance: Tensor, samples: int, generator: torch.Generator | None
    ) -> Tensor:
        noise = torch.randn(
            samples, *mean.shape, dtype=mean.dtype, device=mean.device, generator=generator
        )
        if self.alpha is None:
            return mean + variance.sqrt() * noise
        a, b = self.scale_posterior()
        shape = (samples, 1, 1) if self.sampling == "shared" else (samples, *mean.shape)
        gamma = standard_gamma(a.expand(shape), generator=generator)
        return mean + (b / gamma * variance).sqrt() * noise


def inverse_gamma_kl(a: Tensor, b: Tensor, alpha: float, beta: float) -> Tensor:
    """KL(IG(a, b) ‖ IG(α, β)) = α ln(b/β) − lnΓ(a) + lnΓ(α) + (a−α) ψ(a) + a (β−b)/b."""
    gamma = torch.lgamma(torch.as_tensor(alpha, dtype=a.dtype, device=a.device))
    return (
        alpha * (b / beta).log()
        - torch.lgamma(a)
        + gamma
        + (a - alpha) * torch.digamma(a)
        + a * (beta - b) / b
    )
