"""Rain, haze and snow over clips, consistent in time: what falls goes on from frame to frame.

Shapes: clips (N, T, 3, H, W) in [0, 1]. All draws come from the generator, so that equal seeds give
equal weather, whatever the clips show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from repro.knobs import Probability

Range = tuple[float, float]
WEATHERS = ("rain", "haze", "snow")  # and their labels, 0 to 2


def uniform(ends: Range, size: tuple[int, ...], generator: Generator) -> Tensor:
    """Numbers between two ends."""
    return ends[0] + (ends[1] - ends[0]) * torch.rand(size, generator=generator)


@dataclass(frozen=True)
class Rain:
    """Streaks of one slope per clip, blended towards a bright grey.

    Attributes:
        count: of streaks, from and to.
        length: of a streak in pixels.
        speed: by which it falls in pixels per frame.
        slope: sideways pixels per pixel of fall.
        opacity: of a streak.
        brightness: of what is blended in.
    """

    count: tuple[int, int] = (25, 50)
    length: Range = (5, 10)
    speed: Range = (5, 9)
    slope: Range = (-0.4, 0.4)
    opacity: Range = (0.3, 0.6)
    brightness: Probability = 0.9

    def opacities(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """What covers each pixel, (N, T, H, W) in [0, 1].

        Args:
            shape: (N, T, H, W).
            generator: of the draws.
        """
        N, T, H, W = shape
        many = (N, self.count[1])
        is_there = torch.arange(self.count[1]) < _counts(self.count, N, generator)
        length, speed = (uniform(each, many, generator) for each in (self.length, self.speed))
        opacity = uniform(self.opacity, many, generator) * is_there
        slope_N1 = uniform(self.slope, (N, 1), generator)
        head_y, head_x = torch.rand((2, *many), generator=generator)
        # It comes back above the frame once all of it has left below.
        way = H + self.length[1]
        y_NTS = (head_y[:, None] * way + speed[:, None] * _frames(T)) % way
        x_NTS = head_x[:, None] * W + slope_N1[:, None] * speed[:, None] * _frames(T)
        back = torch.arange(round(self.length[1]))  # points of a streak, from its head upwards
        on = (back < length[..., None]) * opacity[..., None]
        return _painted(
            shape,
            y_NTS[..., None] - back,
            x_NTS[..., None] - slope_N1[:, None, :, None] * back,
            on[:, None].expand(N, T, -1, -1),
        )

    def __call__(self, clips: Tensor, generator: Generator) -> Tensor:
        """The clips in rain."""
        N, T, _, H, W = clips.shape
        a = self.opacities((N, T, H, W), generator)[:, :, None]
        return clips * (1 - a) + self.brightness * a


@dataclass(frozen=True)
class Haze:
    """Koschmieder's law ``I = J t + A (1 - t)``, ``t = exp(-beta d)``, d a tilted plane of depth.

    Attributes:
        beta: of a clip, per unit of depth.
        airlight: A, by clip and channel.
        depth: d, from the nearest to the farthest corner; the plane rises in any direction.
    """

    beta: Range = (0.6, 1.6)
    airlight: Range = (0.75, 1.0)
    depth: Range = (0.5, 1.5)

    def __call__(self, clips: Tensor, generator: Generator) -> Tensor:
        """The clips in haze, which does not change with time."""
        N, _, _, H, W = clips.shape
        beta = uniform(self.beta, (N, 1, 1), generator)
        air = uniform(self.airlight, (N, 1, 3, 1, 1), generator)
        angle = uniform((0, 2 * torch.pi), (N, 1, 1), generator)
        y, x = torch.linspace(-1, 1, H)[:, None], torch.linspace(-1, 1, W)
        along = (angle.sin() * y + angle.cos() * x) / (angle.sin().abs() + angle.cos().abs())
        depth = self.depth[0] + (self.depth[1] - self.depth[0]) * (along + 1) / 2
        return hazed(clips, (-beta * depth).exp()[:, None, None], air)


def hazed(clips: Tensor, transmission: Tensor, airlight: Tensor) -> Tensor:
    """Koschmieder's law; transmission in [0, 1]."""
    return clips * transmission + airlight * (1 - transmission)


@dataclass(frozen=True)
class Snow:
    """Round flakes with a soft border, white, falling and drifting.

    Attributes:
        count: of flakes, from and to.
        radius: standard deviation of a flake in pixels.
        speed: by which it falls in pixels per frame.
        drift: by which it moves sideways.
        opacity: of its middle.
    """

    count: tuple[int, int] = (15, 35)
    radius: Range = (0.5, 1.6)
    speed: Range = (1, 3)
    drift: Range = (-1, 1)
    opacity: Probability = 0.9

    def __call__(self, clips: Tensor, generator: Generator) -> Tensor:
        """The clips in snow."""
        N, T, _, H, W = clips.shape
        many = (N, self.count[1])
        is_there = torch.arange(self.count[1]) < _counts(self.count, N, generator)
        radius, speed, drift = (
            uniform(each, many, generator) for each in (self.radius, self.speed, self.drift)
        )
        start_y, start_x = torch.rand((2, *many), generator=generator)
        y_NTS = (start_y[:, None] * H + speed[:, None] * _frames(T)) % H
        x_NTS = (start_x[:, None] * W + drift[:, None] * _frames(T)) % W
        reach = round(3 * self.radius[1])
        near = torch.arange(-reach, reach + 1)
        dy, dx = (each.flatten() for each in torch.meshgrid(near, near, indexing="ij"))
        y = y_NTS.floor()[..., None] + dy
        x = x_NTS.floor()[..., None] + dx
        away = (y - y_NTS[..., None]) ** 2 + (x - x_NTS[..., None]) ** 2
        light = (-away / (2 * radius[:, None, :, None] ** 2)).exp()
        light = self.opacity * light * is_there[:, None, :, None]
        a = _gathered((N, T, H, W), y, x, light)[:, :, None]
        return clips * (1 - a) + a


def _frames(T: int) -> Tensor:
    return torch.arange(T)[:, None]


def _counts(ends: tuple[int, int], N: int, generator: Generator) -> Tensor:
    return torch.randint(ends[0], ends[1] + 1, (N, 1), generator=generator)


def _painted(shape: tuple[int, ...], y: Tensor, x: Tensor, opacity: Tensor) -> Tensor:
    """Points between two columns share their opacity among them."""
    left = x.floor()
    right_share = x - left
    return torch.maximum(
        _gathered(shape, y.round(), left, opacity * (1 - right_share)),
        _gathered(shape, y.round(), left + 1, opacity * right_share),
    )


def _gathered(shape: tuple[int, ...], y: Tensor, x: Tensor, opacity: Tensor) -> Tensor:
    """The largest opacity at each pixel, of points (N, T, S, P); those outside count nothing.

    Columns go round, so that weather that drifts out on one side comes in on the other.
    """
    N, T, H, W = shape
    inside = (y >= 0) & (y < H)
    pixel = (y.clamp(0, H - 1) * W + x % W).long().flatten(2)
    flat = torch.zeros(N, T, H * W)
    flat.scatter_reduce_(2, pixel, (opacity * inside).flatten(2), "amax")
    return flat.view(N, T, H, W)
