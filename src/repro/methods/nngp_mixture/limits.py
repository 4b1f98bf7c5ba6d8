"""Finite networks of the prior, trained or not, and the laws that they tend to as they widen."""

from __future__ import annotations

import itertools
import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, checked
from repro.methods.nngp_mixture.kernels import NNGPKernel
from repro.methods.nngp_mixture.priors import InverseGamma, ScalePrior, StudentPredictive


@torch.no_grad()
@checked
def draw_features(
    x: Tensor, kernel: NNGPKernel, width: Count, networks: Count, generator: torch.Generator
) -> Tensor:
    """Last hidden activations φ(h^L) of random dense networks at m inputs, (networks, m, width).

    Given the layer below, the units of a layer are independent and exactly Gaussian, with the
    covariance w² ΦΦᵀ/n + b² over the inputs. So m × width numbers are drawn for a layer instead of
    its width × width weights, for any finite width.

    Args:
        x: (m, D) inputs.
        kernel: of the architecture.
        width: n of all hidden layers.
        networks: how many.
        generator: of the randomness.

    Raises:
        UserError: the architecture is not a plain dense one, or a count is below 1.
    """
    if kernel.kind != "dense" or kernel.residual:
        raise UserError("nngp: finite networks are drawn for plain dense architectures only.")
    w_std, b_std, _ = kernel.scales()
    x = x.double()
    k = (w_std**2 * (x @ x.T) / x.shape[1] + b_std**2).expand(networks, -1, -1)
    layers = 0
    while True:
        values, vectors = torch.linalg.eigh(k)
        root = vectors * values.clamp_min(0).sqrt()[:, None]
        units = torch.randn(networks, len(x), width, dtype=torch.float64, generator=generator)
        phi = kernel.act.function(root @ units)
        layers += 1
        if layers == kernel.depth:
            return phi
        k = w_std**2 * (phi @ phi.mT) / width + b_std**2


