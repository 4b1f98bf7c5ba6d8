"""What wireless simulators draw: batches of cells, and of networks without cells, with their rates.

Tensors carry their shape: B batch, K users, N antennas of a user, M antennas of the base station,
L access points, S = K d streams in the order of the users, d to each. Total power P = 1 in a cell.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Downlink(NamedTuple):
    """A batch of cells.

    Attributes:
        H: (B, K, N, M) complex, the true channels; row n of user k is what antenna n hears.
        snr: (B,) positive, P/σ².
        known: (B, K, N, M), what the base station believes; equals H when it knows all.
    """

    H: Tensor
    snr: Tensor
    known: Tensor

    @classmethod
    def of(cls, H: Tensor, snr: Tensor | float) -> Downlink:
        """Cells with perfectly known channels.

        Args:
            H: (B, K, M) for users with one antenna, or (B, K, N, M).
            snr: (B,), or one number for all.
        """
        H = H.unsqueeze(-2) if H.dim() == 3 else H
        snr = torch.as_tensor(snr, dtype=H.real.dtype, device=H.device).expand(len(H))
        return cls(H, snr, H)

    def streams(self) -> Tensor:
        """Known channels of the streams, (B, S, M): one node each in the network's graph.

        Users with several antennas combine them by their left singular vectors, strongest first.
        """
        if self.known.shape[-2] == 1:
            return self.known.squeeze(-2)
        _, values, right = torch.linalg.svd(self.known, full_matrices=False)
        return (values[..., None] * right).flatten(1, 2)

    def rates(self, W: Tensor) -> Tensor:
        """Spectral efficiencies of the users under a precoder.

        R_k = log2 det(I + W_kᴴ H_kᴴ (σ²I + Σ_{j≠k} H_k W_j W_jᴴ H_kᴴ)⁻¹ H_k W_k).

        Args:
            W: (B, M, S) precoder with ‖W‖² ≤ 1.

        Returns:
            (B, K), bits per second and hertz.
        """
        N = self.H.shape[-2]
        received = heard(self.H, W)  # (B, K, N, K, d)
        own = torch.diagonal(received, dim1=1, dim2=3).permute(0, 3, 1, 2)  # (B, K, N, d)
        noise = 1 / self.snr
        if N == 1:
            power = square(received).sum((-3, -1))  # (B, K, K)
            signal = torch.diagonal(power, dim1=-2, dim2=-1)
            return torch.log2(1 + signal / (power.sum(-1) - signal + noise[:, None]))
        flat = received.flatten(-2)
        total = flat @ flat.mH + noise[:, None, None, None] * torch.eye(N, device=W.device)
        with_own, without = (torch.linalg.slogdet(x)[1] for x in (total, total - own @ own.mH))
        return (with_own - without) / math.log(2)

    def power_error(self, W: Tensor) -> Tensor:
        """The largest part by which precoders (B, M, S) miss the power."""
        return (W.abs().square().sum((-2, -1)) - 1).abs().max()

    def permuted(self, users: Tensor, antennas: Tensor) -> Downlink:
        """The same cells with users and the base station's antennas in another order."""
        H, known = (each[:, users][..., antennas] for each in (self.H, self.known))
        return Downlink(H, self.snr, known)

    def permuted_decision(self, W: Tensor, users: Tensor, antennas: Tensor) -> Tensor:
        """A precoder for these cells, as it is for the `permuted` ones."""
        of_users = W.unflatten(-1, (self.H.shape[1], -1))
        return of_users[:, antennas][:, :, users].flatten(-2)


class CellFree(NamedTuple):
    """A batch of networks.

    Attributes:
        beta: (B, L, K) positive, large-scale gains over the noise, 1/W.
        mask: (B, L, K) boolean, which access point serves which user.
        antennas: (B, L), antennas of the access points.
        limit: (B, L), largest transmit power, W.
        pilot_energy: (B,), energy of a user's pilot, W times symbols.
        pilots: (B, K) integers; users with the same number share a pilot.
    """

    beta: Tensor
    mask: Tensor
    antennas: Tensor
    limit: Tensor
    pilot_energy: Tensor
    pilots: Tensor

    def estimated(self) -> Tensor:
        """γ (B, L, K): the part of each gain that the pilots reveal.

        γ_lk = τp β_lk² / (τp Σ_i β_li + σ²), summed over the users i with k's pilot.
        """
        energy = self.pilot_energy[:, None, None]
        heard = self.beta @ self._shared().to(self.beta.dtype)
        return energy * self.beta.square() / (energy * heard + 1)

    def rates(self, power: Tensor) -> Tensor:
        """Spectral efficiencies of the users.

        SINR_k = D_kk² / (Σ_i Σ_l ρ_li β_lk + Σ_{i≠k with k's pilot} D_ki² + σ²) with
        D_ki = Σ_l √(ρ_li N_l γ_lk).

        Args:
            power: ρ, (B, L, K), not negative.

        Returns:
            (B, K), bits per second and hertz.
        """
        # The floor keeps the gradient of the root finite where there is no link.
        amplitude = (power * self.antennas[..., None]).clamp(min=1e-20).sqrt() * self.mask
        coherent = self.estimated().sqrt().mT @ amplitude  # (B, K, K): D_ki
        signal = torch.diagonal(coherent, dim1=-2, dim2=-1).square()
        contamination = (coherent.square() * self._shared()).sum(-1) - signal
        interference = (self.beta * (power * self.mask).sum(-1, keepdim=True)).sum(1)
        return torch.log2(1 + signal / (interference + contamination + 1))

    def power_error(self, power: Tensor) -> Tensor:
        """The largest part by which powers (B, L, K) exceed an access point's limit."""
        return (power.sum(-1) / self.limit - 1).clamp(min=0).max()

    def permuted(self, points: Tensor, users: Tensor) -> CellFree:
        """The same networks with access points and users in another order."""
        beta, mask = (each[:, points][..., users] for each in (self.beta, self.mask))
        antennas, limit = self.antennas[:, points], self.limit[:, points]
        return CellFree(beta, mask, antennas, limit, self.pilot_energy, self.pilots[:, users])

    def permuted_decision(self, power: Tensor, points: Tensor, users: Tensor) -> Tensor:
        """Powers for these networks, as they are for the `permuted` ones."""
        return power[:, points][..., users]

    def _shared(self) -> Tensor:
        """(B, K, K) boolean: who shares a pilot with whom; everyone with himself."""
        return self.pilots[:, :, None] == self.pilots[:, None, :]


def heard(H: Tensor, W: Tensor) -> Tensor:
    """H_k W_j for all k and j: (B, K, N, K, d)."""
    B, K, N, M = H.shape
    return (H.reshape(B, K * N, M) @ W).view(B, K, N, K, W.shape[-1] // K)


def square(x: Tensor) -> Tensor:
    """|x|², with a gradient at zero."""
    if not x.is_complex():
        return x.square()
    return torch.view_as_real(x.resolve_conj()).square().sum(-1)
