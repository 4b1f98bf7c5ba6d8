"""Potentials of angles: a small periodic network, a Fourier series, and a cosine prior."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from repro.knobs import Count, Known, Positive, checked
from repro.models.toys.mlp import ACTIVATIONS, MLP


class WithPrior(nn.Module):
    """A network's energy on top of a fixed one, U = U_prior + U_network.

    Args:
        network: (B, …) to energies (B,).
        prior: likewise; without parameters. None: the network alone.
    """

    def __init__(self, network: nn.Module, prior: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.prior = network, prior

    def forward(self, x: Tensor) -> Tensor:
        """Energies (B,)."""
        energy: Tensor = self.network(x)
        return energy if self.prior is None else energy + self.prior(x)


class CosinePrior(nn.Module):
    """Σ_d a_d cos(q_d − δ_d) in kJ/mol: a weak idea of each angle by itself.

    Args:
        amplitudes: a, of each angle.
        phases: δ.
    """

    def __init__(self, amplitudes: Sequence[float], phases: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("amplitudes_D", torch.tensor(list(amplitudes)), persistent=False)
        self.register_buffer("phases_D", torch.tensor(list(phases)), persistent=False)

    def forward(self, q_BD: Tensor) -> Tensor:
        """Energies (B,)."""
        amplitudes_D, phases_D = self.get_buffer("amplitudes_D"), self.get_buffer("phases_D")
        return (amplitudes_D * torch.cos(q_BD - phases_D)).sum(-1)


class TorsionNetwork(nn.Module):
    """Sines and cosines of each angle and its multiples, through a multilayer perceptron.

    Args:
        angles: D.
        orders: multiples of the angles, 1 to this.
        hidden: widths of the hidden layers.
        activation: smooth, as forces are its derivatives.
        scale: of the energy, kJ/mol.
    """

    @checked
    def __init__(
        self,
        angles: Count = 2,
        orders: Count = 2,
        hidden: Sequence[Count] = (32, 32),
        activation: Annotated[str, Known(tuple(ACTIVATIONS))] = "silu",
        scale: Positive = 10.0,
    ) -> None:
        super().__init__()
        self.scale, self.orders = scale, orders
        self.mlp = MLP([2 * orders * angles], 1, hidden, activation)

    def forward(self, q_BD: Tensor) -> Tensor:
        """Energies (B,)."""
        multiples = torch.cat([order * q_BD for order in range(1, self.orders + 1)], -1)
        features = torch.cat([multiples.sin(), multiples.cos()], -1)
        return self.scale * self.mlp(features).squeeze(-1)


class FourierPotential(nn.Module):
    """A Fourier series of the angles: linear in its coefficients, so posteriors have closed forms.

    Args:
        angles: D.
        orders: largest multiple of each angle.
        scale: of the energy, kJ/mol.
    """

    @checked
    def __init__(self, angles: Count = 2, orders: Count = 2, scale: Positive = 1.0) -> None:
        super().__init__()
        waves = itertools.product(range(-orders, orders + 1), repeat=angles)
        half = [wave for wave in waves if wave > (0,) * angles]  # cos(−k·q) is no other function
        self.scale = scale
        self.register_buffer("waves_KD", torch.tensor(half, dtype=torch.float32), persistent=False)
        self.coefficients_2K = nn.Parameter(torch.empty(2, len(half)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws coefficients of a potential of about unit size."""
        nn.init.normal_(self.coefficients_2K, std=1 / math.sqrt(self.coefficients_2K.numel()))

    def forward(self, q_BD: Tensor) -> Tensor:
        """Energies (B,)."""
        angles_BK = q_BD @ self.get_buffer("waves_KD").T
        cosines, sines = self.coefficients_2K
        return self.scale * (angles_BK.cos() @ cosines + angles_BK.sin() @ sines)
