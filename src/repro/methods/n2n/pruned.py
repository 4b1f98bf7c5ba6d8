"""The rival that keeps the teacher's weights: structured magnitude pruning to a size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.toolbox.dependency_graph import Group, remove, trace

STEPS = 16  # of bisection: finer than a channel of a group of thousands


def prune_to_size(model: nn.Module, input_shape: Sequence[int], parameters: int) -> nn.Module:
    """A copy of a network without its channels of least norm, of at most so many parameters.

    Every group of channels that belong together loses the same share, the least that is enough, and
    keeps at least one channel.

    Args:
        model: the trained network.
        input_shape: of one example.
        parameters: how many may be left.
    """
    device = next(model.parameters()).device
    graph = trace(model, torch.zeros(2, *input_shape, device=device))
    orders = {group: _norms(group, model).argsort(descending=True) for group in graph.prunable}

    def pruned(share: float) -> nn.Module:
        kept = {group: order[: max(1, int(share * len(order)))] for group, order in orders.items()}
        return remove(model, kept, graph)

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        count = sum(each.numel() for each in pruned(middle).parameters())
        low, high = (middle, high) if count <= parameters else (low, middle)
    return pruned(low)


def _norms(group: Group, model: nn.Module) -> Tensor:
    """The l2 norm (size,) of what each channel owns: its rows of weights, its scales and shifts."""
    weights = dict(model.named_parameters())
    squares = torch.zeros(group.size)
    for member in group.owned:
        weight = weights[member.name].detach().cpu()
        rows = weight.movedim(member.dim, 0).flatten(1).square().sum(1)
        squares += rows[member.indices].sum(1)
    return squares.sqrt()
