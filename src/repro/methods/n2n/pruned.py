"""The rival that keeps the teacher's weights: structured magnitude pruning to a size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.toolbox.dependency_graph import Group, remove, trace

STEPS = 12  # of bisection: finer than a channel of a group of thousands


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

    def kept(share: float) -> dict[Group, int]:
        return {group: max(1, int(share * group.size)) for group in graph.prunable}

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _parameters_left(model, kept(middle)) <= parameters:
            low = middle
        else:
            high = middle
    largest = {
        group: _norms(group, model).argsort(descending=True)[:count]
        for group, count in kept(low).items()
    }
    return remove(model, largest, graph)


def _parameters_left(model: nn.Module, kept: dict[Group, int]) -> int:
    """How many parameters there are when so many channels of each group are kept."""
    shapes = {name: list(weight.shape) for name, weight in model.named_parameters()}
    for group, count in kept.items():
        for member in group.members:
            places = member.indices.shape[1]  # of one channel
            shapes[member.name][member.dim] -= (group.size - count) * places
    return sum(math.prod(shape) for shape in shapes.values())


def _norms(group: Group, model: nn.Module) -> Tensor:
    """The l2 norm (size,) of what each channel owns: its rows of weights, its scales and shifts."""
    weights = dict(model.named_parameters())
    squares = torch.zeros(group.size)
    for member in group.owned:
        weight = weights[member.name].detach().cpu()
        rows = weight.movedim(member.dim, 0).reshape(weight.shape[member.dim], -1).square().sum(1)
        squares += rows[member.indices].sum(1)
    return squares.sqrt()
