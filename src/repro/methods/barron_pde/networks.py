"""Two-layer networks for solutions: sampled from a spectrum (Maurey), or trained on the energy.

Tensors carry their shape: N points, D dimensions, K units, M terms of a spectrum, R repetitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from repro.knobs import Count, Known, Positive, checked
from repro.methods.barron_pde.energies import Energy, Reaction
from repro.methods.barron_pde.spectrum import Spectrum

Jet = tuple[Tensor, Tensor, Tensor]  # σ, σ′, σ″


def _cos_jet(t: Tensor) -> Jet:
    cos = t.cos()
    return cos, -t.sin(), -cos


def _tanh_jet(t: Tensor) -> Jet:
    tanh = t.tanh()
    slope = 1 - tanh.square()
    return tanh, slope, -2 * tanh * slope


ACTIVATIONS: dict[str, Callable[[Tensor], Jet]] = {"cos": _cos_jet, "tanh": _tanh_jet}


class TwoLayer(nn.Module):
    """u(x) = Σ_k c_k σ(w_k·x + b_k) + c_0.

    Args:
        D: inputs.
        units: K.
        activation: σ.
        spread: standard deviation of the hidden weights at the start.
    """

    @checked
    def __init__(
        self,
        D: Count,
        units: Count,
        activation: Annotated[str, Known(tuple(ACTIVATIONS))] = "cos",
        spread: Positive = 1.0,
    ) -> None:
        super().__init__()
        self.weight_KD = nn.Parameter(spread * torch.randn(units, D))
        self.bias_K = nn.Parameter(2 * math.pi * torch.rand(units))
        self.outer_K = nn.Parameter(torch.randn(units) / units)
        self.shift = nn.Parameter(torch.zeros(()))
        self.activation = activation

    def forward(self, x_ND: Tensor) -> Tensor:
        """The values (N,)."""
        sigma_NK, _, _ = self._jet(x_ND)
        return sigma_NK @ self.outer_K + self.shift

    def derivatives(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns u (N,), ∇u (N, D) and Δu (N,), in closed form."""
        sigma_NK, slope_NK, bend_NK = self._jet(x_ND)
        u_N = sigma_NK @ self.outer_K + self.shift
        z_ND = slope_NK @ (self.outer_K[:, None] * self.weight_KD)
        laplacian_N = bend_NK @ (self.outer_K * self.weight_KD.square().sum(1))
        return u_N, z_ND, laplacian_N

    def path_norm(self) -> float:
        """Σ|c_k|(1 + ‖w_k‖) + |c_0|: the Barron norm of a network of cosines."""
        size_K = self.outer_K.abs() * (1 + self.weight_KD.norm(dim=1))
        return float((size_K.sum() + self.shift.abs()).detach())

    def _jet(self, x_ND: Tensor) -> Jet:
        return ACTIVATIONS[self.activation](x_ND @ self.weight_KD.T + self.bias_K)


@checked
def maurey_network(
    u: Spectrum,
    units: Count,
    generator: torch.Generator | None = None,
    sample: Literal["amplitude", "uniform"] = "amplitude",
) -> TwoLayer:
    """A network of cosines whose mean over draws is u: u_k = (1/k) Σ_j (a_j/p_j) cos(ω_j·x + φ_j).

    Args:
        u: what is approximated.
        units: k.
        generator: of the draws.
        sample: p in proportion to |a|, as in Maurey's argument; or uniform, a control.
    """
    p_M = _probabilities(u, sample)
    chosen_K = torch.multinomial(p_M, units, replacement=True, generator=generator)
    a_K = u.a[chosen_K]
    network = TwoLayer(u.dim, units, "cos").to(p_M.dtype)
    with torch.no_grad():
        network.weight_KD.copy_(u.unit * u.omega[chosen_K])
        network.bias_K.copy_(torch.angle(a_K))
        network.outer_K.copy_(a_K.abs() / (units * p_M[chosen_K]))
    return network


@checked
def maurey_errors(
    u: Spectrum,
    units: Count,
    repetitions: Count,
    generator: torch.Generator | None = None,
    sample: Literal["amplitude", "uniform"] = "amplitude",
) -> Tensor:
    """The squared errors (R,) of L² of `maurey_network`, exact: from how often terms are drawn.

    Args:
        u: what is approximated.
        units: k.
        repetitions: R.
        generator: of the draws.
        sample: see `maurey_network`.
    """
    p_M = _probabilities(u, sample)
    drawn_RK = torch.multinomial(
        p_M.expand(repetitions, -1), units, replacement=True, generator=generator
    )
    share_RM = torch.zeros(repetitions, len(u), dtype=p_M.dtype, device=p_M.device)
    share_RM.scatter_add_(1, drawn_RK, torch.full_like(drawn_RK, 1 / units, dtype=p_M.dtype))
    weight_M = torch.where(u.key == 0, 1.0, 0.5).to(p_M.dtype)
    return (u.a.abs().square() * weight_M * (share_RM / p_M - 1).square()).sum(1)


def maurey_variance(u: Spectrum, sample: Literal["amplitude", "uniform"] = "amplitude") -> float:
    """Returns k E‖u − u_k‖²: Σ_m E cos² |a_m|²/p_m − ‖u‖², with E cos² = ½ (1 for ω = 0)."""
    p_M = _probabilities(u, sample)
    weight_M = torch.where(u.key == 0, 1.0, 0.5).to(p_M.dtype)
    return float((weight_M * u.a.abs().square() / p_M).sum()) - u.inner(u)


def _probabilities(u: Spectrum, sample: str) -> Tensor:
    size_M = u.a.abs()
    return size_M / size_M.sum() if sample == "amplitude" else torch.full_like(size_M, 1 / len(u))


def deep_ritz_loss(network: TwoLayer, energy: Energy[Spectrum], x_ND: Tensor) -> Tensor:
    """E(u) by Monte Carlo at points that are uniform on the period."""
    u_N, z_ND, _ = network.derivatives(x_ND)
    return (energy.density(u_N, z_ND) - energy.f(x_ND) * u_N).mean()


def residual_loss(network: TwoLayer, energy: Reaction[Spectrum], x_ND: Tensor) -> Tensor:
    """Mean squared residual of −Δu + u + αu^p = f at points: physics-informed training."""
    u_N, _, laplacian_N = network.derivatives(x_ND)
    r_N = u_N - laplacian_N + energy.alpha * u_N**energy.power - energy.f(x_ND)
    return r_N.square().mean()
