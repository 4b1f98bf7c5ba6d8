"""Coverage maps of random rooms, by a ray tracer, for networks that learn to do without one.

Training batches are (x, y): planes (B, C, S, S) that describe a room and its antenna, and received
power (B, 1, S, S) as a share of a fixed range of dBm, clipped to [0, 1]. Validation and test batches
are (x, y, free, blocked, group): also the power in free space, by the formula and in the same unit
(B, 1, S, S); which pixels the antenna does not see, boolean of the same shape; and the number of the
group (B,) that a map belongs to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from typing_extensions import override

from repro.data.base.iterators import Batch, BatchIterator, generator_for
from repro.data.base.modules import Split, Splits, TensorData, check_fact
from repro.data.worlds.radio import (
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
# The planes after those of the materials.
PLANES = ("transmitter", "gain", "frequency", "offset")


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
        test: arguments of groups by name. What they leave out is as in training.
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
        test: Mapping[str, Mapping[str, Any]],
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
        new = {k: v for k, v in known.items() if k in ("beams", "ghz", "per_plan")}
        groups = {each: Group(**(new | {"per_plan": 1} | values)) for each, values in test.items()}
        validation = Group(**(new | {"per_plan": 1, "maps": val_maps}))
        self.groups = tuple(groups)
        self.planes = (*materials, *PLANES)
        load = functools.partial(
            simulated,
            room,
            self.grid,
            tracer(materials=made_of, radio=self.radio),
            (Group(**known), validation, *groups.values()),
            data_seed,
        )
        super().__init__(name, load, **facts)

    @property
    def walls_inside(self) -> float:
        """Walls in a training room, on average."""
        material = _scenes(self.splits["train"]).walls.material
        return float((material[:, 4:] >= 0).sum(1).float().mean())

    @override
    def _check(self, splits: Splits) -> None:
        shape = [len(self.planes), self.grid.size, self.grid.size]
        if self.input_shape is not None:
            check_fact(self.name, "input_shape", list(self.input_shape), shape)

    @override
    def train_dataloader(self) -> SceneIterator:
        """Shuffled batches (x, y); a last, smaller one is left out."""
        return SceneIterator(
            self, "train", self.batch_size, shuffle=True, drop_last=True, seed=self.seed
        )

    @override
    def _eval_dataloader(self, split: str) -> SceneIterator:
        return SceneIterator(self, split, self.eval_batch_size)

    @override
    def labels(self, split: str) -> Tensor:
        """All maps of a split."""
        return self.splits[split][-2]

    def describe(self, scenes: Scenes) -> Tensor:
        """Planes (N, C, S, S) of rooms and their antennas."""
        walls, antennas = scenes
        size, cell = self.grid.size, self.grid.side / self.grid.size
        x, y = pixels(size, self.grid.side)
        x, y = x.to(antennas.x), y.to(antennas.x)
        upright = walls.upright[..., None]
        across, along = torch.where(upright, x, y), torch.where(upright, y, x)
        # A wall colours the pixels that it passes; the outer ones stand in the outermost pixels.
        place = walls.place.clamp(cell / 4, self.grid.side - cell / 4)[..., None]
        on = (across / cell).floor() == (place / cell).floor()
        on = on & (along > walls.start[..., None] - cell / 2) & (along < walls.end[..., None] + cell / 2)
        material = walls.material[..., None]
        of = [(on & (material == m)).any(1) for m in range(len(self.planes) - len(PLANES))]
        own = (x // cell == antennas.x[:, None] // cell) & (y // cell == antennas.y[:, None] // cell)
        offset = offsets(antennas, (x[None], y[None]))
        gain = self.radio.gain(offset, antennas.width[:, None])
        lowest = self.radio.peak - self.radio.floor
        octaves = (antennas.ghz / LOWEST_GHZ).log() / math.log(HIGHEST_GHZ / LOWEST_GHZ)
        planes = [
            *of, own, (gain - lowest) / self.radio.floor,
            octaves[:, None].expand_as(gain), offset.abs() / math.pi,
        ]  # fmt: skip
        return torch.stack([plane.to(gain.dtype) for plane in planes], 1).unflatten(2, (size, -1))

    def evaluated(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """Power in free space and which pixels are not seen, (N, 1, S, S)."""
        x, y = pixels(self.grid.size, self.grid.side)
        to = x.to(scenes.antennas.x)[None], y.to(scenes.antennas.x)[None]
        free = self.grid.share(free_space(scenes.antennas, self.radio, to))
        return free, blocked(scenes, to).view_as(free)


class SceneIterator(BatchIterator):
    """Batches of maps, with planes that are made when they are asked for.

    Args:
        data: the maps.
        split: of them.
        batch_size: maps.
        order: see `BatchIterator`.
    """

    def __init__(self, data: CoverageMaps, split: str, batch_size: int, **order: Any) -> None:
        super().__init__(data._placed(split), batch_size, **order)
        self.data, self.is_training = data, split == "train"

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields (x, y) or (x, y, free, blocked, group)."""
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
