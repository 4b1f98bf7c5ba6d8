"""Cell-free downlink: many access points serve many users together; how to share their powers.

Closed forms of maximum-ratio transmission with MMSE channel estimates (Demir, Björnson and
Sanguinetti 2021). Tensors carry their shape: B batch, L access points, K users.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from repro.data.worlds.channels import CellFree
from repro.knobs import Count, Positive, checked
from repro.methods.icgnn.network import masked_softmax


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

    @checked
    def __init__(
        self,
        kind: Literal["fractional", "ascent", "max_min"],
        exponent: float = 0.5,
        steps: Count = 150,
        lr: Positive = 0.2,
    ) -> None:
        super().__init__()
        self.kind, self.exponent, self.steps, self.lr = kind, exponent, steps, lr

    def forward(self, network: CellFree) -> Tensor:
        """Powers (B, L, K)."""
        if self.kind == "fractional":
            return fractional_power(network, self.exponent)
        objective: Literal["sum", "min"] = "sum" if self.kind == "ascent" else "min"
        return ascend_power(network, objective, self.steps, self.lr)
