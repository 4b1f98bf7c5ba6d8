"""The networks of DrQ-v2 and DrM, and the actor whose hidden layer is a mixture of experts.

Shape suffixes: B samples, F features of the encoder, J joint readings, D trunk, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.knobs import Count, Fraction, Natural, checked
from repro.methods.mentor.experts import TopKMoE

Hidden = Literal["mlp", "wide_mlp", "moe"]


def initialise(model: nn.Module) -> None:
    """Orthogonal weights (gain √2 for convolutions, 1 for linear layers), and no biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = math.sqrt(2) if isinstance(module, nn.Conv2d) else 1.0
            nn.init.orthogonal_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Encoder(nn.Sequential):
    """Convolutions 3×3 without padding, each with a ReLU, on pictures in [0, 255].

    Args:
        shape: (channels, height, width) of a picture.
        channels: of every layer.
        strides: of the layers.
    """

    @checked
    def __init__(
        self, shape: Sequence[int], channels: Count = 32, strides: Sequence[Count] = (2, 1, 1, 1)
    ) -> None:
        layers: list[nn.Module] = []
        inputs, *sides = shape
        for stride in strides:
            layers += [nn.Conv2d(inputs, channels, 3, stride), nn.ReLU()]
            inputs, sides = channels, [(side - 3) // stride + 1 for side in sides]
        super().__init__(*layers, nn.Flatten())
        self.features = inputs * math.prod(sides)

    @override
    def forward(self, pixels: Tensor) -> Tensor:
        """Maps (B, channels, height, width) to (B, F)."""
        features: Tensor = super().forward(pixels.float() / 255 - 0.5)
        return features


class Trunk(nn.Module):
    """Linear, layer norm, tanh: (B, F + J) to (B, D).

    Where there are joint readings a second path takes them to D as well, and a linear layer joins
    the two.

    Args:
        features: F.
        joints: J, often 0.
        width: D.
    """

    def __init__(self, features: int, joints: int, width: int) -> None:
        super().__init__()
        self.sizes = [features, joints]
        self.sight = nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.Tanh())
        self.feeling = nn.Sequential(nn.Linear(joints, width), nn.ReLU()) if joints else None
        self.fusion = nn.Linear(2 * width, width) if joints else None

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, F + J) to (B, D)."""
        features, joints = x.split(self.sizes, 1)
        seen: Tensor = self.sight(features)
        if self.feeling is None or self.fusion is None:
            return seen
        fused: Tensor = self.fusion(torch.cat([seen, self.feeling(joints)], 1))
        return fused


class Actor(nn.Module):
    """``μ = tanh(L(ReLU(H(ReLU(L(trunk))))))``, H linear, wider, or a mixture of experts.

    Args:
        features: F.
        joints: J.
        actions: A.
        trunk: D.
        width: of the first hidden layer, and of the second unless it is wider.
        hidden: ``mlp``, ``moe``, or ``wide_mlp``, which has as many parameters as the mixture.
        moe: arguments of `TopKMoE`.
    """

    @checked
    def __init__(
        self,
        features: Count,
        joints: Natural,
        actions: Count,
        trunk: Count = 50,
        width: Count = 1024,
        hidden: Hidden = "moe",
        moe: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(features, joints, trunk)
        mixture = TopKMoE(width, width, **(moe or {}))
        second = width
        if hidden == "wide_mlp":
            weights = sum(each.numel() for each in mixture.parameters()) + actions * width
            second = round(weights / (width + 1 + actions))
        self.hidden = mixture if hidden == "moe" else nn.Linear(width, second)
        self.policy = nn.Sequential(
            nn.Linear(trunk, width),
            nn.ReLU(),
            self.hidden,
            nn.ReLU(),
            nn.Linear(second, actions),
        )
        initialise(self)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, F + J) to mean actions (B, A) in (-1, 1)."""
        return torch.tanh(self.policy(self.trunk(x)))


def value_head(inputs: int, width: int, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    """Two hidden layers and one output; before each ReLU dropout and a layer norm if asked for."""
    layers: list[nn.Module] = []
    for size in (inputs, width):
        layers += [nn.Linear(size, width)]
        layers += [nn.Dropout(dropout)] if dropout else []
        layers += [nn.LayerNorm(width)] if norm else []
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


class Critic(nn.Module):
    """Two values of an action, from one trunk.

    Args:
        features: F.
        joints: J.
        actions: A.
        trunk: D.
        width: of hidden layers.
        dropout: in them.
        norm: layer norms in them.
    """

    @checked
    def __init__(
        self,
        features: Count,
        joints: Natural,
        actions: Count,
        trunk: Count = 50,
        width: Count = 1024,
        dropout: Fraction = 0.0,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = Trunk(features, joints, trunk)
        self.heads = nn.ModuleList(
            value_head(trunk + actions, width, dropout, norm) for _ in range(2)
        )
        initialise(self)

    @override
    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        """Maps (B, F + J) and actions (B, A) to both values (2, B)."""
        inputs = torch.cat([self.trunk(x), action], 1)
        return torch.stack([head(inputs).squeeze(1) for head in self.heads])


class Value(nn.Module):
    """The value of exploiting what is in the replay.

    Args:
        features: F.
        joints: J.
        trunk: D.
        width: of hidden layers.
    """

    @checked
    def __init__(
        self, features: Count, joints: Natural, trunk: Count = 50, width: Count = 1024
    ) -> None:
        super().__init__()
        self.trunk = Trunk(features, joints, trunk)
        self.head = value_head(trunk, width)
        initialise(self)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, F + J) to (B,)."""
        values: Tensor = self.head(self.trunk(x)).squeeze(1)
        return values


def expectile_loss(value: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Mean of ``w (target − value)²`` with ``w = expectile`` below the target, else the rest."""
    weight = torch.where(value < target, expectile, 1 - expectile)
    return (weight * (target - value).square()).mean()


def random_shift(pixels: Tensor, reach: int) -> Tensor:
    """Moves each picture by up to ``reach`` pixels either way, repeating its border.

    What DrQ-v2 samples bilinearly: its shifts are whole pixels, so that a crop is the same.

    Args:
        pixels: (B, C, H, W) of any type.
        reach: of the shift, at least 0.
    """
    if not reach:
        return pixels
    B, C, H, W = pixels.shape
    corner_2B1 = torch.randint(2 * reach + 1, (2, B, 1), device=pixels.device) - reach
    row_BH = (corner_2B1[0] + torch.arange(H, device=pixels.device)).clamp(0, H - 1)
    column_BW = (corner_2B1[1] + torch.arange(W, device=pixels.device)).clamp(0, W - 1)
    place_BHW = row_BH[:, :, None] * W + column_BW[:, None]
    moved = pixels.flatten(2).gather(2, place_BHW.view(B, 1, -1).expand(-1, C, -1))
    return moved.view_as(pixels)


def clipped_noise(mean: Tensor, sigma: float, clip: float | None = None) -> Tensor:
    """Actions around their means, noise within ±clip, all within (−1, 1)."""
    noise = sigma * torch.randn_like(mean)
    if clip is not None:
        noise = noise.clamp(-clip, clip)
    return straight_clamp(mean + noise)


def straight_clamp(action: Tensor) -> Tensor:
    """Within (−1, 1), with the gradient of the identity (as DrQ-v2's truncated normal)."""
    clamped = action.clamp(-1 + 1e-6, 1 - 1e-6)
    return action - action.detach() + clamped.detach()


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """The critic's loss: the sum of two mean squared errors, of values (2, B) to (B,)."""
    return F.mse_loss(values, target.expand_as(values)) * 2
