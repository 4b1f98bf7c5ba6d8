"""Priors H of the variance σ² of the last layer, and the predictions that follow from them.

f | σ² ~ GP(0, σ² K) with σ² ~ H is a scale mixture of the NNGP. A fixed σ² is the NNGP itself; an
inverse gamma law gives Student's t process; any law that can be sampled is integrated by importance
sampling with the prior as proposal, which needs the one solve of `repro.methods.nngp_mixture.Fit`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor
from torch.distributions import StudentT
from typing_extensions import override

from repro.errors import UserError
from repro.internals import standard_gamma
from repro.methods.nngp_mixture.regression import Fit

LOG_2PI = math.log(2 * math.pi)


class Predictive(ABC):
    """The law of single targets, (…, M); `mean` is its location."""

    mean: Tensor

    @abstractmethod
    def log_prob(self, y: Tensor) -> Tensor:
        """Log-densities (…, M) of targets (M,)."""

    @abstractmethod
    def cdf(self, y: Tensor) -> Tensor:
        """Probabilities (…, M) of lying below the targets (M,)."""

    def nll(self, y: Tensor) -> Tensor:
        """Mean negative log-density of the targets, (…)."""
        return -self.log_prob(y).mean(-1)

    def coverage(self, y: Tensor, level: float = 0.95) -> Tensor:
        """Share of the targets within their central intervals of this level, (…)."""
        return ((self.cdf(y) - 0.5).abs() <= level / 2).double().mean(-1)


@dataclass(frozen=True)
class StudentPredictive(Predictive):
    """Student's t with ν degrees of freedom; Gaussian for ν = ∞.

    Attributes:
        mean: (…, M) location.
        scale: (…, M), positive.
        df: ν, a number or a tensor that broadcasts.
    """

    mean: Tensor
    scale: Tensor
    df: Any = math.inf

    def log_prob(self, y: Tensor) -> Tensor:
        """Log-densities."""
        if not isinstance(self.df, Tensor) and math.isinf(self.df):
            return -0.5 * (((y - self.mean) / self.scale).square() + LOG_2PI) - self.scale.log()
        return StudentT(self.df, self.mean, self.scale, validate_args=False).log_prob(y)

    def cdf(self, y: Tensor) -> Tensor:
        """Probabilities; without gradient."""
        z = ((y - self.mean) / self.scale).detach().cpu().numpy()
        df = self.df.detach().cpu().numpy() if isinstance(self.df, Tensor) else self.df
        law = stats.norm if not isinstance(self.df, Tensor) and math.isinf(df) else stats.t(df)
        return torch.from_numpy(law.cdf(z)).to(y.device)


@dataclass(frozen=True)
class MixturePredictive(Predictive):
    """Gaussians of one mean, with variances s_i v and weights w_i.

    Attributes:
        mean: (…, M).
        variance: (…, M), v.
        scales: (S,), s.
        log_weights: (S, …), summing to 1.
    """

    mean: Tensor
    variance: Tensor
    scales: Tensor
    log_weights: Tensor

    def _standardised(self, y: Tensor) -> tuple[Tensor, Tensor]:
        column = self.scales.view(-1, *[1] * self.mean.dim())
        std = (column * self.variance).sqrt()
        return (y - self.mean) / std, std

    def log_prob(self, y: Tensor) -> Tensor:
        """Log-densities."""
        z, std = self._standardised(y)
        terms = -0.5 * (z.square() + LOG_2PI) - std.log() + self.log_weights[..., None]
        return torch.logsumexp(terms, 0)

    def cdf(self, y: Tensor) -> Tensor:
        """Probabilities."""
        z, _ = self._standardised(y)
        return (torch.special.ndtr(z) * self.log_weights[..., None].exp()).sum(0)

    @property
    def effective_samples(self) -> Tensor:
        """1 / Σ w_i² (…): how many of the S samples count."""
        return 1 / (2 * self.log_weights).exp().sum(0)


class ScalePrior(ABC):
    """A law H of σ². Subclasses that know better than importance sampling override the rest.

    Attributes:
        samples: S of importance sampling.
        seed: of its draws, the same for all fits, so that these can be compared.
    """

    samples: int = 1000
    seed: int = 0

    @abstractmethod
    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draws variances σ², float64."""

    def importance(self, fit: Fit) -> tuple[Tensor, Tensor]:
        """Draws s (S,) of the prior, and the log-evidence (S, …) of the data at each."""
        draws = self.sample((self.samples,), torch.Generator().manual_seed(self.seed))
        draws = draws.to(fit.mean.device)
        column = draws.view(-1, *[1] * fit.quadratic.dim())
        return draws, fit.gaussian_evidence(column)

    def log_evidence(self, fit: Fit) -> Tensor:
        """Log of ∫ N(y; 0, σ² C) dH(σ²), of the shape of ``fit.quadratic``."""
        draws, logs = self.importance(fit)
        return torch.logsumexp(logs, 0) - math.log(len(draws))

    def predict(self, fit: Fit) -> Predictive:
        """The law of test targets given the training targets."""
        draws, logs = self.importance(fit)
        return MixturePredictive(fit.mean, fit.variance, draws, torch.log_softmax(logs, 0))


