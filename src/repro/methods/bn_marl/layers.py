"""Layers of R independent replicas: one tensor program trains R networks from R random starts.

Every parameter and every input has a leading axis R. Nothing mixes replicas, so each of them is
trained exactly as it would be alone (gradient clipping included, see `clip_each`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """R affine maps: (R, ..., in) to (R, ..., out), with orthogonal weights and no initial bias."""

    def __init__(self, replicas: int, inputs: int, outputs: int, gain: float = 2**0.5) -> None:
        super().__init__()
        weight = torch.empty(replicas, inputs, outputs)
        for each in weight:
            nn.init.orthogonal_(each, gain)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(replicas, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Applies each replica's map to its own inputs."""
        flat = torch.baddbmm(self.bias, x.flatten(1, -2), self.weight)
        return flat.view(*x.shape[:-1], -1)


class LayerNorm(nn.Module):
    """R layer normalisations of (R, ..., features), each with its own scale and shift."""

    def __init__(self, replicas: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(replicas, features))
        self.bias = nn.Parameter(torch.zeros(replicas, features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises over the last axis."""
        x = nn.functional.layer_norm(x, x.shape[-1:])
        shape = (len(x), *[1] * (x.dim() - 2), -1)
        return torch.addcmul(self.bias.view(shape), x, self.weight.view(shape))


class Trunk(nn.Sequential):
    """LayerNorm → (Linear → ReLU → LayerNorm) twice: the base of actor and critic."""

    def __init__(self, replicas: int, inputs: int, hidden: int) -> None:
        super().__init__(
            LayerNorm(replicas, inputs),
            Linear(replicas, inputs, hidden),
            nn.ReLU(),
            LayerNorm(replicas, hidden),
            Linear(replicas, hidden, hidden),
            nn.ReLU(),
            LayerNorm(replicas, hidden),
        )


def clip_each(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clips the global gradient norm of each replica on its own."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    norm_R = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
    scale_R = (max_norm / (norm_R + 1e-6)).clamp(max=1.0)
    for g in grads:
        g.mul_(scale_R.view(-1, *[1] * (g.dim() - 1)))


class ValueNorm(nn.Module):
    """Running mean and deviation of value targets per replica, debiased (as in MAPPO).

    Args:
        replicas: R.
        beta: weight of the past in each update.
    """

    mean: Tensor
    square: Tensor
    weight: Tensor

    def __init__(self, replicas: int, beta: float = 0.99999) -> None:
        super().__init__()
        self.beta = beta
        for name in ("mean", "square", "weight"):
            self.register_buffer(name, torch.zeros(replicas, dtype=torch.float64))

    @torch.no_grad()
    def update(self, targets: Tensor) -> None:
        """Takes in targets (R, ...)."""
        flat = targets.flatten(1).double()
        self.mean.lerp_(flat.mean(1), 1 - self.beta)
        self.square.lerp_(flat.square().mean(1), 1 - self.beta)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.beta)

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.weight.clamp(min=1e-12)
        mean = self.mean / weight
        deviation = (self.square / weight - mean.square()).clamp(min=1e-2).sqrt()
        shape = (-1, *[1] * (like.dim() - 1))
        return mean.to(like.dtype).view(shape), deviation.to(like.dtype).view(shape)

    def normalise(self, targets: Tensor) -> Tensor:
        """Targets in units of their running deviation around their running mean."""
        mean, deviation = self._moments(targets)
        return (targets - mean) / deviation

    def restore(self, values: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, deviation = self._moments(values)
        return values * deviation + mean
