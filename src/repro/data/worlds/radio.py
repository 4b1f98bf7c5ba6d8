"""Coverage of rooms by one antenna: a ray tracer in two dimensions, by the method of images.

Power at a point is that of the direct ray and of one specular reflection at each wall, added
without phases: P + G(φ) - FSPL(d) - (what it passes through) - (reflection), in dB. Lengths are in
metres, powers in dBm, angles in radians, frequencies in GHz.

Tensors carry their shape: N rooms, W walls, S pixels along a side, P = S² pixels in rows of y. A
point is a pair of tensors (x, y) that broadcast to (N, W, P).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from repro.errors import UserError
from repro.knobs import Natural, NonNegative, Positive, checked

Point = tuple[Tensor, Tensor]
OUTER = 4  # walls around the room, which come first
ELEMENTS = 2**17  # of a temporary tensor: what stays in a core's cache


class Walls(NamedTuple):
    """Axis-parallel walls of N rooms.

    Attributes:
        upright: (N, W) boolean, along y.
        place: (N, W), x of an upright wall, y of another one.
        start: (N, W), where it begins along its axis.
        end: (N, W), where it ends.
        material: (N, W) int64, its number; -1 where there is no wall.
    """

    upright: Tensor
    place: Tensor
    start: Tensor
    end: Tensor
    material: Tensor

    def take(self, rooms: slice | Tensor, walls: slice = slice(None)) -> Walls:
        """Those of some rooms, or some walls of each."""
        return Walls(*(tensor[rooms, walls] for tensor in self))


class Antennas(NamedTuple):
    """One transmitter in each of N rooms.

    Attributes:
        x: (N,).
        y: (N,).
        boresight: (N,), direction of the beam's middle, from the x axis towards y.
        width: (N,), of the beam at 3 dB; infinite: the same in all directions.
        ghz: (N,), centre frequency.
    """

    x: Tensor
    y: Tensor
    boresight: Tensor
    width: Tensor
    ghz: Tensor


class Scenes(NamedTuple):
    """Rooms and what transmits in them."""

    walls: Walls
    antennas: Antennas

    def take(self, rooms: slice | Tensor) -> Scenes:
        """Some of them."""
        return Scenes(self.walls.take(rooms), Antennas(*(each[rooms] for each in self.antennas)))


@checked
@dataclass(frozen=True)
class Material:
    """What a wall does to a ray.

    Attributes:
        name: of the material.
        loss: of passing through it at 0 GHz, dB.
        loss_per_ghz: what each GHz adds.
        reflection: loss of a reflection, dB.
    """

    name: str
    loss: NonNegative
    loss_per_ghz: NonNegative
    reflection: NonNegative


@checked
@dataclass(frozen=True)
class Radio:
    """The transmitter's power and pattern (that of 3GPP, in the plane).

    Attributes:
        power: transmitted, dBm.
        peak: gain in the middle of the beam, dB.
        floor: how far below the peak the gain falls at most, dB.
        nearest: shortest distance that counts, m.
    """

    power: float = 20.0
    peak: float = 8.0
    floor: NonNegative = 25.0
    nearest: Positive = 0.3

    def gain(self, offset: Tensor, width: Tensor) -> Tensor:
        """Of angles off the boresight, in [-π, π]; dB."""
        return self.peak - (12 * (offset / width).square()).clamp(max=self.floor)

    def spread(self, metres: Tensor, ghz: Tensor) -> Tensor:
        """Loss in free space, dB."""
        return 32.4 + 20 * (ghz.log10() + metres.clamp(min=self.nearest).log10())


@checked
@dataclass(frozen=True)
class Rooms:
    """Square rooms with walls of the first material around, and random walls in them.

    Attributes:
        side: of a room, m.
        inside: fewest and most walls in a room.
        length: shortest and longest of them, m.
        margin: from the outer walls to the antenna and to parallel walls, m.
    """

    side: Positive = 16.0
    inside: Sequence[Natural] = (2, 4)
    length: Sequence[Positive] = (5.0, 10.0)
    margin: NonNegative = 1.0

    def __post_init__(self) -> None:
        for name in ("inside", "length"):  # hashable, whatever a config gave
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.inside) != 2 or self.inside[0] > self.inside[1]:
            raise UserError(f"rooms.inside is [fewest, most] walls, not {list(self.inside)}.")
        if len(self.length) != 2 or not self.length[0] <= self.length[1] <= self.side:
            raise UserError(
                f"rooms.length is [shortest, longest] and fits {self.side} m, not "
                f"{list(self.length)}."
            )

    def within(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Coordinates off the outer walls."""
        return self.margin + (self.side - 2 * self.margin) * torch.rand(shape, generator=generator)

    def draw_walls(self, rooms: int, materials: int, generator: Generator) -> Walls:
        """Walls of N rooms, of so many materials, which are equally frequent inside."""
        most = self.inside[1]
        many = (rooms, most)
        count_N1 = torch.randint(self.inside[0], most + 1, (rooms, 1), generator=generator)
        shortest, longest = self.length
        metres = shortest + (longest - shortest) * torch.rand(many, generator=generator)
        start = (self.side - metres) * torch.rand(many, generator=generator)
        material = torch.randint(materials, many, generator=generator)
        inner = Walls(
            upright=torch.rand(many, generator=generator) < 0.5,
            place=self.within(many, generator),
            start=start,
            end=start + metres,
            material=material.masked_fill(torch.arange(most) >= count_N1, -1),
        )
        outer = Walls(
            upright=torch.tensor([True, True, False, False]),
            place=torch.tensor([0.0, self.side, 0.0, self.side]),
            start=torch.zeros(OUTER),
            end=torch.full((OUTER,), self.side),
            material=torch.zeros(OUTER, dtype=torch.int64),
        )
        pairs = zip(outer, inner, strict=True)
        return Walls(*(torch.cat([a.expand(rooms, -1), b], 1) for a, b in pairs))

    def draw(self, rooms: int, materials: int, generator: Generator) -> Scenes:
        """N rooms with antennas anywhere, of no beam and no frequency yet."""
        walls = self.draw_walls(rooms, materials, generator)
        x, y = self.within((2, rooms), generator)
        boresight = math.pi * (2 * torch.rand(rooms, generator=generator) - 1)
        unknown = torch.full((rooms,), torch.nan)
        return Scenes(walls, Antennas(x, y, boresight, unknown, unknown))


