"""The learned precoder: a graph network over users gives two numbers each, a formula does the rest.

The network returns the priorities λ and powers p of `structured_precoder`; the inverse in it is
replaced by conjugate-gradient steps. Its inputs come from the Gram matrix, with none of the numbers
of users or antennas in their dimensions::

    x⁰_k  = (0.2 log(G_kk P/(Sσ²)), 0.2 log(P/σ²))
    e_kj  = (c, 0.2 log(c + 10⁻⁴), 0.2 log(|G_kj|² P/(G_kk S σ²) + 10⁻³)),  c = |G_kj|²/(G_kk G_jj)

With a head that starts at zero, all λ and p are P/S: training starts at regularised zero forcing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.data.worlds.channels import Downlink
from repro.errors import UserError
from repro.knobs import Count, checked
from repro.methods.icgnn.downlink import gram, structured_precoder
from repro.methods.icgnn.network import CompleteGraph, InformationCarryingGNN, masked_softmax

NODE_FEATURES, EDGE_FEATURES = 2, 3


class LearnedPrecoder(nn.Module):
    """ICGNN for precoding: any number of users, of their antennas and of the base station's.

    Args:
        cg_steps: conjugate-gradient steps T; None solves exactly (an ablation).
        jacobi: scale the system to a unit diagonal first.
        width: of the network.
        layers: of the network.
        carry: see `InformationCarryingGNN`; likewise
        zero_init_head: start as regularised zero forcing.
    """

    problem = Downlink  # what it is called with

    @checked
    def __init__(
        self,
        cg_steps: Count | None = 8,
        jacobi: bool = True,
        width: Count = 32,
        layers: Count = 3,
        carry: bool = True,
        zero_init_head: bool = True,
    ) -> None:
        super().__init__()
        self.cg_steps, self.jacobi = cg_steps, jacobi
        self.network = InformationCarryingGNN(
            NODE_FEATURES,
            2,
            EDGE_FEATURES,
            width=width,
            layers=layers,
            carry=carry,
            zero_init_head=zero_init_head,
        )

    def forward(self, cell: Downlink) -> Tensor:
        """The precoder (B, M, S) for known channels."""
        return self.precode(cell.streams(), cell.snr)

    def precode(self, H: Tensor, snr: Tensor, mask: Tensor | None = None) -> Tensor:
        """The precoder of streams.

        Args:
            H: (B, S, M), complex.
            snr: (B,).
            mask: (B, S) boolean, False for rows that only fill up the batch; None for none.

        Returns:
            (B, M, S) with ‖W‖² = 1; zero in the columns of such rows.
        """
        G = gram(H)
        priority, power = self.allocate(G, snr, mask)
        return structured_precoder(H, snr, priority, power, self.cg_steps, self.jacobi, G)

    def allocate(self, G: Tensor, snr: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The network's part: λ and p, each (B, S) with sum 1, from the Gram matrix (B, S, S)."""
        nodes, edges = features(G, snr, mask)
        logits = self.network(nodes, CompleteGraph(edges, mask))
        priority, power = masked_softmax(
            logits, None if mask is None else mask[..., None], dim=-2
        ).unbind(-1)
        return priority, power


class FixedSizePrecoder(nn.Module):
    """The same structure fed by an ordinary perceptron, which knows one number of users only.

    It sees what the graph network sees, flattened, and the exact optimal structure follows.

    Args:
        users: streams it is built for.
        cg_steps: see `LearnedPrecoder`.
        jacobi: likewise.
        hidden: widths of the hidden layers.
    """

    problem = Downlink  # what it is called with

    @checked
    def __init__(
        self,
        users: Count,
        cg_steps: Count | None = 8,
        jacobi: bool = True,
        hidden: Sequence[Count] = (256, 256),
    ) -> None:
        super().__init__()
        self.users, self.cg_steps, self.jacobi = users, cg_steps, jacobi
        sizes = [users * NODE_FEATURES + users**2 * EDGE_FEATURES, *hidden]
        parts: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            parts += [nn.Linear(before, after), nn.ReLU()]
        head = nn.Linear(sizes[-1], 2 * users)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.network = nn.Sequential(*parts, head)

    def fits(self, cell: Downlink) -> bool:
        """Whether the cell has the number of streams that it is built for."""
        return cell.known.shape[1] * cell.known.shape[2] == self.users

    def forward(self, cell: Downlink) -> Tensor:
        """The precoder (B, M, S).

        Raises:
            UserError: another number of streams.
        """
        if not self.fits(cell):
            raise UserError(
                f"The perceptron is built for {self.users} streams, not for "
                f"{cell.known.shape[1] * cell.known.shape[2]}: set model.users and dataset.users."
            )
        H = cell.streams()
        G = gram(H)
        nodes, edges = features(G, cell.snr)
        flat = torch.cat([nodes.flatten(1), edges.flatten(1)], dim=1)
        priority, power = self.network(flat).view(-1, 2, self.users).softmax(-1).unbind(1)
        return structured_precoder(H, cell.snr, priority, power, self.cg_steps, self.jacobi, G)


def features(G: Tensor, snr: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Inputs of nodes (B, S, 2) and of edges (B, S, S, 3): unchanged by phases of the users.

    Args:
        G: (B, S, S) Gram matrix.
        snr: (B,).
        mask: (B, S), which rows count.
    """
    S = G.shape[-1]
    active = torch.full_like(snr, S) if mask is None else mask.sum(-1).to(snr.dtype)
    share = snr / active  # signal-to-noise ratio of one stream with its part of the power
    own = torch.diagonal(G, dim1=-2, dim2=-1).real
    own = own.clamp(min=1e-20)  # rows of zeros
    cross = torch.view_as_real(G).square().sum(-1)
    nodes = torch.stack(
        [0.2 * (own * share[:, None]).log(), (0.2 * snr.log())[:, None].expand_as(own)], dim=-1
    )
    similarity = cross / (own[..., :, None] * own[..., None, :])
    disturbance = cross / own[..., :, None] * share[:, None, None]
    edges = torch.stack(
        [similarity, 0.2 * (similarity + 1e-4).log(), 0.2 * (disturbance + 1e-3).log()], dim=-1
    )
    return nodes, edges
