"""A network without its silent units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from repro.toolbox.dependency_graph import remove, trace


def shrunk(model: nn.Module, kept: Mapping[str, Tensor], example: Tensor) -> nn.Module:
    """A smaller copy without the silent units, which computes the same.

    Units that others are added to (channels of a residual stream) only go where all of them are
    silent; single silent ones of those stay as zeros.

    Args:
        model: its silent units put out zeros (`repro.methods.lrp_pruning.silence`).
        kept: by layer, (units,) bool, which are not silent.
        example: an input (N, …).
    """
    graph = trace(model, example)
    indices: dict[str, list[int]] = {}
    for group in graph.groups:
        outputs = {
            member.parameter.removesuffix(".weight")
            for member in group.members
            if member.dim == 0 and member.parameter.endswith(".weight")
        }
        masks = [kept[layer].cpu() for layer in outputs if layer in kept]
        if group.prunable and masks and len(masks[0]) == group.size:
            indices[group.name] = torch.stack(masks).any(0).nonzero().flatten().tolist()
    return remove(model, indices, graph)