def trained_limit(
    K: Tensor, y: Tensor, theta: Tensor | None = None, noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean (M,) and covariance (M, M), at σ_v = 1, of infinitely wide networks trained to the end.

    Gradient flow on the squared error from random weights. Training the last layer alone gives the
    posterior of the NNGP without noise, training all layers (Lee et al., 2019, with Θ_σ = σ²Θ)

        μ = Θ_*ᵀ Θ⁻¹ y,   S = K_** + T K Tᵀ − T K_* − K_*ᵀ Tᵀ,   T = Θ_*ᵀ Θ⁻¹.

    Args:
        K: (N + M, N + M) NNGP kernel of the training inputs, then the test inputs.
        y: (N,) targets.
        theta: tangent kernel of the same inputs; None when the last layer alone is trained.
        noise: added to the diagonal of the training part of the kernel that trains.
    """
    N = len(y)
    theta = K if theta is None else theta
    eye = torch.eye(N, dtype=K.dtype, device=K.device)
    T = torch.linalg.solve(theta[:N, :N] + noise * eye, theta[:N, N:]).T
    both = torch.cat([-T, torch.eye(len(K) - N, dtype=K.dtype, device=K.device)], 1)
    return T @ y, both @ K @ both.T


def mixture_limit(mean: Tensor, variance: Tensor, prior: InverseGamma) -> StudentPredictive:
    """The law ∫ N(μ, σ² v) dIG(σ²): Student's t with ν = 2α and squared scale (β/α) v.

    It is that of networks drawn from the prior (μ = 0) and of trained ones, not the posterior,
    which would have 2α + N degrees of freedom: each trained network keeps the σ it was born with.
    """
    scale = torch.as_tensor(prior.beta / prior.alpha * variance).sqrt()
    return StudentPredictive(mean, scale, 2 * prior.alpha)


class LastLayerDescent:
    """Gradient descent on the last layers of many networks, followed in function space.

    With features fixed, a step of rate η on ½ Σ (f − y)² moves the outputs by −η σ² k̂ (f − y),
    where k̂ = ΦΦᵀ/n is the network's own kernel. That is linear: in the eigenvectors of k̂_XX every
    error shrinks by 1 − η σ² λ a step, so any number of steps costs the same, and the numbers are
    those of steps on the weights. Every network has the rate `rate` / λ_max(σ² k̂_XX), since σ²
    changes how fast a network learns, not what.

    Args:
        phi: (R, N + M, n) features at the training inputs, then the test inputs.
        y: (N,) targets.
        scale: (R,) variances σ² of the last layers.
        rate: in (0, 2), in units of the inverse of the largest curvature.
        generator: draws the last layers.

    Attributes:
        outputs: (R, N + M), of the networks as they are.
    """

    @checked
    def __init__(
        self,
        phi: Tensor,
        y: Tensor,
        scale: Tensor,
        rate: Annotated[float, Gt(0), Lt(2)],
        generator: torch.Generator,
    ) -> None:
        N, width = len(y), phi.shape[2]
        v = torch.randn(*phi.shape[::2], 1, dtype=phi.dtype, generator=generator)
        self.y = y
        self.outputs = (scale / width).sqrt()[:, None] * (phi @ v)[..., 0]
        kernel = (phi @ phi[:, :N].mT) / width  # (R, N + M, N)
        self.values, self.vectors = torch.linalg.eigh(kernel[:, :N])
        self.step_size = rate / self.values[:, -1:]
        self.moves = kernel @ self.vectors

    def step(self, steps: int = 1) -> Tensor:
        """Takes steps; returns the mean squared error of the training targets."""
        N = len(self.y)
        error = self.outputs[:, :N] - self.y
        along = (self.vectors.mT @ error[..., None])[..., 0]
        # Σ_{t < steps} (1 − ηλ)^t, which is `steps` where λ is zero to rounding.
        left = 1 - self.step_size * self.values
        total = torch.where(left == 1, torch.full_like(left, steps), (1 - left**steps) / (1 - left))
        travelled = self.step_size * total * along
        self.outputs = self.outputs - (self.moves @ travelled[..., None])[..., 0]
        return (self.outputs[:, :N] - self.y).square().mean()


class WideNetworks(nn.Module):
    """Many dense networks of the NTK parametrisation at once, each with its own last-layer scale.

    Args:
        kernel: of the architecture (depth, activation, scales).
        inputs: D.
        width: n of the hidden layers.
        networks: R.
        prior: of σ_v², drawn once for each network.
        generator: of the weights and the scales.

    Raises:
        UserError: the architecture is not a plain dense one.
    """

    def __init__(
        self,
        kernel: NNGPKernel,
        inputs: int,
        width: int,
        networks: int,
        prior: ScalePrior,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if kernel.kind != "dense" or kernel.residual:
            raise UserError("nngp: finite networks are built for plain dense architectures only.")
        self.scale: Tensor  # (networks,) the variances σ_v²
        self.act, self.width = kernel.act, width
        self.w_std, self.b_std, _ = (scale.item() for scale in kernel.scales())
        sizes = [inputs] + [width] * kernel.depth

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(
                torch.randn(networks, *shape, dtype=torch.float64, generator=generator)
            )

        self.weights = nn.ParameterList(
            [normal(before, after) for before, after in itertools.pairwise(sizes)]
        )
        self.biases = nn.ParameterList([normal(1, width) for _ in range(kernel.depth)])
        self.readout = normal(width, 1)
        self.register_buffer("scale", prior.sample((networks,), generator))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (R, m) at inputs (m, D)."""
        h = x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = self.w_std / math.sqrt(weight.shape[1]) * (h @ weight) + self.b_std * bias
            h = self.act.function(h)
        sigma = (self.scale / self.width).sqrt()
        return sigma[:, None] * (h @ self.readout)[..., 0]


@torch.no_grad()
def heavy_tailed_readout(
    layer: nn.Linear, prior: ScalePrior, generator: torch.Generator | None = None
) -> float:
    """Multiplies the last layer's weights by one draw of σ ~ √H; returns σ.

    For ensembles of ordinary networks: each member draws its own scale before it is trained.
    """
    sigma = float(prior.sample((1,), generator).sqrt())
    layer.weight.mul_(sigma)
    return sigma
