"""The weather discriminator, and what it is asked in adversarial and in control arms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.knobs import Count, checked
from repro.toolbox.gradient_reversal import reverse

Adversary = Literal["none", "reversed", "shuffled", "cooperative"]


class GatedAttention(nn.Module):
    """A mean over frames, weighted by ``softmax(w (tanh(V h) * sigmoid(U h)))`` (Ilse et al. 2018).

    Args:
        width: C.
        inner: rows of V and U.
    """

    @checked
    def __init__(self, width: Count, inner: Count = 128) -> None:
        super().__init__()
        self.V, self.U = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.w = nn.Linear(inner, 1, bias=False)

    def weights(self, h_BTC: Tensor) -> Tensor:
        """(B, T, 1), which sum to one over frames."""
        return self.w(torch.tanh(self.V(h_BTC)) * torch.sigmoid(self.U(h_BTC))).softmax(1)

    def forward(self, h_BTC: Tensor) -> Tensor:
        """(B, C)."""
        return (self.weights(h_BTC) * h_BTC).sum(1)


class WeatherDiscriminator(nn.Module):
    """Names the weather of a clip from features of its frames that were pooled over space.

    Args:
        width: C.
        weathers: how many there are.
        inner: of `GatedAttention`.
    """

    @checked
    def __init__(self, width: Count, weathers: Count = 3, inner: Count = 128) -> None:
        super().__init__()
        self.pool = GatedAttention(width, inner)
        self.classify = nn.Linear(width, weathers, bias=False)

    def forward(self, h_BTC: Tensor) -> Tensor:
        """Logits (B, weathers)."""
        logits: Tensor = self.classify(self.pool(h_BTC))
        return logits


def weather_loss(
    discriminator: nn.Module, pixels_BTC: Tensor, weather_B: Tensor, strength: float
) -> Tensor:
    """Cross-entropy of the discriminator, whose gradient comes to the features reversed.

    Args:
        discriminator: maps features to logits.
        pixels_BTC: pooled features of the encoder.
        weather_B: labels.
        strength: of the reversal (`repro.toolbox.gradient_reversal.dann_strength`); it does not
            touch the discriminator's own gradient. A negative one makes the two cooperate.
    """
    return F.cross_entropy(discriminator(reverse(pixels_BTC, strength)), weather_B)


def adversary_labels(weather_B: Tensor, adversary: Adversary, generator: torch.Generator) -> Tensor:
    """What the discriminator is to name: the weather, or (``shuffled``) that of another clip.

    Args:
        weather_B: labels.
        adversary: the kind of arm.
        generator: of the permutation, on the CPU.
    """
    if adversary != "shuffled":
        return weather_B
    return weather_B[torch.randperm(len(weather_B), generator=generator).to(weather_B.device)]
