"""What networks with long skip connections and a time input share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from repro.knobs import checked

MergeKind = Literal["add", "concat"]


class PlainSkips(nn.Module):
    """Passes each skip on as it is; a method may put another scaler in its place."""

    def forward(self, skip: Tensor, _j: int) -> Tensor:
        """The skip that decoder block ``j`` consumes, unchanged."""
        return skip


class Merge(nn.Module):
    """Joins the main branch with a skip: ``x + skip``, or a linear layer of both side by side.

    Args:
        kind: ``add`` or ``concat``.
        width: features of each, D.

    Raises:
        UserError: there is no such way.
    """

    @checked
    def __init__(self, kind: MergeKind, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width) if kind == "concat" else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Two tensors (…, D) to one."""
        if self.linear is None:
            return x + skip
        merged: Tensor = self.linear(torch.cat([x, skip], dim=-1))
        return merged


def sinusoidal(time_B: Tensor, width: int, period: float = 10_000.0) -> Tensor:
    """The sinusoidal embedding (B, width) of times: cosines, then sines (Vaswani et al., 2017).

    Args:
        time_B: times, usually 0 to 999.
        width: an even number.
        period: the longest wavelength over 2 pi.
    """
    half = width // 2
    exponent = torch.arange(half, device=time_B.device, dtype=torch.float32) / half
    angle_BH = time_B.float()[:, None] * torch.exp(-math.log(period) * exponent)
    return torch.cat([angle_BH.cos(), angle_BH.sin()], dim=1)
