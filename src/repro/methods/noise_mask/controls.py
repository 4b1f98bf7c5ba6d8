"""What the masks are compared with: noise that nobody learns, and nothing but their loss scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Natural, Positive, checked
from repro.methods.noise_mask.masks import generator_of_step
from repro.toolbox.method import Batch, LossOf, Method


class InputNoise(Method):
    """Trains on disturbed inputs, with a factor on the loss.

    By SGD a factor c on the loss at the rate r and the decay d is exactly the rate c·r at the decay
    d / c (both, where the optimizer adds its decay to the gradient).

    Args:
        noise: ``none``; ``constant``, inputs times ``strength``; ``gaussian``, plus noise of that
            standard deviation; ``cutout``, a square of that share of the shorter side set to zero
            around a random pixel (DeVries & Taylor 2017).
        strength: see there.
        loss_scale: the factor.
        seed: of the noise.

    Raises:
        UserError: a knob is out of range.
    """

    @checked
    def __init__(
        self,
        noise: Literal["none", "constant", "gaussian", "cutout"] = "none",
        strength: Positive = 0.5,
        loss_scale: Positive = 1.0,
        seed: Natural = 0,
    ) -> None:
        self.noise, self.strength, self.loss_scale, self.seed = noise, strength, loss_scale, seed
        self.step = 0

    @override
    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        x, *rest = batch
        loss = loss_of((self.disturbed(x), *rest))
        backward(self.loss_scale * loss)
        self.step += 1
        return loss.detach()

    def disturbed(self, x: Tensor) -> Tensor:
        """Inputs (B, …) with this step's noise.

        Raises:
            UserError: they are no numbers, or no images where squares are cut out.
        """
        if self.noise == "none":
            return x
        if not x.is_floating_point():
            raise UserError(f"input_noise: noise={self.noise} disturbs numbers, not tokens.")
        if self.noise == "constant":
            return x * self.strength
        generator = generator_of_step(self.seed, self.step, x.device)
        if self.noise == "gaussian":
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            return x + self.strength * noise
        if x.dim() != 4:
            raise UserError("input_noise: noise=cutout cuts squares out of images.")
        return x * ~_squares(x, self.strength, generator)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def _squares(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which pixels (B, 1, H, W) lie in squares around random ones, cut off at the border."""
    B, _, H, W = x.shape
    side = max(1, round(share * min(H, W)))
    inside = []
    for edge in (H, W):
        centre_B1 = torch.randint(edge, (B, 1), generator=generator, device=x.device)
        start_B1 = centre_B1 - side // 2
        place_E = torch.arange(edge, device=x.device)
        inside.append((place_E >= start_B1) & (place_E < start_B1 + side))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
