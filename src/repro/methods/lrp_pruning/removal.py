"""A network without its silent units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from repro.toolbox.dependency_graph import DependencyGraph, Group, remove


def shrunk(model: nn.Module, kept: Mapping[str, Tensor], graph: DependencyGraph) -> nn.Module:
    """A smaller copy without the silent units, which computes the same.

    Channels that others are added to (of a residual stream) only go where all of them are silent;
    single silent ones of those stay as zeros.

    Args:
        model: its silent units put out zeros (`repro.methods.lrp_pruning.silence`).
        kept: by layer, (units,) bool, which are not silent.
        graph: of a network of the model's shapes (`repro.toolbox.dependency_graph.trace`).
    """
    left = {group: _left(group, kept) for group in graph.prunable if group.exact}
    return remove(model, {group: mask.nonzero() for group, mask in left.items()}, graph)


def _left(group: Group, kept: Mapping[str, Tensor]) -> Tensor:
    """(size,) bool: which channels of a group have to stay; one of them at least."""
    left = torch.zeros(group.size, dtype=torch.bool)
    for member in group.members:
        layer, _, kind = member.name.rpartition(".")
        if member.role != "producer" or kind != "weight":
            continue
        mask = kept[layer].cpu()[member.indices].any(1) if layer in kept else torch.ones(())
        left |= mask.bool()
    if not left.any():
        left[0] = True
    return left
