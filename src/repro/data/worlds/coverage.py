"""Coverage maps of random rooms, by a ray tracer, for networks that learn to do without one.

Training batches are (x, y): planes (B, C, S, S) that describe a room and its antenna, and
received power (B, 1, S, S) as a share of a fixed range of dBm, clipped to [0, 1]. Validation and
test batches are (x, y, free, blocked, shift, group): also the power in free space, by the formula
and in the same unit (B, 1, S, S); which pixels the antenna does not see, boolean of the same shape;
what a frequency other than the one that x names adds in free space (B,); and the number of a map's
group (B,).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Generator, Tensor
from typing_extensions import override

from repro.data.base.iterators import Batch, BatchIterator, generator_for
from repro.data.base.modules import Split, Splits, TensorData, check_fact
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
    free_space,
    offsets,
    pixels,
)
from repro.errors import UserError
from repro.knobs import Count, Positive, checked

LOWEST_GHZ, HIGHEST_GHZ = 2.4, 28.0  # ends of the frequency plane's scale, which is logarithmic
PLANES = ("transmitter", "antenna", "frequency")  # after those of the materials


class Tracer(Protocol):
    """What finds the received power, dBm (N, S, S)."""

    def __call__(self, scenes: Scenes, size: int, side: float) -> Tensor:
        """See `ImageTracer`."""


@checked
@dataclass(frozen=True)
class Group:
    """Maps with beams and frequencies in common.

    Attributes:
        maps: how many.
        beams: their widths at 3 dB, degrees; drawn for each map.
        ghz: their frequencies, likewise.
        seen: whether rooms, antennas and boresights are those of training maps.
        per_plan: maps of a room in a row, each with an antenna of its own.
    """

    maps: Count
    beams: Sequence[Positive]
    ghz: Sequence[Positive]
    seen: bool = False
    per_plan: Count = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "beams", tuple(self.beams))  # hashable
        object.__setattr__(self, "ghz", tuple(self.ghz))
        if not self.beams or not self.ghz or self.maps % self.per_plan:
            raise UserError(
                "A group of maps has beams and frequencies, and a whole number of plans"
                f" (maps={self.maps}, per_plan={self.per_plan})."
            )


@checked
@dataclass(frozen=True)
class Inputs:
    """What the planes tell; what they do not is 0, so that networks keep their size.

    Attributes:
        plan: where walls are, by material: those of the room, of another room of the batch, or
            none.
        antenna: the ``gain`` towards each pixel; the ``offset`` of each from the boresight alone,
            which leaves out the pattern; the offset of an ``other`` antenna of the batch; or none.
        frequency: the room's ``own``; the ``nearest`` of those that are trained with, by
            logarithms; or none.
    """

    plan: Literal["own", "other", "none"] = "own"
    antenna: Literal["gain", "offset", "other", "none"] = "gain"
    frequency: Literal["own", "nearest", "none"] = "own"


@dataclass(frozen=True)
class Grid:
    """Pixels, and the range of power that they show.

    Attributes:
        size: S, pixels along a side.
        side: of a room, m.
        p_min: what counts as 0, dBm.
        p_max: what counts as 1.
    """

    size: int
    side: float
    p_min: float
    p_max: float

    def share(self, dbm: Tensor) -> Tensor:
        """(N, S, S) or (N, P) to (N, 1, S, S) in [0, 1]."""
        scaled = (dbm - self.p_min) / (self.p_max - self.p_min)
        # Where no ray arrives there are -inf dBm.
        return scaled.nan_to_num(0.0).clamp(0, 1).view(-1, 1, self.size, self.size)


@checked
class CoverageMaps(TensorData):
    """Rooms, what transmits in them, and how well it is received.

    Args:
        name: of the data set.
        size: S, pixels along a side.
        rooms: arguments of `Rooms`.
        materials: arguments of `Material` by name; the outer walls are of the first one.
        radio: arguments of `Radio`.
        p_min: received power that counts as 0, dBm.
        p_max: that counts as 1.
        train: arguments of the training maps' `Group`.
        val_maps: validation maps, of new rooms.
        test_maps: maps of a test group that does not say how many it has.
        test: arguments of groups by name. What they leave out is as in training.
        inputs: arguments of `Inputs`.
        tracer: how power is found: called with ``materials`` and ``radio`` it gives a `Tracer`.
        data_seed: of rooms, antennas, beams and frequencies.
        facts: see `TensorData`.

    Attributes:
        planes: names of the planes of x.
        groups: of test maps, by name, in the order of their numbers.
        walls_inside: how many a room has on average.
    """

    def __init__(
        self,
        name: str = "coverage_maps",
        *,
        size: Count,
        rooms: Mapping[str, Any],
        materials: Mapping[str, Mapping[str, float]],
        radio: Mapping[str, float],
        p_min: float,
        p_max: float,
        train: Mapping[str, Any],
        val_maps: Count,
        test_maps: Count,
        test: Mapping[str, Mapping[str, Any]],
        inputs: Mapping[str, Any] | None = None,
        tracer: Any = ImageTracer,
        data_seed: int = 0,
        **facts: Any,
    ) -> None:
        if p_max <= p_min:
            raise UserError(f"dataset.p_max={p_max} has to be above dataset.p_min={p_min}.")
        room, self.radio = Rooms(**rooms), Radio(**radio)
        self.grid = Grid(size, room.side, p_min, p_max)
        made_of = tuple(Material(each, **values) for each, values in materials.items())
        known = dict(train)
        alike = {name: known[name] for name in ("beams", "ghz")}
        usual = {**alike, "maps": test_maps}
        groups = {each: Group(**{**usual, **values}) for each, values in test.items()}
        validation = Group(maps=val_maps, **alike)
        self.groups = tuple(groups)
        self.planes = (*materials, *PLANES)
        self.inputs, self.known_ghz = Inputs(**(inputs or {})), Group(**known).ghz
        load = functools.partial(
            simulated,
            room,
            self.grid,
            tracer(materials=made_of, radio=self.radio),
            (Group(**known), validation, *groups.values()),
            data_seed,
        )
        super().__init__(name, load, **facts)
        if self.batch_size < 2 and "other" in (self.inputs.plan, self.inputs.antenna):
            raise UserError("Planes of other maps need dataset.batch_size of at least 2.")

    @property
    def walls_inside(self) -> float:
        """Walls in a training room, on average."""
        material = _scenes(self.splits["train"]).walls.material
        return float((material[:, OUTER:] >= 0).sum(1).float().mean())

    @override
    def _check(self, splits: Splits) -> None:
        shape = [len(self.planes), self.grid.size, self.grid.size]
        if self.input_shape is not None:
            check_fact(self.name, "input_shape", list(self.input_shape), shape)

    @override
    def train_dataloader(self) -> SceneIterator:
        """Shuffled batches (x, y); a last, smaller one is left out."""
        order: dict[str, Any] = {"shuffle": True, "drop_last": True, "seed": self.seed}
        return SceneIterator(self._placed("train"), self.batch_size, self, True, **order)

    @override
    def _eval_dataloader(self, split: str) -> SceneIterator:
        return SceneIterator(self._placed(split), self.eval_batch_size, self, False)

    @override
    def labels(self, split: str) -> Tensor:
        """All maps of a split."""
        return self.splits[split][-2]

    def describe(self, scenes: Scenes) -> Tensor:
        """Planes (N, C, S, S) of rooms and their antennas, as far as `Inputs` tells."""
        walls, antennas = scenes
        half = len(antennas.x) // 2  # as far as possible from maps of the same room
        x, y = self._pixels(antennas)
        cell = self.grid.side / self.grid.size
        column, row = (at[:, None] // cell for at in (antennas.x, antennas.y))
        own = (x // cell == column) & (y // cell == row)
        offset = offsets(antennas, (x, y))
        if self.inputs.plan == "other":
            walls = Walls(*(each.roll(half, 0) for each in walls))
        ghz = self._nearest(antennas.ghz) if self.inputs.frequency == "nearest" else antennas.ghz
        octaves = (ghz / LOWEST_GHZ).log() / math.log(HIGHEST_GHZ / LOWEST_GHZ)
        lowest = self.radio.peak - self.radio.floor
        antenna = {
            "gain": (self.radio.gain(offset, antennas.width[:, None]) - lowest) / self.radio.floor,
            "offset": offset.abs() / math.pi,
            "other": offset.roll(half, 0).abs() / math.pi,
            "none": torch.zeros_like(offset),
        }[self.inputs.antenna]
        planes = [
            *(plane * (self.inputs.plan != "none") for plane in self._drawn(walls, x, y)),
            own,
            antenna,
            octaves[:, None].expand_as(offset) * (self.inputs.frequency != "none"),
        ]
        planes = [plane.to(offset.dtype) for plane in planes]
        return torch.stack(planes, 1).unflatten(2, (self.grid.size, -1))

    def evaluated(self, scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
        """Power in free space and which pixels are not seen, (N, 1, S, S), and the shift (N,)."""
        to = self._pixels(scenes.antennas)
        free = self.grid.share(free_space(scenes.antennas, self.radio, to))
        ghz = scenes.antennas.ghz
        told = self._nearest(ghz) if self.inputs.frequency == "nearest" else ghz
        shift = 20 * (told / ghz).log10() / (self.grid.p_max - self.grid.p_min)
        return free, blocked(scenes, to).view_as(free), shift

    def _pixels(self, antennas: Antennas) -> tuple[Tensor, Tensor]:
        x, y = pixels(self.grid.size, self.grid.side)
        return x.to(antennas.x)[None], y.to(antennas.x)[None]

    def _nearest(self, ghz_N: Tensor) -> Tensor:
        known = ghz_N.new_tensor(self.known_ghz)
        return known[(ghz_N[:, None].log() - known.log()).abs().argmin(1)]

    def _drawn(self, walls: Walls, x: Tensor, y: Tensor) -> list[Tensor]:
        """Which pixels walls of each material pass, boolean (N, P)."""
        cell, side = self.grid.side / self.grid.size, self.grid.side
        upright = walls.upright[..., None]
        across, along = torch.where(upright, x, y), torch.where(upright, y, x)
        # The outer walls stand in the outermost pixels.
        place = walls.place.clamp(cell / 4, side - cell / 4)[..., None]
        start, end = walls.start[..., None] - cell / 4, walls.end[..., None] + cell / 4
        on = (across // cell == place // cell) & (along > start) & (along < end)
        material = walls.material[..., None]
        return [(on & (material == m)).any(1) for m in range(len(self.planes) - len(PLANES))]


class SceneIterator(BatchIterator):
    """Batches of maps, with planes that are made when they are asked for.

    Args:
        tensors: a split of `simulated`.
        batch_size: maps.
        data: makes the planes.
        is_training: leaves out what only evaluation asks for.
        order: see `BatchIterator`.
    """

    def __init__(
        self, tensors: Split, batch_size: int, data: CoverageMaps, is_training: bool, **order: Any
    ) -> None:
        super().__init__(tensors, batch_size, **order)
        self.data, self.is_training = data, is_training

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields (x, y) or (x, y, free, blocked, shift, group)."""
        for batch in super().batches(epoch, start):
            scenes, (y, group) = _scenes(batch), batch[-2:]
            x = self.data.describe(scenes)
            yield (x, y) if self.is_training else (x, y, *self.data.evaluated(scenes), group)


