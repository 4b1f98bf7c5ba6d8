"""Whether a decision knows nodes by anything but their channels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from repro.data.worlds.channels import CellFree, Downlink

DOUBLE = {torch.complex64: torch.complex128, torch.float32: torch.float64}


def permutation_error(model: nn.Module, batch: Downlink | CellFree) -> float:
    """Largest change of the decision, relative to its largest entry, when nodes are shuffled.

    In double precision, so that a difference in kind is told from rounding.

    Args:
        model: maps a batch to a precoder (B, M, S) or to powers (B, L, K).
        batch: cells, whose users and antennas are shuffled, or networks, whose access points and
            users are.
    """
    model = copy.deepcopy(model).double()
    parts: list[Tensor] = [part.to(DOUBLE.get(part.dtype, part.dtype)) for part in batch]
    exact = type(batch)(*parts)
    generator = torch.Generator().manual_seed(0)
    sizes = parts[0].shape[1], parts[0].shape[-1]
    first, last = (torch.randperm(n, generator=generator) for n in sizes)
    straight = exact.permuted_decision(model(exact), first, last)
    moved = model(exact.permuted(first, last))
    return float((moved - straight).abs().max() / straight.abs().max())