def pixels(size: int, side: float, dtype: torch.dtype = torch.float32) -> Point:
    """Middles of S x S equal cells, each coordinate (P,)."""
    middle = (torch.arange(size, dtype=dtype) + 0.5) * (side / size)
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return x.flatten(), y.flatten()


def wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def offsets(antennas: Antennas, to: Point) -> Tensor:
    """Angles (N, …) off the boresight under which the antennas see points."""
    at = (antennas.x, antennas.y, antennas.boresight)
    x, y, boresight = (each.view(-1, *[1] * (to[0].dim() - 1)) for each in at)
    return wrapped(torch.atan2(to[1] - y, to[0] - x) - boresight)


def crossed(walls: Walls, a: Point, b: Point) -> Tensor:
    """(N, W, P) boolean: which walls stand between two points."""
    a_across, a_along = _by_wall(walls, a)
    b_across, b_along = _by_wall(walls, b)
    place = walls.place[..., None]
    before, after = a_across - place, b_across - place
    meeting = (a_along * after - b_along * before) / (after - before)
    apart = (before * after) < 0
    return apart & (meeting > walls.start[..., None]) & (meeting < walls.end[..., None])


def free_space(antennas: Antennas, radio: Radio, to: Point) -> Tensor:
    """Power (N, P) of the direct rays, as if there were no walls, dBm."""
    metres = torch.hypot(to[0] - antennas.x[:, None], to[1] - antennas.y[:, None])
    gain = radio.gain(offsets(antennas, to), antennas.width[:, None])
    return radio.power + gain - radio.spread(metres, antennas.ghz[:, None])


def blocked(scenes: Scenes, to: Point) -> Tensor:
    """(N, P) boolean: a wall stands between the antenna and the point."""
    inner = scenes.walls.take(slice(None), slice(OUTER, None))
    at = (scenes.antennas.x[:, None, None], scenes.antennas.y[:, None, None])
    return (crossed(inner, at, to) & (inner.material >= 0)[..., None]).any(1)


