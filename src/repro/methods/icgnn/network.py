"""The information-carrying graph network: one small network, shared by all nodes of any graph.

A layer l turns the states x of the nodes into new ones (layer equation of the project's
construction, see the room's README)::

    m_k = AGG over neighbours j of φ([x_j, x⁰_j, e_kj])        AGG = mean and maximum
    x_k ← ψ([x_k, x⁰_k, m_k])

Every layer sees the first information x⁰ of the nodes and the e of the edges again: it is carried
along, instead of being washed out by aggregation. No size of the graph is in the parameters, and
nothing depends on the order of the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.knobs import Count, checked


class Graph(Protocol):
    """Who hears whom; dense, with nodes along some dimensions before the last."""

    neighbourhoods: int  # kinds of neighbours

    def messages(self, from_node: Tensor, from_edge: nn.Module | None) -> Tensor:
        """Joins what the sending node and the edge contribute to the hidden layer of φ."""

    def collect(self, messages: Tensor) -> list[Tensor]:
        """Mean and maximum over each kind of neighbour: tensors that broadcast to the nodes."""


@dataclass
class CompleteGraph(Graph):
    """K nodes, each a neighbour of every other one, with features on the edges.

    Args:
        edges: (…, K, K, E); ``edges[k, j]`` belongs to the message from j to k.
        mask: (…, K) boolean, False where a node is only there to fill up a batch; None for all.
    """

    edges: Tensor
    mask: Tensor | None = None
    neighbourhoods = 1

    def __post_init__(self) -> None:
        K = self.edges.shape[-2]
        near = ~torch.eye(K, dtype=torch.bool, device=self.edges.device)
        if self.mask is not None:
            near = near & self.mask[..., None, :]
        self.near = near[..., None].to(self.edges.dtype)

    def messages(self, from_node: Tensor, from_edge: nn.Module | None) -> Tensor:
        """(…, K, W) and the edges to (…, K, K, W)."""
        sent = from_node.unsqueeze(-3)
        K = self.edges.shape[-2]
        if from_edge is None:
            return sent.expand(*sent.shape[:-3], K, K, sent.shape[-1])
        return sent + from_edge(self.edges)

    def collect(self, messages: Tensor) -> list[Tensor]:
        """(…, K, K, W) to one (…, K, 2W)."""
        return [mean_and_max(messages, self.near, dim=-2).squeeze(-2)]


@dataclass
class GridGraph(Graph):
    """Links (l, k) of a table: neighbours share the row (access point) or the column (user).

    Args:
        mask: (…, L, K) boolean, which links there are.
    """

    mask: Tensor
    neighbourhoods = 2

    @override
    def messages(self, from_node: Tensor, from_edge: nn.Module | None) -> Tensor:
        """A link says the same to all its neighbours."""
        return from_node

    def collect(self, messages: Tensor) -> list[Tensor]:
        """(…, L, K, W) to (…, L, 1, 2W) over rows and (…, 1, K, 2W) over columns."""
        there = self.mask[..., None].to(messages.dtype)
        return [mean_and_max(messages, there, dim) for dim in (-2, -3)]


def mean_and_max(messages: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Mean and maximum over a dimension (kept), side by side in the last; 0 where nobody speaks.

    Args:
        messages: (…, W), not negative: what is masked can then count as zero in the maximum.
        weight: (…, 1), one for those that count and zero for the others.
        dim: over which.
    """
    heard = messages * weight
    count = weight.sum(dim, keepdim=True).clamp(min=1)
    mean = heard.sum(dim, keepdim=True) / count
    return torch.cat([mean, heard.amax(dim, keepdim=True)], dim=-1)


class Layer(nn.Module):
    """One round of messages. Each first layer is a sum over its inputs' parts, never repeated."""

    def __init__(self, nodes: int, edges: int, neighbourhoods: int, width: int) -> None:
        super().__init__()
        self.from_node = nn.Linear(nodes, width)
        self.from_edge = nn.Linear(edges, width, bias=False) if edges else None
        self.message = nn.Linear(width, width)
        self.keep = nn.Linear(nodes, width)
        self.hear = nn.ModuleList(
            nn.Linear(2 * width, width, bias=False) for _ in range(neighbourhoods)
        )
        self.update = nn.Linear(width, width)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """(…, nodes, features) to (…, nodes, width)."""
        hidden = F.relu(graph.messages(self.from_node(x), self.from_edge))
        collected = graph.collect(F.relu(self.message(hidden)))
        state = self.keep(x)
        for hear, part in zip(self.hear, collected, strict=True):
            state = state + hear(part)
        updated: Tensor = self.update(F.relu(state))
        return updated


class InformationCarryingGNN(nn.Module):
    """The network: some layers, then a linear map of each node to its outputs.

    Args:
        nodes: features of a node.
        outputs: numbers to return for a node.
        edges: features of an edge; 0 for none.
        neighbourhoods: kinds of neighbours of the graphs to come.
        width: of all hidden layers.
        layers: rounds of messages.
        carry: feed x⁰ and the edges to every layer; False: to the first one alone (an ablation).
        zero_init_head: the outputs start at zero.

    Raises:
        UserError: a size below one.
    """

    @checked
    def __init__(
        self,
        nodes: int,
        outputs: int,
        edges: int = 0,
        neighbourhoods: int = 1,
        width: Count = 32,
        layers: Count = 3,
        carry: bool = True,
        zero_init_head: bool = True,
    ) -> None:
        super().__init__()
        self.carry = carry
        sizes = [(nodes, edges)]
        sizes += [(width + nodes, edges) if carry else (width, 0)] * (layers - 1)
        self.layers = nn.ModuleList(Layer(n, e, neighbourhoods, width) for n, e in sizes)
        self.head = nn.Linear(width, outputs)
        if zero_init_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x0: Tensor, graph: Graph) -> Tensor:
        """Maps node features to node outputs.

        Args:
            x0: (…, nodes, features); nodes may take one dimension (`CompleteGraph`) or two
                (`GridGraph`).
            graph: who hears whom.

        Returns:
            (…, nodes, outputs).
        """
        x = self.layers[0](x0, graph)
        for layer in self.layers[1:]:
            x = F.relu(x)
            x = layer(torch.cat([x, x0], dim=-1) if self.carry else x, graph)
        outputs: Tensor = self.head(x)
        return outputs


def masked_softmax(logits: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Softmax over the entries that count; the others are 0, and all are where none counts."""
    if mask is None:
        return logits.softmax(dim)
    return logits.masked_fill(~mask, -1e9).softmax(dim) * mask
