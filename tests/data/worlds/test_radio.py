"""The ray tracer against free space, the law of reflection, and a loop over rays."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.data.base.iterators import generator_for
from repro.data.worlds.radio import (
    OUTER,
    Antennas,
    ImageTracer,
    Material,
    Radio,
    Rooms,
    Scenes,
    Walls,
    blocked,
    crossed,
    free_space,
    pixels,
    wrapped,
)
from repro.errors import UserError

SIDE, SIZE = 16.0, 16
MATERIALS = (
    Material("concrete", 12.0, 0.35, 6.0),
    Material("wood", 4.0, 0.15, 9.0),
    Material("glass", 2.5, 0.1, 10.0),
)
TRACER, DIRECT = ImageTracer(MATERIALS), ImageTracer(MATERIALS, reflections=False)


def scenes(rooms: int = 4, seed: int = 0, width: float = 40.0, ghz: float = 5.0) -> Scenes:
    drawn = Rooms(inside=[2, 5]).draw(rooms, 3, generator_for(seed))
    walls = drawn.walls._replace(**{
        name: getattr(drawn.walls, name).double() for name in ("place", "start", "end")
    })  # fmt: skip
    antennas = Antennas(*(each.double() for each in drawn.antennas))
    full = torch.ones_like(antennas.x)
    return Scenes(walls, antennas._replace(width=math.radians(width) * full, ghz=ghz * full))


def empty(of: Scenes, *inside: tuple[bool, float, float, float, int]) -> Scenes:
    """The same antennas in rooms with these walls inside, or none."""
    columns: Any = zip(*inside, strict=True) if inside else [()] * 5
    N = len(of.antennas.x)
    walls = [
        torch.cat([outer[:, :OUTER], torch.tensor(column).to(outer).expand(N, -1)], 1)
        for outer, column in zip(of.walls, columns, strict=True)
    ]
    return of._replace(walls=Walls(*walls))


def traced(of: Scenes, tracer: ImageTracer = TRACER) -> Tensor:
    return tracer(of, SIZE, SIDE)


# -- One ray after the other ----------------------------------------------------------------------


class Room:
    """A room in plain numbers, and its rays."""

    def __init__(self, of: Scenes, number: int) -> None:
        rows = zip(*(tensor[number].tolist() for tensor in of.walls), strict=True)
        self.walls = [row for row in rows if row[4] >= 0]
        self.x, self.y, self.boresight, self.width, self.ghz = (
            float(each[number]) for each in of.antennas
        )

    def passed(self, a: tuple[float, float], b: tuple[float, float], but: object) -> float:
        """dB of the walls that a segment crosses, by orientations of triangles."""

        def side(p: Any, q: Any, r: Any) -> float:
            return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

        total = 0.0
        for wall in self.walls[OUTER:]:
            upright, place, start, end, material = wall
            c, d = ((place, start), (place, end)) if upright else ((start, place), (end, place))
            crosses = side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
            if crosses and wall is not but:
                total += MATERIALS[material].loss + MATERIALS[material].loss_per_ghz * self.ghz
        return total

    def power(self, metres: float, towards: tuple[float, float]) -> float:
        """dBm of a ray of that length, without losses at walls."""
        angle = math.atan2(towards[1] - self.y, towards[0] - self.x) - self.boresight
        off = math.atan2(math.sin(angle), math.cos(angle))
        gain = 8 - min(12 * (off / self.width) ** 2, 25)
        return 20 + gain - 32.4 - 20 * math.log10(self.ghz) - 20 * math.log10(max(metres, 0.3))

    def received(self, x: float, y: float) -> float:
        here, there = (self.x, self.y), (x, y)
        rays = [self.power(math.dist(here, there), there) - self.passed(here, there, None)]
        for wall in self.walls:
            upright, place, start, end, material = wall
            image = (2 * place - self.x, self.y) if upright else (self.x, 2 * place - self.y)
            own, other = (0, 1) if upright else (1, 0)
            if (here[own] - place) * (there[own] - place) <= 0:
                continue  # it would come from behind
            part = (place - image[own]) / (there[own] - image[own])
            along = image[other] + part * (there[other] - image[other])
            if not start < along < end:
                continue
            hit = (place, along) if upright else (along, place)
            ray = self.power(math.dist(image, there), hit) - MATERIALS[material].reflection
            rays.append(ray - self.passed(here, hit, wall) - self.passed(hit, there, wall))
        return 10 * math.log10(sum(10 ** (ray / 10) for ray in rays))


def test_maps_are_those_of_a_loop_over_rays() -> None:
    of = scenes()
    maps = traced(of)
    middle = [(i + 0.5) * SIDE / SIZE for i in range(SIZE)]
    for number in range(len(maps)):
        room = Room(of, number)
        expected = torch.tensor([[room.received(x, y) for x in middle] for y in middle])
        torch.testing.assert_close(maps[number], expected.double(), rtol=0, atol=1e-5)


def test_chunks_and_precision_change_nothing() -> None:
    of = scenes(40)
    whole = traced(of)
    assert torch.equal(whole[7:9], traced(of.take(slice(7, 9))))
    walls = Walls(*(each.float() if each.dtype == torch.float64 else each for each in of.walls))
    single = traced(Scenes(walls, Antennas(*(each.float() for each in of.antennas))))
    far = (whole - single).abs() > 1e-3
    assert far.float().mean() < 1e-3  # rays that graze the end of a wall


# -- Physics --------------------------------------------------------------------------------------


def test_an_empty_room_is_free_space() -> None:
    of = empty(scenes(width=math.inf))
    x, y = pixels(SIZE, SIDE, torch.float64)
    metres = torch.hypot(x - of.antennas.x[:, None], y - of.antennas.y[:, None])
    expected = 20 + 8 - (32.4 + 20 * math.log10(5) + 20 * metres.clamp(min=0.3).log10())
    torch.testing.assert_close(traced(of, DIRECT).flatten(1), expected)
    torch.testing.assert_close(free_space(of.antennas, Radio(), (x[None], y[None])), expected)


def test_doubling_the_frequency_costs_six_decibels() -> None:
    low, high = (traced(empty(scenes(ghz=ghz)), DIRECT) for ghz in (2.4, 4.8))
    torch.testing.assert_close(low - high, torch.full_like(low, 20 * math.log10(2)))


def test_walls_between_add_their_losses() -> None:
    at = torch.full((1,), 2.0, dtype=torch.float64)
    of = scenes(1)
    of = of._replace(antennas=of.antennas._replace(x=at, y=at))
    one = (True, 5.1, 0.0, 16.0, 0)
    other = (True, 8.1, 0.0, 16.0, 1)
    nothing, first, both = (traced(empty(of, *w), DIRECT) for w in ((), (one,), (one, other)))
    lost, lost_twice = (nothing - first)[0], (nothing - both)[0]
    assert lost[:, :5].abs().max() < 1e-9
    torch.testing.assert_close(lost[:, 5:], torch.full_like(lost[:, 5:], 12 + 0.35 * 5))
    torch.testing.assert_close(lost_twice[:, 8:], lost[:, 8:] + 4 + 0.15 * 5)
    x, y = pixels(SIZE, SIDE, torch.float64)
    hidden = blocked(empty(of, one), (x, y)).view(SIZE, SIZE)
    assert torch.equal(hidden, lost > 1)


def test_a_reflection_is_as_long_as_the_way_from_the_image() -> None:
    """One mirror on x = 0, everything else removed, all directions alike."""
    of = empty(scenes(width=math.inf))
    walls = of.walls._replace(material=torch.tensor([[0, -1, -1, -1]]).expand(4, -1))
    of = Scenes(walls, of.antennas)
    both, direct = (10 ** (traced(of, tracer) / 10) for tracer in (TRACER, DIRECT))
    x, y = (each.view(SIZE, SIZE) for each in pixels(SIZE, SIDE, torch.float64))
    across = x + of.antennas.x[:, None, None]
    metres = torch.hypot(across, y - of.antennas.y[:, None, None])
    expected = 20 + 8 - 6 - (32.4 + 20 * math.log10(5) + 20 * metres.log10())
    torch.testing.assert_close(10 * (both - direct).log10(), expected)


def test_reflections_never_take_power_away() -> None:
    of = scenes(8)
    assert (traced(of) >= traced(of, DIRECT) - 1e-9).all()


def test_turning_everything_turns_the_map() -> None:
    of = scenes()
    start, end = SIDE - of.walls.end, SIDE - of.walls.start
    walls = of.walls._replace(place=SIDE - of.walls.place, start=start, end=end)
    x, y, boresight = SIDE - of.antennas.x, SIDE - of.antennas.y, of.antennas.boresight + math.pi
    turned = Scenes(walls, of.antennas._replace(x=x, y=y, boresight=wrapped(boresight)))
    torch.testing.assert_close(traced(turned), traced(of).flip(1, 2))


def test_a_beam_is_three_decibels_down_at_half_its_width() -> None:
    offset, width = torch.tensor([0.0, 20.0, 40.0, 180.0]), torch.tensor(40.0)
    assert Radio().gain(offset, width).tolist() == [8, 5, -4, 8 - 25]


def test_a_wall_is_crossed_between_its_ends_alone() -> None:
    wall = Walls(*(torch.tensor([[each]]) for each in (False, 4.0, 2.0, 6.0, 0)))
    x = torch.tensor([[[1.9, 2.1, 5.9, 6.1]]])
    above, below, same = torch.tensor(5.0), torch.tensor(3.0), torch.tensor(3.5)
    assert crossed(wall, (x, above), (x, below)).flatten().tolist() == [False, True, True, False]
    assert not crossed(wall, (x, same), (x, below)).any()


# -- What is drawn --------------------------------------------------------------------------------


def test_rooms_have_the_walls_that_were_asked_for() -> None:
    drawn = Rooms(inside=[2, 4]).draw(500, 3, generator_for(0))
    walls = Walls(*(each[:, OUTER:] for each in drawn.walls))
    counts = (walls.material >= 0).sum(1)
    assert counts.unique().tolist() == [2, 3, 4]
    length = walls.end - walls.start
    assert length.min() >= 5 - 1e-5
    assert length.max() <= 10 + 1e-5
    assert walls.start.min() >= 0
    assert walls.end.max() <= 16
    kinds = walls.material[walls.material >= 0].bincount() / counts.sum()
    assert (kinds - 1 / 3).abs().max() < 0.05
    assert (drawn.walls.material[:, :OUTER] == 0).all()
    assert drawn.antennas.x.min() >= 1
    assert drawn.antennas.y.max() <= 15


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"inside": [4, 2]}, "inside"), ({"length": [5.0, 20.0]}, "length"), ({"side": 0.0}, "side")],
)
def test_impossible_rooms_are_one_line(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Rooms(**knobs)
    assert len(str(error.value).splitlines()) == 1
