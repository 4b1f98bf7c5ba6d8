"""Covariances of infinitely wide networks, layer by layer (the NNGP and its tangent kernel).

In the NTK parametrisation a layer is h' = (w/√n) W φ(h) + b β with standard normal W and β, and the
readout f = (σ_v/√n) vᵀφ(h) has no bias. Here σ_v = 1: the random scale of the paper multiplies the
whole kernel. As the widths grow, the units of a layer become independent Gaussian processes, and
one function suffices to describe them: their covariance k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, NonNegative, Positive, check_choice, checked

# Keeps arccos and the square root away from where their gradients are infinite.
CLAMP = 1e-9
GROUPS = (1, 2, 2, 2)  # strides of the groups of convolutional residual blocks


@dataclass(frozen=True)
class Covariance:
    """Covariance of one unit of a wide layer, between inputs x and z and of each with itself.

    Attributes:
        xz: (N, M, *P), P being the positions of an image (nothing for a dense layer).
        xx: (N, *P).
        zz: (M, *P).
    """

    xz: Tensor
    xx: Tensor
    zz: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Covariance:
        """Applies a function that treats all entries alike."""
        return Covariance(function(self.xz), function(self.xx), function(self.zz))

    def __add__(self, other: Covariance) -> Covariance:
        """The covariance of a sum of independent units."""
        return Covariance(self.xz + other.xz, self.xx + other.xx, self.zz + other.zz)


@dataclass(frozen=True)
class Activation:
    """What a nonlinearity φ does to covariances.

    Attributes:
        between: E[φ(u) φ(v)] from the covariance and the two variances of Gaussian (u, v).
        own: E[φ(u)²] from the variance; the same thing where u = v, without its singularities.
        slope: E[φ'(u) φ'(v)], which is the derivative of `between` by the covariance.
        own_slope: E[φ'(u)²].
    """

    between: Callable[[Tensor, Tensor, Tensor], Tensor]
    own: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor, Tensor], Tensor]
    own_slope: Callable[[Tensor], Tensor]
    function: Callable[[Tensor], Tensor]


def _angle(k: Tensor, kx: Tensor, kz: Tensor) -> tuple[Tensor, Tensor]:
    norms = (kx * kz).clamp_min(1e-300).sqrt()
    return norms, (k / norms).clamp(-1 + CLAMP, 1 - CLAMP)


def _relu(k: Tensor, kx: Tensor, kz: Tensor) -> Tensor:
    """Arc-cosine kernel of order 1 (Cho & Saul, 2009)."""
    norms, cosine = _angle(k, kx, kz)
    theta = torch.arccos(cosine)
    return norms * ((1 - cosine.square()).sqrt() + (math.pi - theta) * cosine) / (2 * math.pi)


def _relu_slope(k: Tensor, kx: Tensor, kz: Tensor) -> Tensor:
    _, cosine = _angle(k, kx, kz)
    return (math.pi - torch.arccos(cosine)) / (2 * math.pi)


def _erf(k: Tensor, kx: Tensor, kz: Tensor) -> Tensor:
    """Williams (1997)."""
    return 2 / math.pi * torch.asin(2 * k / ((1 + 2 * kx) * (1 + 2 * kz)).sqrt())


def _erf_slope(k: Tensor, kx: Tensor, kz: Tensor) -> Tensor:
    return 4 / math.pi / ((1 + 2 * kx) * (1 + 2 * kz) - 4 * k.square()).sqrt()


ACTIVATIONS = {
    "relu": Activation(
        _relu, lambda k: k / 2, _relu_slope, lambda k: torch.full_like(k, 0.5), torch.relu
    ),
    "erf": Activation(
        _erf,
        lambda k: 2 / math.pi * torch.asin(2 * k / (1 + 2 * k)),
        _erf_slope,
        lambda k: 4 / math.pi / (1 + 4 * k).sqrt(),
        torch.erf,
    ),
}


def activation(name: str) -> Activation:
    """The nonlinearity of a name."""
    check_choice("NNGPKernel", "act", name, ACTIVATIONS)
    return ACTIVATIONS[name]


class NNGPKernel(nn.Module):
    """The kernel of an infinitely wide network with σ_v = `last_w_std`, its scales trainable.

    Dense: `depth` times (affine, φ), then the readout. With ``residual``, an affine layer, `depth`
    blocks h + affine(φ(h)), φ, readout. Convolutional: the affine layers are 3 × 3 convolutions
    with zero padding, and all positions are flattened into the readout without pooling, so that
    only the covariances between equal positions are needed. With ``residual``, as the authors' code
    has it, a convolution and four groups of `depth` blocks h + affine(φ(affine(φ(h)))), no φ before
    the readout; the first block of a group has an affine shortcut, and in all groups but the first
    it halves the image.

    Args:
        depth: hidden layers, or residual blocks (of each group).
        act: ``relu`` or ``erf``.
        w_std: standard deviation of hidden weights, positive.
        b_std: of hidden biases, positive or zero.
        last_w_std: of the readout, positive.
        kind: ``dense`` or ``conv``.
        residual: whether there are skip connections.
        train_last: whether `last_w_std` is trained with the others.

    Raises:
        UserError: a value is out of its range.
    """

    @checked
    def __init__(
        self,
        depth: Count = 4,
        act: str = "relu",
        w_std: Positive = 1.4,
        b_std: NonNegative = 0.3,
        last_w_std: Positive = 1.0,
        kind: Literal["dense", "conv"] = "dense",
        residual: bool = False,
        train_last: bool = True,
    ) -> None:
        super().__init__()
        self.depth, self.act, self.kind, self.residual = depth, activation(act), kind, residual
        # A bias of exactly zero would be minus infinity before softplus.
        self.raw = nn.Parameter(unsoftplus([w_std, max(b_std, 1e-8)]))
        self.raw_last = nn.Parameter(unsoftplus([last_w_std]), requires_grad=train_last)

    def scales(self) -> tuple[Tensor, Tensor, Tensor]:
        """The standard deviations w, b and σ_v, float64 scalars."""
        w_std, b_std = F.softplus(self.raw)
        return w_std, b_std, F.softplus(self.raw_last)[0]

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The kernel matrix (N, M) of x (N, …) and z (M, …); of x with itself without z."""
        readout = self._readout(x, x if z is None else z)
        if z is None:  # exactly, instead of to rounding
            return readout.xz.diagonal_scatter(readout.xx)
        return readout.xz

    def with_diagonals(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel (N, M) of x and z, and the kernel (N,) of each x with itself."""
        readout = self._readout(x, z)
        return readout.xz, readout.xx

    def tangent(self, x: Tensor, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The NNGP kernel and the neural tangent kernel Θ, both (N, M), of a dense network.

        Θ follows Θ⁰ = k⁰, Θ^{l+1} = k^{l+1} + w² E[φ'φ'] Θ^l (Jacot et al., 2018).

        Raises:
            UserError: the network is not a plain dense one.
        """
        if self.kind != "dense" or self.residual:
            raise UserError("nngp: the tangent kernel is that of plain dense networks only.")
        w_std, _, last = self.scales()
        k = self._affine(_inputs(x, x if z is None else z))
        theta = k
        for layer in range(self.depth):
            slope = Covariance(
                self.act.slope(k.xz, *_sides(k)), self.act.own_slope(k.xx), self.act.own_slope(k.zz)
            )
            is_last = layer == self.depth - 1
            weight = last if is_last else w_std
            k = self._activate(k)
            k = k.map(last.square().mul) if is_last else self._affine(k)
            theta = Covariance(
                k.xz + weight**2 * slope.xz * theta.xz,
                k.xx + weight**2 * slope.xx * theta.xx,
                k.zz + weight**2 * slope.zz * theta.zz,
            )
        if z is None:
            return k.xz.diagonal_scatter(k.xx), theta.xz.diagonal_scatter(theta.xx)
        return k.xz, theta.xz

    def _readout(self, x: Tensor, z: Tensor) -> Covariance:
        k = self._affine(_inputs(x, z, images=self.kind == "conv"))
        if self.residual and self.kind == "conv":
            for stride in GROUPS:
                k = self._affine(k, stride) + self._twice(k, stride)
                for _ in range(self.depth - 1):
                    k = k + self._twice(k)
        elif self.residual:
            for _ in range(self.depth):
                k = k + self._affine(self._activate(k))
            k = self._activate(k)
        else:
            for layer in range(self.depth):
                k = self._activate(k)
                if layer < self.depth - 1:
                    k = self._affine(k)
        last = self.scales()[2]
        if self.kind == "conv":
            k = Covariance(k.xz.mean((-1, -2)), k.xx.mean((-1, -2)), k.zz.mean((-1, -2)))
        return k.map(lambda e: last**2 * e)

    def _twice(self, k: Covariance, stride: int = 1) -> Covariance:
        """The branch of a convolutional block: affine(φ(affine(φ(h))))."""
        return self._affine(self._activate(self._affine(self._activate(k), stride)))

    def _affine(self, k: Covariance, stride: int = 1) -> Covariance:
        w_std, b_std, _ = self.scales()
        if self.kind == "conv":
            k = k.map(lambda e: _neighbours(e, stride))
        return k.map(lambda e: w_std**2 * e + b_std**2)

    def _activate(self, k: Covariance) -> Covariance:
        between = self.act.between(k.xz, *_sides(k))
        return Covariance(between, self.act.own(k.xx), self.act.own(k.zz))


def _inputs(x: Tensor, z: Tensor, images: bool = False) -> Covariance:
    """Mean products over features, or over the channels at each position."""
    if not images:
        x, z = x.flatten(1), z.flatten(1)
        D = x.shape[1]
        return Covariance(x @ z.T / D, x.square().mean(1), z.square().mean(1))
    channels = x.shape[1]
    products = torch.einsum("nchw,mchw->nmhw", x, z) / channels
    return Covariance(products, x.square().mean(1), z.square().mean(1))


def _sides(k: Covariance) -> tuple[Tensor, Tensor]:
    return k.xx[:, None], k.zz[None, :]


def _neighbours(k: Tensor, stride: int) -> Tensor:
    """Mean over 3 × 3 windows, zeros outside: what a convolution does to covariances.

    The last window ends where the image does, or one position behind ("SAME" padding).
    """
    *rest, H, W = k.shape
    outside = [max(-(-size // stride) * stride - stride + 3 - size, 0) for size in (W, H)]
    padding = [side for both in outside for side in (both // 2, both - both // 2)]
    pooled = F.avg_pool2d(F.pad(k.reshape(-1, 1, H, W), padding), 3, stride)
    return pooled.reshape(*rest, *pooled.shape[-2:])


def unsoftplus(values: Sequence[float] | Tensor) -> Tensor:
    """The inverse of softplus for positive values, in float64."""
    y = torch.as_tensor(values, dtype=torch.float64)
    return y + torch.log(-torch.expm1(-y))