@dataclass(frozen=True)
class FixedScale(ScalePrior):
    """σ² is known: the NNGP.

    Attributes:
        variance: σ², positive.
    """

    variance: Any = 1.0

    def __post_init__(self) -> None:
        _positive(variance=self.variance)

    @override
    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Copies of the value."""
        return torch.full(tuple(shape), float(self.variance), dtype=torch.float64)

    def log_evidence(self, fit: Fit) -> Tensor:
        """The Gaussian log N(y; 0, σ² C)."""
        return fit.gaussian_evidence(torch.as_tensor(self.variance).to(fit.quadratic))

    def predict(self, fit: Fit) -> StudentPredictive:
        """A Gaussian."""
        return StudentPredictive(fit.mean, (self.variance * fit.variance).sqrt())


@dataclass(frozen=True)
class LikeliestScale(ScalePrior):
    """σ² = q / N, which maximises the evidence: the NNGP with its scale fitted (type II)."""

    @override
    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Without data there is no such scale.

        Raises:
            UserError: always.
        """
        raise UserError("nngp: the likeliest scale is that of given data; there is no prior draw.")

    def log_evidence(self, fit: Fit) -> Tensor:
        """The greatest, over σ², of log N(y; 0, σ² C)."""
        return fit.gaussian_evidence(fit.quadratic / fit.size)

    def predict(self, fit: Fit) -> StudentPredictive:
        """A Gaussian."""
        scale = (fit.quadratic / fit.size)[..., None]
        return StudentPredictive(fit.mean, (scale * fit.variance).sqrt())


@dataclass(frozen=True)
class InverseGamma(ScalePrior):
    """σ² ~ IG(α, β), so that the process is Student's with 2α degrees of freedom and (β/α) K.

    All results are closed forms; α and β may be tensors with gradients.

    Attributes:
        alpha: shape, positive.
        beta: scale, positive (torch's Gamma would call it the rate of 1/σ²).
    """

    alpha: Any = 2.0
    beta: Any = 2.0

    def __post_init__(self) -> None:
        _positive(alpha=self.alpha, beta=self.beta)

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """β / Gamma(α, 1)."""
        concentration = torch.full(tuple(shape), float(self.alpha), dtype=torch.float64)
        # The sampler behind torch.distributions.Gamma, which takes no generator.
        gamma = standard_gamma(concentration, generator=generator)
        return float(self.beta) / gamma

    def log_evidence(self, fit: Fit) -> Tensor:
        """Log-density of y under the multivariate t with ν = 2α and the matrix (β/α) C."""
        N, alpha, beta = fit.size, *self._parameters(fit)
        return (
            torch.lgamma(alpha + N / 2)
            - torch.lgamma(alpha)
            - 0.5 * (N * (2 * math.pi * beta).log() + fit.logdet)
            - (alpha + N / 2) * torch.log1p(fit.quadratic / (2 * beta))
        )

    def posterior(self, fit: Fit) -> tuple[Tensor, Tensor]:
        """σ² | y ~ IG(α + N/2, β + q/2)."""
        alpha, beta = self._parameters(fit)
        return alpha + fit.size / 2, beta + fit.quadratic / 2

    def predict(self, fit: Fit) -> StudentPredictive:
        """Student's t with 2α + N degrees of freedom."""
        alpha, beta = self.posterior(fit)
        scale = ((beta / alpha)[..., None] * fit.variance).sqrt()
        return StudentPredictive(fit.mean, scale, 2 * alpha)

    def _parameters(self, fit: Fit) -> tuple[Tensor, Tensor]:
        alpha, beta = (torch.as_tensor(p).to(fit.quadratic) for p in (self.alpha, self.beta))
        return alpha, beta


@dataclass(frozen=True)
class BurrXII(ScalePrior):
    """σ² ~ Burr XII with density c d s^(c−1) (1 + s^c)^(−d−1): scipy's ``burr12(c, d)``.

    Attributes:
        c: positive.
        d: positive.
        samples: see `ScalePrior`.
        seed: likewise.
    """

    c: float = 1.0
    d: float = 1.0
    samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(c=self.c, d=self.d, samples=self.samples)

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """By inversion."""
        u = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return torch.expm1(-torch.log1p(-u) / self.d) ** (1 / self.c)


def fixed_scales(variances: Sequence[float]) -> list[FixedScale]:
    """A fixed scale for each variance, to choose from."""
    return [FixedScale(variance) for variance in variances]


def burr_laws(cs: Sequence[float], ds: Sequence[float]) -> list[BurrXII]:
    """A law for each pair of c and d, to choose from."""
    return [BurrXII(c, d) for c in cs for d in ds]


@dataclass(frozen=True)
class Sampled(ScalePrior):
    """Another prior by importance sampling, although it has closed forms: to compare the two.

    Attributes:
        prior: the other one.
        samples: see `ScalePrior`.
        seed: likewise.
    """

    prior: ScalePrior
    samples: int = 1000
    seed: int = 0

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Draws of the other prior."""
        return self.prior.sample(shape, generator)


def sample_process(
    K: Tensor,
    prior: ScalePrior,
    draws: int,
    generator: torch.Generator | None = None,
    shared: bool = True,
) -> Tensor:
    """Draws (draws, N) of the process at N inputs.

    Args:
        K: (N, N) kernel matrix.
        prior: of σ².
        draws: how many.
        generator: of the randomness.
        shared: one σ² for all inputs of a draw, as the process has. False imitates the authors'
            code, where every coordinate has its own; that is no multivariate t.
    """
    values, vectors = torch.linalg.eigh(K)
    noise = torch.randn(draws, len(K), generator=generator, dtype=K.dtype)
    scale = prior.sample((draws, 1 if shared else len(K)), generator).sqrt()
    root = vectors * values.clamp_min(0).sqrt()
    return scale * (noise @ root.T) if shared else (scale * noise) @ root.T


def _positive(**parameters: Any) -> None:
    for name, value in parameters.items():
        if not bool(torch.as_tensor(value) > 0):
            raise UserError(f"nngp: {name} of the scale prior is positive, not {value}.")
