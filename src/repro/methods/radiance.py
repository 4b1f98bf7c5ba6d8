"""RADIANCE: maps of radio coverage from a conditional GAN that also matches their gradients.

Sarkar, Manshaei, Krunz, *RADIANCE: Radio-Frequency Adversarial Deep-learning Inference for
Automated Network Coverage Estimation* (GLOBECOM 2023, arXiv 2308.10584). A generator turns planes
that describe a room, an antenna and a frequency into a map of received power; beside an adversary
and the absolute error it minimises how the map's slope differs, in magnitude and in direction::

    L_G = BCE(D(c, ŷ), 1) + Σ_k λ_k L_k(ŷ, y)
    L_D = ½ [BCE(D(c, y), 1) + BCE(D(c, ŷ), 0)]

The paper's abstract says as much; the formulas of both slopes (`Slopes`) are this project's.

A plain loop:

>>> import torch
>>> from repro.models.vision.translation import PatchGAN, ResizeUNet
>>> generator = ResizeUNet([6, 32, 32], width=8)
>>> discriminator = PatchGAN(6 + 1, width=8, strides=[2, 2], head=3, norm=False)
>>> of_maps = MapLoss({"l1": 100.0, "magnitude": 100.0, "direction": 2.0})
>>> optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
>>> of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))
>>> for step in range(2):
...     c, y = torch.rand(4, 6, 32, 32), torch.rand(4, 1, 32, 32)
...     fake = generator(c)  # once, for both
...     of_discriminator.zero_grad()
...     judged(discriminator, c, y, fake).loss().backward()
...     of_discriminator.step()
...     optimizer.zero_grad()
...     loss = adversarial_loss(discriminator, c, fake) + of_maps(fake, y)
...     loss.backward()
...     optimizer.step()
>>> bool(loss.isfinite())
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from repro.knobs import KnobError, Positive, check_choice, checked

Discriminator = Callable[[Tensor, Tensor], Tensor]  # condition and map to logits


class Slope(NamedTuple):
    """The gradient of maps, (B, C, H, W) each; at the border it is 0."""

    x: Tensor
    y: Tensor


class SlopeErrors(NamedTuple):
    """How two maps' slopes differ.

    Attributes:
        magnitude: mean absolute difference of the magnitudes.
        direction: mean of 1 - cos of the angle between them, weighted by the target's magnitude;
            in [0, 2].
        derivatives: mean absolute difference of the derivatives, with their signs.
    """

    magnitude: Tensor
    direction: Tensor
    derivatives: Tensor


class Slopes:
    """Compares the gradients of two maps: magnitude and direction of the change at each pixel.

    With m(u) = √(u_x² + u_y² + ε²)::

        L_mag = mean |m(ŷ) - m(y)|
        L_dir = mean w (1 - (ŷ_x y_x + ŷ_y y_y + ε²) / (m(ŷ) m(y))),   w = m(y) / mean m(y)

    The weight leaves out what is flat, where a direction means nothing.

    Args:
        derivative: ``pixel``, central differences; ``sobel``, these, smoothed across; ``radial``,
            central differences along the ray from the map's origin alone.
        angle: ``cosine``, as above; ``angle``: the angle in the place of 1 - cos, in [0, π], whose
            gradient is not bounded.
        eps: ε, in units of the map.
    """

    @checked
    def __init__(
        self,
        derivative: Literal["pixel", "sobel", "radial"] = "pixel",
        angle: Literal["cosine", "angle"] = "cosine",
        eps: Positive = 1e-4,
    ) -> None:
        self.derivative, self.angle, self.eps = derivative, angle, eps

    def slope(self, maps: Tensor, origin: Tensor | None = None) -> Slope:
        """The gradient of maps (B, C, H, W), per pixel.

        Args:
            maps: what is differentiated.
            origin: (B, 1, H, W), whose largest pixel is where rays begin (``radial``).

        Raises:
            KnobError: rays have no origin.
        """
        u = maps
        dx = F.pad(0.5 * (u[..., 1:-1, 2:] - u[..., 1:-1, :-2]), (1, 1, 1, 1))
        dy = F.pad(0.5 * (u[..., 2:, 1:-1] - u[..., :-2, 1:-1]), (1, 1, 1, 1))
        if self.derivative == "sobel":
            dx, dy = _smoothed(dx, -2), _smoothed(dy, -1)
        if self.derivative == "radial":
            if origin is None:
                raise KnobError("Slopes", "derivative", "is radial, and needs an origin.")
            along = _rays(origin)
            outwards = dx * along.x + dy * along.y
            return Slope(outwards, torch.zeros_like(outwards))
        return Slope(dx, dy)

    def magnitude(self, slope: Slope) -> Tensor:
        """m(u), of the maps' shape."""
        return (slope.x.square() + slope.y.square() + self.eps**2).sqrt()

    def __call__(self, fake: Tensor, real: Tensor, origin: Tensor | None = None) -> SlopeErrors:
        """The errors of maps (B, C, H, W).

        Args:
            fake: maps.
            real: their targets.
            origin: see `slope`.
        """
        ours, theirs = self.slope(fake, origin), self.slope(real, origin)
        m, target = self.magnitude(ours), self.magnitude(theirs)
        dot = ours.x * theirs.x + ours.y * theirs.y + self.eps**2
        if self.angle == "cosine":
            apart = 1 - dot / (m * target)
        else:
            apart = torch.atan2(ours.x * theirs.y - ours.y * theirs.x, dot).abs()
        return SlopeErrors(
            magnitude=(m - target).abs().mean(),
            direction=(target / target.mean() * apart).mean(),
            derivatives=F.l1_loss(ours.x, theirs.x) + F.l1_loss(ours.y, theirs.y),
        )


