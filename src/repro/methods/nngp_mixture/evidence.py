"""Training everything on the evidence: the kernel's scales, the noise, the prior of the scale."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from repro.knobs import Positive, checked
from repro.methods.nngp_mixture.kernels import NNGPKernel, unsoftplus
from repro.methods.nngp_mixture.priors import FixedScale, InverseGamma, ScalePrior
from repro.methods.nngp_mixture.regression import Fit, condition, condition_kernel


class TrainedProcess(nn.Module):
    """A Gaussian or t process whose kernel, noise and prior are trained on the evidence.

    Shapes: N training examples x (N, …) with targets y (N,).

    Args:
        kernel: its starting point.
        noise: likewise, positive.
        alpha: of the inverse gamma prior; None for the NNGP, whose scale is in the kernel.
        beta: likewise.
    """

    @checked
    def __init__(
        self,
        kernel: NNGPKernel,
        noise: Positive,
        alpha: Positive | None = None,
        beta: Positive = 2.0,
    ) -> None:
        super().__init__()
        self.kernel, self.is_student = copy.deepcopy(kernel), alpha is not None
        self.raw_noise = nn.Parameter(unsoftplus([noise]))
        if alpha is not None:
            self.raw_prior = nn.Parameter(unsoftplus([alpha, beta]))

    @property
    def prior(self) -> ScalePrior:
        """The prior as it stands."""
        if not self.is_student:
            return FixedScale()
        alpha, beta = F.softplus(self.raw_prior)
        return InverseGamma(alpha, beta)

    @property
    def noise(self) -> Tensor:
        """ε as it stands, a scalar."""
        return F.softplus(self.raw_noise)[0]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The negative log-evidence of the training set, per example."""
        fit = condition(self.kernel(x), y[:, None][:, :0], y[:0], y, self.noise)
        return -self.prior.log_evidence(fit) / fit.size

    def fit(self, x: Tensor, y: Tensor, x_star: Tensor) -> Fit:
        """Conditions on the training set, to predict at other inputs."""
        return condition_kernel(self.kernel, x, y, x_star, self.noise)
