"""Scenes for sionna-rt: what is written and kept, and, where it is installed, that maps agree."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.data.base.iterators import generator_for
from repro.data.stand_ins import image_tracer
from repro.data.worlds.radio import ImageTracer, Material, Radio, Rooms, Scenes
from repro.data.worlds.sionna_maps import SionnaTracer
from repro.errors import UserError

MATERIALS = (Material("concrete", 12.0, 0.35, 6.0), Material("wood", 4.0, 0.15, 9.0))
HAS_SIONNA = find_spec("sionna") is not None


def rooms(count: int = 2) -> Scenes:
    drawn = Rooms(inside=[2, 3]).draw(count, 2, generator_for(0))
    full = torch.ones(count)
    width = math.radians(40) * full
    return Scenes(drawn.walls, drawn.antennas._replace(width=width, ghz=5 * full))


def test_a_room_is_written_as_a_scene(tmp_path: Path) -> None:
    scene = rooms(1)
    path = Path(SionnaTracer(MATERIALS, Radio()).write(scene, 16.0, tmp_path))
    text = path.read_text()
    walls = int((scene.walls.material >= 0).sum())
    assert text.count("<shape") == len(list(tmp_path.glob("*.ply"))) == walls + 2
    assert '<string name="type" value="wood"/>' in text
    west = (tmp_path / "0.ply").read_text().splitlines()
    assert west[west.index("end_header") + 1 :][:4] == [
        "0.000000 0.000000 0.000000", "0.000000 16.000000 0.000000",
        "0.000000 16.000000 3.000000", "0.000000 0.000000 3.000000",
    ]  # fmt: skip
    south = (tmp_path / "2.ply").read_text()
    assert "16.000000 0.000000 3.000000" in south


def test_maps_are_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []

    def trace(self: SionnaTracer, scene: Scenes, size: int, side: float) -> Tensor:
        made.append(float(scene.antennas.x))
        return torch.full((size, size), made[-1])

    monkeypatch.setattr(SionnaTracer, "_trace", trace)
    monkeypatch.setattr("repro.data.worlds.sionna_maps.require", lambda _: None)
    folder = str(tmp_path / "hf")
    tracer, scenes = SionnaTracer(MATERIALS, Radio(), folder=folder), rooms()
    maps = tracer(scenes, 4, 16.0)
    assert maps[:, 0, 0].tolist() == scenes.antennas.x.tolist()
    assert torch.equal(tracer(scenes, 4, 16.0), maps)
    assert len(made) == len(list((tmp_path / "sionna_maps").glob("*.npy"))) == 2
    SionnaTracer(MATERIALS, Radio(), seed=1, folder=folder)(scenes, 4, 16.0)
    assert len(made) == 4


def test_its_stand_in_takes_the_same_settings() -> None:
    tracer = image_tracer(materials=MATERIALS, radio=Radio(), samples=10, folder=None)
    assert tracer == ImageTracer(MATERIALS, Radio())
    with_info: Any = SionnaTracer(MATERIALS, Radio(), info={"stand_in": {}})
    assert hash(with_info) == hash(SionnaTracer(MATERIALS, Radio()))


@pytest.mark.parametrize(("antenna", "least"), [(1.5, "1.5"), (3.5, "ceiling")])
def test_the_antenna_hangs_above_the_map(antenna: float, least: str) -> None:
    with pytest.raises(UserError, match=least) as error:
        SionnaTracer(MATERIALS, Radio(), antenna_height=antenna)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.skipif(HAS_SIONNA, reason="sionna-rt is installed")
def test_without_sionna_there_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"pip install 'gradient-repro\[sionna\]'") as error:
        SionnaTracer(MATERIALS, Radio())(rooms(), 4, 16.0)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SIONNA, reason="sionna-rt is not installed")
def test_its_maps_look_like_those_of_rays_in_the_plane() -> None:
    scenes = rooms(1)
    found = SionnaTracer(MATERIALS, Radio(), samples=1_000_000, depth=3)(scenes, 32, 16.0)
    expected = ImageTracer(MATERIALS)(scenes, 32, 16.0)
    both = torch.stack([found.flatten(), expected.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.85