class MapLoss:
    """The weighted sum of what maps are compared by.

    Args:
        weights: of ``l1``, the mean absolute error; of ``magnitude``, ``direction`` and
            ``derivatives`` (`SlopeErrors`); of ``ssim``, one minus the structural similarity in
            windows of 3 x 3 pixels. Those of 0 are not computed.
        slopes: how slopes are compared.
        shuffled: compares slopes with those of the batch's next map: as large, and of no use. A
            control.

    Raises:
        KnobError: a weight is negative, or of an unknown term.
    """

    TERMS = ("l1", *SlopeErrors._fields, "ssim")

    def __init__(
        self, weights: Mapping[str, float], slopes: Slopes | None = None, shuffled: bool = False
    ) -> None:
        for name, weight in weights.items():
            check_choice("MapLoss", "weights", name, self.TERMS)
            if not 0 <= weight < math.inf:
                raise KnobError("MapLoss", f"weights.{name}", f"is at least 0, not {weight}.")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        self.slopes, self.shuffled = slopes or Slopes(), shuffled

    def terms(self, fake: Tensor, real: Tensor, origin: Tensor | None = None) -> dict[str, Tensor]:
        """The terms that have a weight, by name, without it.

        Args:
            fake: maps (B, C, H, W) in [0, 1].
            real: their targets.
            origin: see `Slopes.slope`.
        """
        found: dict[str, Tensor] = {}
        if "l1" in self.weights:
            found["l1"] = F.l1_loss(fake, real)
        if "ssim" in self.weights:
            alike = structural_similarity_index_measure(
                fake, real, gaussian_kernel=False, kernel_size=3, data_range=1.0
            )
            found["ssim"] = 1 - torch.as_tensor(alike)
        asked = self.weights.keys() & set(SlopeErrors._fields)
        if asked:
            other = real.roll(1, 0) if self.shuffled else real
            errors = self.slopes(fake, other, origin)._asdict()
            found |= {name: errors[name] for name in SlopeErrors._fields if name in asked}
        return found

    def __call__(self, fake: Tensor, real: Tensor, origin: Tensor | None = None) -> Tensor:
        """Σ λ_k L_k; see `terms`."""
        terms = self.terms(fake, real, origin)
        return sum((self.weights[name] * term for name, term in terms.items()), fake.new_zeros(()))


class Judgement(NamedTuple):
    """What a discriminator makes of maps, as logits that are positive for real ones.

    Attributes:
        real: of real maps, any shape.
        fake: of generated ones.
    """

    real: Tensor
    fake: Tensor

    def loss(self) -> Tensor:
        """½ [BCE(D(c, y), 1) + BCE(D(c, ŷ), 0)], the discriminator's."""
        # BCE with logits l: softplus(-l) for ones, softplus(l) for zeros.
        return 0.5 * (F.softplus(-self.real).mean() + F.softplus(self.fake).mean())

    def accuracy(self) -> Tensor:
        """The share of patches that are told right, each kind counting half."""
        return 0.5 * ((self.real > 0).float().mean() + (self.fake <= 0).float().mean())


def judged(
    discriminator: Discriminator, condition: Tensor, real: Tensor, fake: Tensor
) -> Judgement:
    """What a discriminator is trained by; no gradient reaches the generator.

    Args:
        discriminator: gives logits.
        condition: c (B, C, H, W).
        real: y (B, 1, H, W).
        fake: ŷ, likewise.
    """
    return Judgement(discriminator(condition, real), discriminator(condition, fake.detach()))


def adversarial_loss(discriminator: nn.Module, condition: Tensor, fake: Tensor) -> Tensor:
    """BCE(D(c, ŷ), 1), the generator's; the discriminator's weights get no gradient."""
    weights = [each for each in discriminator.parameters() if each.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    loss = F.softplus(-discriminator(condition, fake)).mean()
    for weight in weights:
        weight.requires_grad_(True)
    return loss


def _smoothed(u: Tensor, axis: int) -> Tensor:
    """Binomial weights ¼ ½ ¼ along an axis; the border stays 0."""
    inner = u.narrow(axis, 1, u.shape[axis] - 2)
    before, after = (u.narrow(axis, start, u.shape[axis] - 2) for start in (0, 2))
    pad = (0, 0, 1, 1) if axis == -2 else (1, 1, 0, 0)
    return F.pad(0.25 * before + 0.5 * inner + 0.25 * after, pad)


def _rays(origin: Tensor) -> Slope:
    """Unit vectors (B, 1, H, W) away from the largest pixel of each (B, 1, H, W); 0 at it."""
    B, _, H, W = origin.shape
    start = origin.flatten(1).argmax(1).view(B, 1, 1, 1)
    x = torch.arange(W, device=origin.device) - start % W
    y = torch.arange(H, device=origin.device)[:, None] - start // W
    distance = torch.hypot(*torch.broadcast_tensors(x.to(origin.dtype), y.to(origin.dtype)))
    distance = distance.clamp(min=0.5)
    return Slope(x / distance, y / distance)