@functools.lru_cache(maxsize=16)  # arms of a seed share their maps
def simulated(
    rooms: Rooms, grid: Grid, tracer: Tracer, groups: tuple[Group, ...], seed: int
) -> Splits:
    """All splits: tensors of walls and antennas, then maps and the numbers of their groups.

    Args:
        rooms: that are drawn.
        grid: of the maps.
        tracer: what makes them.
        groups: of training, of validation, and of test.
        seed: of all draws.

    Raises:
        UserError: a group is to show more training rooms again than there are.
    """
    drawn: list[tuple[Scenes, Tensor]] = []
    for number, group in enumerate(groups):
        generator = generator_for(seed, number)
        if group.seen and group.maps > groups[0].maps:
            raise UserError(f"{group.maps} maps of seen rooms are more than the training's.")
        scenes = drawn[0][0] if group.seen else _draw(rooms, group, tracer, generator)
        scenes = _tuned(scenes.take(slice(group.maps)), group, generator)
        drawn.append((scenes, tracer(scenes, grid.size, grid.side)))
    return {
        "train": _split(grid, drawn[:1]),
        "val": _split(grid, drawn[1:2]),
        "test": _split(grid, drawn[2:]),
    }


def _draw(rooms: Rooms, group: Group, tracer: Any, generator: Generator) -> Scenes:
    materials = len(tracer.materials)
    scenes = rooms.draw(group.maps, materials, generator)
    plan = torch.arange(group.maps) // group.per_plan * group.per_plan
    return Scenes(scenes.walls.take(plan), scenes.antennas)


def _tuned(scenes: Scenes, group: Group, generator: Generator) -> Scenes:
    """The same with beams and frequencies of a group."""

    def one_of(values: Sequence[float]) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (group.maps,), generator=generator)]

    width, ghz = torch.deg2rad(one_of(group.beams)), one_of(group.ghz)
    return Scenes(scenes.walls, scenes.antennas._replace(width=width, ghz=ghz))


def _split(grid: Grid, groups: Sequence[tuple[Scenes, Tensor]]) -> Split:
    parts = [
        (*scenes.walls, *scenes.antennas, grid.share(dbm), torch.full((len(dbm),), number))
        for number, (scenes, dbm) in enumerate(groups)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _scenes(batch: Batch) -> Scenes:
    walls = len(Walls._fields)
    return Scenes(Walls(*batch[:walls]), Antennas(*batch[walls : walls + len(Antennas._fields)]))
