"""The learned power allocation: a graph network over the links of access points and users."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repro.data.worlds.channels import CellFree
from repro.knobs import Count, checked
from repro.methods.icgnn.cellfree import power_from_logits
from repro.methods.icgnn.network import GridGraph, InformationCarryingGNN

GAIN = 4.0  # of the network's logits: how far it may leave fractional power early on
VOLUME = 3.0  # the share of its power that an access point uses at first is σ(3) = 0.95


class LearnedPower(nn.Module):
    """ICGNN for cell-free power allocation: any number of access points, users and antennas.

    Nodes are the active links; two links are neighbours if they share the access point or the user.
    The logits are ½ log β plus the network's, so that training starts at fractional power ν = ½.

    Args:
        width: of the network.
        layers: of the network.
        carry: see `InformationCarryingGNN`; likewise
        zero_init_head: start at fractional power.
    """

    problem = CellFree  # what it is called with

    @checked
    def __init__(
        self, width: Count = 32, layers: Count = 3, carry: bool = True, zero_init_head: bool = True
    ) -> None:
        super().__init__()
        self.network = InformationCarryingGNN(
            nodes=4,
            outputs=2,
            neighbourhoods=GridGraph.neighbourhoods,
            width=width,
            layers=layers,
            carry=carry,
            zero_init_head=zero_init_head,
        )

    def forward(self, network: CellFree) -> Tensor:
        """Powers (B, L, K) within the limit of each access point."""
        outputs = self.network(features(network), GridGraph(network.mask))
        logits, volume = outputs.unbind(-1)
        served = network.mask.sum(-1).clamp(min=1)
        volume = (volume * network.mask).sum(-1) / served + VOLUME
        return power_from_logits(network, 0.5 * network.beta.log() + GAIN * logits, volume)


def features(network: CellFree) -> Tensor:
    """Inputs of the links, (B, L, K, 4): log10 β/4, m, N/4, log10(β over the user's sum)/4."""
    beta = network.beta
    return torch.stack(
        [
            beta.log10() / 4,
            network.mask.to(beta.dtype),
            (network.antennas[..., None] / 4).expand_as(beta),
            (beta / beta.sum(1, keepdim=True)).log10() / 4,
        ],
        dim=-1,
    )
