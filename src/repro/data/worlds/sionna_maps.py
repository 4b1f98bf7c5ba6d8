"""Coverage maps by sionna-rt (NVIDIA) in three dimensions, of rooms with floor and ceiling.

A solver shoots rays from the antenna and gathers them in cells, so that maps have Monte Carlo
noise: two seeds of it say how much, which is the floor of every error. Needs the package
``sionna-rt``.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.data.worlds.radio import Material, Radio, Scenes
from repro.errors import UserError
from repro.knobs import Count, Positive, checked
from repro.planning.extras import require
from repro.records.files import make_folder

Corners = list[tuple[float, float, float]]


@checked
@dataclass(frozen=True)
class SionnaTracer:
    """Specular reflections and transmissions through walls of ITU's materials.

    Attributes:
        materials: of the walls; their names are those of ITU-R P.2040, and their losses are
            computed from it, whatever they say.
        radio: power and pattern, the same at all elevations.
        height: of rooms, m.
        antenna_height: of the antenna, m.
        map_height: of the map, m; another one, since the solver gathers rays that pass through it.
        thickness: of walls, m.
        samples: rays of an antenna.
        depth: interactions of a ray.
        seed: of the rays.
        folder: where benchmark data lie; maps are kept beside it, in ``sionna_maps``. None: they
            are not kept.
        info: what stands in for it in rehearsals; not used here.
    """

    materials: tuple[Material, ...]
    radio: Radio
    height: Positive = 3.0
    antenna_height: Positive = 2.5
    map_height: Positive = 1.5
    thickness: Positive = 0.1
    samples: Count = 100_000_000
    depth: Count = 5
    seed: int = 42
    folder: str | None = None
    info: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.antenna_height == self.map_height or self.antenna_height >= self.height:
            raise UserError(
                f"sionna.antenna_height is below the ceiling ({self.height} m) and not that of the "
                f"map ({self.map_height} m), unlike {self.antenna_height} m."
            )

    def __call__(self, scenes: Scenes, size: int, side: float) -> Tensor:
        """Received power, dBm (N, S, S); -inf where no ray arrives. See `ImageTracer`.

        Where sionna-rt is not installed, a `UserError` says how to get it.
        """
        require(["sionna"])
        rooms = range(len(scenes.antennas.x))
        return torch.stack([self._kept(scenes.take(slice(n, n + 1)), size, side) for n in rooms])

    def _kept(self, scene: Scenes, size: int, side: float) -> Tensor:
        """A map that was made before, or a new one."""
        if self.folder is None:
            return self._trace(scene, size, side)
        names = [each.name for each in self.materials]
        heights = (self.height, self.antenna_height, self.map_height)
        rays = (self.thickness, self.samples, self.depth, self.seed)
        sha = hashlib.sha256(repr((names, self.radio, heights, rays, size, side)).encode())
        for tensor in (*scene.walls, *scene.antennas):
            sha.update(tensor.numpy().tobytes())
        file = Path(self.folder).parent / "sionna_maps" / f"{sha.hexdigest()[:32]}.npy"
        if not file.is_file():
            make_folder(file.parent)
            part = file.with_suffix(".part.npy")
            np.save(part, self._trace(scene, size, side).numpy())
            part.replace(file)
        return torch.from_numpy(np.load(file))

    def _trace(self, scene: Scenes, size: int, side: float) -> Tensor:
        import mitsuba as mi
        from sionna import rt

        x, y, boresight, width, ghz = (float(each) for each in scene.antennas)
        with tempfile.TemporaryDirectory() as folder:
            world = rt.load_scene(self.write(scene, side, Path(folder)), merge_shapes=False)
        world.frequency = 1e9 * ghz
        world.tx_array = rt.PlanarArray(
            num_rows=1, num_cols=1, pattern=self._pattern(width), polarization="V"
        )
        place = mi.Point3f(x, y, self.antenna_height)
        world.add(
            rt.Transmitter(
                "antenna",
                position=place,
                orientation=mi.Point3f(boresight, 0, 0),
                power_dbm=self.radio.power,
            )
        )
        found = rt.RadioMapSolver()(
            world,
            center=mi.Point3f(side / 2, side / 2, self.map_height),
            orientation=mi.Point3f(0, 0, 0),
            size=mi.Point2f(side, side),
            cell_size=mi.Point2f(side / size, side / size),
            samples_per_tx=self.samples,
            max_depth=self.depth,
            seed=self.seed,
        )
        watts = torch.from_numpy(np.array(found.rss)[0]).float()
        return 10 * watts.log10() + 30

    def _pattern(self, width: float) -> str:
        """The name under which sionna knows the antenna's pattern; angles are off its boresight."""
        import drjit as dr
        import mitsuba as mi
        from sionna import rt

        radio, name = self.radio, f"beam_{width:.6g}_{self.radio.peak:g}_{self.radio.floor:g}"

        def amplitude(_theta: Any, phi: Any) -> Any:
            off = phi - 2 * math.pi * dr.round(phi / (2 * math.pi))
            fall = dr.minimum(12 * dr.square(off / width), radio.floor)
            return mi.Complex2f(dr.exp(math.log(10) / 20 * (radio.peak - fall)), 0)

        def factory(polarization: str) -> Any:
            return rt.PolarizedAntennaPattern(v_pattern=amplitude, polarization=polarization)

        rt.register_antenna_pattern(name, factory)
        return name

    def write(self, scene: Scenes, side: float, folder: Path) -> str:
        """Writes one room as a scene of Mitsuba's: ``room.xml`` and a mesh for each surface.

        Returns:
            The path of the scene.
        """
        lines = ['<scene version="2.1.0">']
        for each in self.materials:
            lines += [
                f'<bsdf type="itu-radio-material" id="{each.name}">',
                f'<string name="type" value="{each.name}"/>',
                f'<float name="thickness" value="{self.thickness}"/></bsdf>',
            ]
        for number, (material, corners) in enumerate(self._surfaces(scene, side)):
            (folder / f"{number}.ply").write_text(_mesh(corners), encoding="ascii")
            lines += [
                f'<shape type="ply" id="surface-{number}">',
                f'<string name="filename" value="{number}.ply"/>',
                '<boolean name="face_normals" value="true"/>',
                f'<ref id="{material}" name="bsdf"/></shape>',
            ]
        path = folder / "room.xml"
        path.write_text("\n".join([*lines, "</scene>"]), encoding="utf-8")
        return str(path)

    def _surfaces(self, scene: Scenes, side: float) -> Iterator[tuple[str, Corners]]:
        """Material and corners of walls, floor and ceiling."""
        rows = zip(*(tensor[0].tolist() for tensor in scene.walls), strict=True)
        for upright, place, start, end, material in rows:
            if material >= 0:
                ends = [(place, along) if upright else (along, place) for along in (start, end)]
                (ax, ay), (bx, by) = ends
                top = self.height
                corners = [(ax, ay, 0.0), (bx, by, 0.0), (bx, by, top), (ax, ay, top)]
                yield self.materials[material].name, corners
        for z in (0.0, self.height):
            flat = [(0.0, 0.0, z), (side, 0.0, z), (side, side, z), (0.0, side, z)]
            yield self.materials[0].name, flat


def _mesh(corners: Corners) -> str:
    """A rectangle as two triangles, in the text form of PLY."""
    header = [
        "ply", "format ascii 1.0",
        "element vertex 4", "property float x", "property float y", "property float z",
        "element face 2", "property list uchar int vertex_indices",
        "end_header",
    ]  # fmt: skip
    vertices = [f"{x:.6f} {y:.6f} {z:.6f}" for x, y, z in corners]
    return "\n".join([*header, *vertices, "3 0 1 2", "3 0 2 3", ""])
