"""Directed acyclic graphs over agents: ``G[j, i] = 1`` iff agent j is a parent of agent i."""

from __future__ import annotations

import torch
from torch import Tensor

from repro.knobs import check_choice

FIXED = ("none", "line", "line_published", "full")


def fixed_graph(name: str, agents: int) -> Tensor:
    """One of the graphs that the paper compares, as an adjacency matrix (n, n) of zeros and ones.

    Args:
        name: ``none`` (independent agents), ``line`` (0 → 1 → … → n−1), ``full`` (every agent sees
            the actions of all before it), or ``line_published``, the line as the official code
            builds it: without its last edge.
        agents: n.
    """
    check_choice("fixed_graph", "graph", name, FIXED)
    if name == "none":
        return torch.zeros(agents, agents)
    if name == "full":
        return torch.ones(agents, agents).triu(1)
    edges = torch.ones(agents - 1)
    if name == "line_published":
        edges[-1:] = 0
    return torch.diag(edges, 1)


def is_acyclic(G: Tensor) -> Tensor:
    """Whether graphs (..., n, n) of zeros and ones have no cycle: Gⁿ = 0. Returns (...) bool."""
    n = G.shape[-1]
    return (torch.linalg.matrix_power(G.double(), n) == 0).flatten(-2).all(-1)


def open_ratio(G: Tensor) -> Tensor:
    """Share of the n(n−1)/2 possible edges of graphs (..., n, n) that are there, in [0, 1]."""
    n = G.shape[-1]
    return 2 * G.sum((-2, -1)) / max(1, n * (n - 1))
