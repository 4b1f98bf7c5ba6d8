"""Activations on a uniform grid, with a learned step (LSQ) and QDrop's random dropping."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repro.toolbox.reconstruction.grids import NORM, SHRINK

MOST_ENTRIES = 2**16  # that the range search looks at


class ActivationQuantizer(nn.Module):
    """``x̂ = (clip(⌊x/s⌉ + z, 0, 2^b - 1) - z)·s``, one step s and zero point z for a tensor.

    Round is passed straight through, which gives LSQ's gradient of the step: ``⌊x/s⌉ - x/s`` inside
    the range and the clip bound minus z outside, here times ``1/sqrt(numel·(2^b - 1))``.

    Args:
        bits: at least 2.
    """

    zero: Tensor
    ready: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits - 1
        self.step = nn.Parameter(torch.ones(()))
        self.register_buffer("zero", torch.zeros(()))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))  # has it a range?
        self.enabled = True
        self.seen: list[Tensor] | None = None  # what passes while a range is being looked for
        self.keep = 1.0  # probability with which an element is quantised (QDrop)
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Quantises, once the range is known; before that only takes note."""
        if self.seen is not None:
            flat = x.detach().flatten()
            self.seen.append(flat[:: max(1, len(flat) // MOST_ENTRIES)])
            return x
        if not self.enabled or not self.is_ready:
            return x
        step = self.step
        if step.requires_grad and torch.is_grad_enabled():
            scale = (x.numel() * self.levels) ** -0.5
            step = step * scale + (step * (1 - scale)).detach()
        ratio = x / step
        position = ratio + (ratio.round() - ratio).detach() + self.zero
        quantised = (position.clamp(0, self.levels) - self.zero) * step
        if self.keep < 1:
            kept = torch.rand(x.shape, device=x.device, generator=self.generator) < self.keep
            return torch.where(kept, quantised, x)
        return quantised

    @property
    def is_ready(self) -> bool:
        """Whether the range is known."""
        return bool(self.ready)

    @torch.no_grad()
    def find_range(self) -> None:
        """Shrinks the range of what was seen to the least ``mean |x - x̂|^2.4``, in 80 steps."""
        assert self.seen, "nothing has passed yet"
        x = torch.cat(self.seen)
        self.seen = None
        x = x[:: max(1, len(x) // MOST_ENTRIES)]
        top, bottom = x.amax().clamp(min=0), x.amin().clamp(max=0)
        tiny = torch.finfo(x.dtype).tiny
        shrink = torch.tensor(SHRINK, device=x.device, dtype=x.dtype)
        steps = (shrink * (top - bottom) / self.levels).clamp(min=tiny)
        zeros = -(shrink * bottom / steps).round()
        best = torch.inf
        for step, zero in zip(steps, zeros, strict=True):
            x_hat = ((x / step).round() + zero).clamp(0, self.levels).sub(zero) * step
            error = float((x - x_hat).abs().pow(NORM).mean())
            if error < best:
                best = error
                self.step.copy_(step)
                self.zero.copy_(zero)
        self.ready.fill_(True)
