"""A module whose parameters follow those of another module, as an exponential moving average."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from repro.internals import foreach_lerp_
from repro.knobs import Probability, checked
from repro.models.parts.residual import he_init

Init = Literal["independent", "copy"]


@checked
def copy_of(source: nn.Module, init: Init = "independent") -> nn.Module:
    """A module of the same architecture as ``source``.

    Args:
        source: what to copy.
        init: ``independent`` draws new parameters (convolutions by `he_init`, everything else as
            PyTorch does), which is what the official code ends up with; ``copy`` keeps the values.
    """
    module = copy.deepcopy(source).train()
    if init == "independent":
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()
        he_init(module)
    return module


class EmaOf(nn.Module):
    """Computes what ``source`` computes, with parameters that follow its own slowly.

    ``update`` does ``theta <- m theta + (1 - m) theta_source`` for all parameters and leaves
    buffers alone: batch norm uses the statistics of the batch. The parameters need no gradient and
    belong into no optimizer, but gradients flow *through* them to the input.

    Args:
        source: the module to follow; it stays out of this module's ``state_dict``.
        momentum: m in [0, 1]; 0 copies the source at every update, 1 never moves.
        init: see `copy_of`.

    Raises:
        UserError: m lies outside [0, 1].
    """

    @checked
    def __init__(
        self, source: nn.Module, momentum: Probability, init: Init = "independent"
    ) -> None:
        super().__init__()
        self.module = copy_of(source, init).requires_grad_(False)
        self.momentum = momentum
        self._source = (source,)  # within a tuple, lest it becomes a part of this module

    @property
    def source(self) -> nn.Module:
        """The module that is followed."""
        return self._source[0]

    def forward(self, x: Tensor) -> Tensor:
        """What the source would say with the averaged parameters."""
        output: Tensor = self.module(x)
        return output

    def update(self) -> None:
        """One step towards the source."""
        update_all([self])


@torch.no_grad()
def update_all(averages: Iterable[EmaOf]) -> None:
    """Moves several averages with the same momentum towards their sources in one fused call."""
    averages = list(averages)
    if not averages:
        return
    own: list[Tensor] = [p for average in averages for p in average.module.parameters()]
    sources: list[Tensor] = [p for average in averages for p in average.source.parameters()]
    foreach_lerp_(own, sources, 1 - averages[0].momentum)