@dataclass(frozen=True)
class ImageTracer:
    """Traces rays that are reflected once or not at all.

    Attributes:
        materials: of the walls, in the order of their numbers.
        radio: power and pattern of the antennas.
        reflections: whether to trace reflections.
    """

    materials: tuple[Material, ...]
    radio: Radio = Radio()
    reflections: bool = True

    def penetration(self, scenes: Scenes) -> Tensor:
        """Loss of passing through each wall (N, W), dB; 0 where there is none."""
        walls, ghz_N1 = scenes.walls, scenes.antennas.ghz[:, None]
        loss, per_ghz = (
            ghz_N1.new_tensor([getattr(each, name) for each in self.materials])
            for name in ("loss", "loss_per_ghz")
        )
        index = walls.material.clamp(min=0)
        return (loss[index] + per_ghz[index] * ghz_N1) * (walls.material >= 0)

    def __call__(self, scenes: Scenes, size: int, side: float) -> Tensor:
        """Received power.

        Args:
            scenes: N rooms whose first four walls stand around them.
            size: S, pixels along a side.
            side: of a room, m.

        Returns:
            (N, S, S), dBm; row i is at y = (i + 1/2) side / S.
        """
        N, W = scenes.walls.place.shape
        to = pixels(size, side, scenes.antennas.x.dtype)
        chunk = max(1, ELEMENTS // (max(1, W - OUTER) * size**2))
        parts = [self._trace(scenes.take(slice(n, n + chunk)), to) for n in range(0, N, chunk)]
        return torch.cat(parts).view(N, size, size)

    def _trace(self, scenes: Scenes, pixels: Point) -> Tensor:
        """Received power (N, P), dBm."""
        walls, antennas = scenes
        at = (antennas.x[:, None], antennas.y[:, None])
        to = (pixels[0][None], pixels[1][None])
        # Rays inside of a convex room never pass through its outer walls.
        inner = walls.take(slice(None), slice(OUTER, None))
        penetration_N1W = self.penetration(scenes)[:, None, OUTER:]

        def passed(a: Point, b: Point, but: int = -1) -> Tensor:
            """Loss by what stands between (N, P), dB, but for one of the inner walls."""
            loss = penetration_N1W
            if but >= 0:
                loss = loss.index_fill(2, torch.tensor(but), 0.0)
            met = crossed(inner, (a[0][:, None], a[1][:, None]), (b[0][:, None], b[1][:, None]))
            return (loss @ met.to(loss.dtype)).squeeze(1)

        power = _milliwatts(free_space(antennas, self.radio, to) - passed(at, to))
        lost = power.new_tensor([each.reflection for each in self.materials])
        for w in range(walls.place.shape[1] if self.reflections else 0):
            wall = walls.take(slice(None), slice(w, w + 1))
            hit, metres, valid = _reflected(wall, at, to)
            gain = self.radio.gain(offsets(antennas, hit), antennas.width[:, None])
            loss = self.radio.spread(metres, antennas.ghz[:, None])
            loss = loss + lost[wall.material.clamp(min=0)]
            loss = loss + passed(at, hit, w - OUTER) + passed(hit, to, w - OUTER)
            ray = _milliwatts(self.radio.power + gain - loss)
            power = power + ray.masked_fill(~valid, 0.0)
        return 10 * power.log10()


def _reflected(wall: Walls, at: Point, to: Point) -> tuple[Point, Tensor, Tensor]:
    """Where rays meet one wall (N, P), how long they are, and whether they meet it at all."""
    upright = wall.upright
    at_across, at_along = torch.where(upright, *at), torch.where(upright, *at[::-1])
    to_across, to_along = torch.where(upright, *to), torch.where(upright, *to[::-1])
    image = 2 * wall.place - at_across
    way = to_across - image
    part = (wall.place - image) / way
    along = at_along + part * (to_along - at_along)
    valid = (wall.material >= 0) & (part > 0) & (part < 1)
    valid = valid & (along > wall.start) & (along < wall.end)
    place = wall.place.expand_as(along)
    hit = torch.where(upright, place, along), torch.where(upright, along, place)
    return hit, torch.hypot(way, to_along - at_along), valid


def _milliwatts(dbm: Tensor) -> Tensor:
    return (dbm * (math.log(10) / 10)).exp()


def _by_wall(walls: Walls, point: Point) -> tuple[Tensor, Tensor]:
    """Coordinates across and along each wall, (N, W, P)."""
    upright = walls.upright[..., None]
    return torch.where(upright, *point), torch.where(upright, *point[::-1])
