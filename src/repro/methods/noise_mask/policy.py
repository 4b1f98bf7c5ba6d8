"""The policy: a network that says, for each image, where to put how much noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, Fraction, Share, checked
from repro.methods.noise_mask.masks import BetaLogits


class MaskPolicy(nn.Module):
    """Maps images to the Beta parameters of a mask's cells (the authors' ``create_model.py``).

    ``log α = (1 - mix) base + mix head(body(x))``, likewise β. The bases are shared by all images;
    they start at random in [0, 1), get no gradient and move towards the heads' mean output, by
    ``1 - decay`` a step: what they have become counts from the next step on.

    With ``body`` a ResNet-10-T and a grid of 64 it has 10.18 M parameters.

    Args:
        body: a network that ends in a linear layer ``fc``, which is taken off.
        grid: G; a mask has G x G cells.
        mix: share of the image's own parameters.
        decay: of the bases.

    Raises:
        UserError: the body has no ``fc``.
    """

    base_alpha: Tensor
    base_beta: Tensor

    @checked
    def __init__(
        self, body: Any, grid: Count = 64, mix: Share = 0.1, decay: Fraction = 0.99
    ) -> None:
        super().__init__()
        head = getattr(body, "fc", None)
        if not isinstance(head, nn.Linear):
            raise UserError(
                f"method.policy.body: {type(body).__name__} does not end in a linear layer `fc`;"
                " choose a small_cnn or a resnet."
            )
        body.fc = nn.Identity()
        self.body, self.grid, self.mix, self.decay = body, grid, mix, decay
        self.alpha = _head(head.in_features, grid**2)
        self.beta = _head(head.in_features, grid**2)
        self.register_buffer("base_alpha", torch.rand(grid**2))
        self.register_buffer("base_beta", torch.rand(grid**2))

    def forward(self, x: Tensor) -> BetaLogits:
        """The parameters for images (B, channels, H, W); in training the bases move."""
        features = self.body(x)
        alpha_BC, beta_BC = self.alpha(features), self.beta(features)
        mixed = BetaLogits(
            torch.lerp(self.base_alpha, alpha_BC, self.mix),
            torch.lerp(self.base_beta, beta_BC, self.mix),
        )
        if self.training:
            self.base_alpha = torch.lerp(alpha_BC.detach().mean(0), self.base_alpha, self.decay)
            self.base_beta = torch.lerp(beta_BC.detach().mean(0), self.base_beta, self.decay)
        return mixed

    def bases(self, count: int) -> BetaLogits:
        """The shared parameters alone, for so many images."""
        return BetaLogits(
            self.base_alpha.expand(count, -1).detach(), self.base_beta.expand(count, -1).detach()
        )

    def base_spread(self) -> Tensor:
        """The standard deviation over cells of the mean that the bases give a mask."""
        return torch.sigmoid(self.base_alpha - self.base_beta).std(correction=0)


def _head(width: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))
