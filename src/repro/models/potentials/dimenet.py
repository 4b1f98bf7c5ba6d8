"""DimeNet++ (Gasteiger et al., 2020) from torch_geometric's blocks, in a periodic box.

Its own module finds neighbours and triplets by two further packages, in open space; here they come
from distances of all pairs, so that torch_geometric alone is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.data.worlds.mechanics import minimum_image
from repro.errors import UserError
from repro.knobs import Count, Natural, Positive, checked

INSTALL = "torch_geometric is missing. Get it with: pip install 'gradient-repro[molecules]'"


class DimeNet(nn.Module):
    """Sum of per-particle energies; (B, n, 3) positions to (B,).

    Args:
        species: of each particle; one number for all of them.
        cutoff: of the graph, nm.
        box: length of the periodic cube, at least twice the cutoff; None: open space.
        embedding: width of the messages.
        out_embedding: width of the output blocks.
        triplet_embedding: width of what triplets exchange.
        basis_embedding: width of the bases.
        blocks: interaction blocks.
        radial: Bessel functions.
        spherical: spherical Bessel functions.
        envelope: exponent p of the smooth cutoff.
        residuals_before: residual layers before the skip connection.
        residuals_after: after it.
        output_layers: dense layers of an output block.

    Raises:
        UserError: torch_geometric is not installed.
    """

    @checked
    def __init__(
        self,
        species: int | Sequence[Natural] = 0,
        cutoff: Positive = 0.5,
        box: Positive | None = None,
        embedding: Count = 32,
        out_embedding: Count = 64,
        triplet_embedding: Count = 16,
        basis_embedding: Count = 8,
        blocks: Count = 4,
        radial: Count = 6,
        spherical: Count = 7,
        envelope: Count = 6,
        residuals_before: Natural = 1,
        residuals_after: Natural = 2,
        output_layers: Natural = 3,
    ) -> None:
        super().__init__()
        try:
            from torch_geometric.nn.models import DimeNetPlusPlus
        except ImportError:
            raise UserError(INSTALL) from None
        self.cutoff, self.box = cutoff, box
        numbers = [species] if isinstance(species, int) else list(species)
        self.register_buffer("species", torch.tensor(numbers), persistent=False)
        self.blocks = DimeNetPlusPlus(
            embedding, 1, blocks, triplet_embedding, basis_embedding, out_embedding, spherical,
            radial, cutoff, envelope_exponent=envelope - 1, num_before_skip=residuals_before,
            num_after_skip=residuals_after, num_output_layers=output_layers,
            output_initializer="glorot_orthogonal",
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Draws all weights anew."""
        self.blocks.reset_parameters()

    def forward(self, x_Bn3: Tensor) -> Tensor:
        """Energies (B,)."""
        B, n, _ = x_Bn3.shape
        source, target, shift = self._edges(x_Bn3.detach())
        position = x_Bn3.reshape(B * n, 3)
        vector = position[target] - position[source] + shift
        distance = vector.norm(dim=-1)
        first, second = triplets(source, target, B * n)  # edges k -> j and j -> i
        cross = torch.linalg.cross(vector[second], vector[first]).norm(dim=-1)
        angle = torch.atan2(cross, (vector[second] * vector[first]).sum(-1))
        net = self.blocks
        rbf, sbf = net.rbf(distance), net.sbf(distance, angle, first)
        kinds = self.get_buffer("species").expand(n).repeat(B)
        message = net.emb(kinds, rbf, target, source)
        energy = net.output_blocks[0](message, rbf, target, num_nodes=B * n)
        for interaction, output in zip(
            net.interaction_blocks, net.output_blocks[1:], strict=True
        ):  # fmt: skip
            message = interaction(message, rbf, sbf, first, second)
            energy = energy + output(message, rbf, target, num_nodes=B * n)
        return energy.view(B, n).sum(1)

    def _edges(self, x_Bn3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sources and targets (E,) in the flattened batch, and the images' shifts (E, 3)."""
        parts = [self._edges_of(x_n3) for x_n3 in x_Bn3]  # frame by frame: n² at a time
        n = x_Bn3.shape[1]
        source = torch.cat([part[0] + b * n for b, part in enumerate(parts)])
        target = torch.cat([part[1] + b * n for b, part in enumerate(parts)])
        return source, target, torch.cat([part[2] for part in parts])

    def _edges_of(self, x_n3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plain = x_n3[None] - x_n3[:, None]  # [source, target]
        nearest = minimum_image(plain, self.box)
        near = nearest.square().sum(-1) < self.cutoff**2
        source, target = near.fill_diagonal_(False).nonzero(as_tuple=True)
        return source, target, (nearest - plain)[source, target]


def triplets(source: Tensor, target: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """All pairs of edges k → j and j → i with k ≠ i, as two lists of edges."""
    order = target.argsort(stable=True)
    count = torch.bincount(target, minlength=nodes)
    begin = count.cumsum(0) - count
    incoming = count[source]  # how many edges k -> j there are for each j -> i
    second = torch.arange(len(source), device=source.device).repeat_interleave(incoming)
    ends = incoming.cumsum(0)
    rank = torch.arange(len(second), device=source.device) - (ends - incoming)[second]
    first = order[begin[source[second]] + rank]
    kept = source[first] != target[second]
    return first[kept], second[kept]
