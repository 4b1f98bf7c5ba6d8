"""Cell-free downlink: many access points serve many users together; how to share their powers.

Closed forms of maximum-ratio transmission with MMSE channel estimates (Demir, Björnson and
Sanguinetti 2021). Tensors carry their shape: B batch, L access points, K users.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from repro.errors import UserError, did_you_mean
from repro.methods.icgnn.network import masked_softmax


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

    def _shared(self) -> Tensor:
        """(B, K, K) boolean: who shares a pilot with whom; everyone with himself."""
        return self.pilots[:, :, None] == self.pilots[:, None, :]


def fractional_power(network: CellFree, exponent: float) -> Tensor:
    """ρ_lk = P_l β_lk^ν / Σ_i β_li^ν over the users that l serves: (B, L, K).

    Args:
        network: the batch.
        exponent: ν; 0 shares equally, larger ones favour strong links.
    """
    shares = masked_softmax(exponent * network.beta.log(), network.mask, dim=-1)
    return network.limit[..., None] * shares


def power_from_logits(network: CellFree, logits: Tensor, volume: Tensor) -> Tensor:
    """ρ_lk = P_l s_l softmax_k(z_lk) over the users that l serves, within each limit.

    Args:
        network: the batch.
        logits: z, (B, L, K).
        volume: (B, L); s is its logistic function, the share of the power that is used.
    """
    used = network.limit * volume.sigmoid()
    return used[..., None] * masked_softmax(logits, network.mask, dim=-1)


def ascend_power(
    network: CellFree,
    objective: Literal["sum", "min"] = "sum",
    steps: int = 150,
    lr: float = 0.2,
    sharpness: float = 50.0,
) -> Tensor:
    """Optimises every network on its own by Adam on the logits of `power_from_logits`.

    Starts at fractional power with ν = ½. What gradients can reach for one network: far too slow to
    use, and the yardstick of what is learned.

    Args:
        network: the batch.
        objective: ``sum`` of the users' rates, or their ``min`` (smoothly: a soft minimum).
        steps: of Adam.
        lr: its rate, falling to zero along half a cosine.
        sharpness: of the soft minimum, per bit.

    Returns:
        (B, L, K).
    """
    with torch.inference_mode(False), torch.enable_grad():
        network = CellFree(*(part.clone() for part in network))
        logits = (0.5 * network.beta.log()).requires_grad_()
        volume = torch.full_like(network.limit, 3.0).requires_grad_()
        optimizer = torch.optim.Adam([logits, volume], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rates = network.rates(power_from_logits(network, logits, volume))
            if objective == "sum":
                gain = rates.sum()
            else:
                gain = -(-sharpness * rates).logsumexp(-1).sum() / sharpness
            optimizer.zero_grad()
            (-gain).backward()
            optimizer.step()
            schedule.step()
        return power_from_logits(network, logits, volume).detach()


class ClassicalPower(nn.Module):
    """A power allocation without parameters, called like the learned one.

    Args:
        kind: ``fractional``, ``ascent`` (sum of rates) or ``max_min``, the last two by gradient
            ascent on each network.
        exponent: fractional: ν; 0 is equal power.
        steps: of the ascent.
        lr: of the ascent.

    Raises:
        UserError: an unknown kind or a number out of range.
    """

    problem = CellFree  # what it is called with

    def __init__(self, kind: str, exponent: float = 0.5, steps: int = 150, lr: float = 0.2) -> None:
        super().__init__()
        kinds = ("fractional", "ascent", "max_min")
        if kind not in kinds:
            raise UserError(
                f"model.kind is one of {', '.join(kinds)}, not '{kind}'.{did_you_mean(kind, kinds)}"
            )
        if steps < 1 or lr <= 0:
            raise UserError(
                "model.steps is a whole number from 1 on and model.lr positive, not "
                f"{steps} and {lr}."
            )
        self.kind, self.exponent, self.steps, self.lr = kind, exponent, steps, lr

    def forward(self, network: CellFree) -> Tensor:
        """Powers (B, L, K)."""
        if self.kind == "fractional":
            return fractional_power(network, self.exponent)
        objective: Literal["sum", "min"] = "sum" if self.kind == "ascent" else "min"
        return ascend_power(network, objective, self.steps, self.lr)
