"""Weather that falls as it should, clips that move, and benchmarks in their folders."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from repro.data.base.iterators import generator_for
from repro.data.images.videos import WindowExamples
from repro.data.images.weather import Haze, Rain, Snow, hazed
from repro.errors import UserError

SMALL: dict[str, Any] = {
    "scenes": {"train": ["coffee"], "val": ["rocket"], "test": ["camera", "flower"]},
    "items": {"train": 6, "val": 2, "test": 4},
    "batch_size": 2,
    "eval_batch_size": 2,
}


def test_a_streak_falls_by_its_speed_and_does_not_bend() -> None:
    rain = Rain((1, 1), (6, 6), (3, 3), (0, 0), (0.5, 0.5))
    a = rain.opacities((1, 4, 400, 32), generator_for(0))[0]
    rows, columns = a.amax(2) > 0, a.amax(1) > 0
    assert rows.sum(1).tolist() == [6, 6, 6, 6]  # its length
    tops = [int(row.nonzero().min()) for row in rows]
    assert [below - above for above, below in itertools.pairwise(tops)] == [3, 3, 3]
    assert torch.equal(columns[0], columns[3])
    assert 0 < a.max() <= 0.5


def test_equal_seeds_give_equal_weather_whatever_the_clip() -> None:
    black, white = torch.zeros(2, 3, 3, 16, 16), torch.ones(2, 3, 3, 16, 16)
    for sky in (Rain(), Snow()):
        on_black, on_white = (sky(clip, generator_for(1)) for clip in (black, white))
        top = 0.9 if isinstance(sky, Rain) else 1.0
        a = on_black / top
        assert torch.allclose(on_white, 1 - a + top * a, atol=1e-6)
        assert 0.02 < a.mean() < 0.6
        assert not torch.equal(sky(black, generator_for(2)), on_black)


def test_no_opacity_is_no_weather() -> None:
    clips = torch.rand(2, 3, 3, 16, 16)
    for sky in (Rain(opacity=(0, 0)), Snow(opacity=0.0), Haze(beta=(0, 0))):
        assert torch.allclose(sky(clips, generator_for(0)), clips, atol=1e-7)


def test_haze_hides_what_is_far_and_does_not_move() -> None:
    clips = torch.rand(1, 1, 3, 16, 16).expand(2, 3, 3, 16, 16)
    far = Haze(beta=(50, 50), depth=(1, 2))(clips, generator_for(0))
    airlight = far[:, 0, :, 0, 0]
    assert torch.allclose(far, airlight[:, None, :, None, None].expand_as(far), atol=1e-6)
    assert (airlight >= 0.75).all()
    near = Haze()(clips, generator_for(0))
    assert torch.equal(near[:, 0], near[:, 2])
    assert hazed(torch.tensor(0.2), torch.tensor(0.5), torch.tensor(1.0)) == pytest.approx(0.6)


def test_clips_are_items_of_three_weathers(dataset: Callable[..., Any]) -> None:
    data = dataset("weather_clips", **SMALL)
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    x, y, weather, scene = batches[0]
    assert x.shape == (6, 3, 3, 32, 32)
    assert y.shape == (6, 3, 32, 32)
    assert weather.tolist() == [0, 1, 2, 0, 1, 2]
    assert scene.tolist() == [0] * 6
    assert 0 <= x.min() <= x.max() <= 1
    # Rain and snow only lighten or grey what they cover; most of the frame is as it was.
    assert (x[weather == 0][:, 1] - y[weather == 0]).abs().median() < 0.02
    assert set(next(iter(data.probe_dataloader("test")))[3].tolist()) <= {0, 1}
    clips, T = data.preview(4)
    assert (clips.shape, T) == ((3, 6, 3, 32, 32), 3)


def test_static_windows_stand_still(dataset: Callable[..., Any]) -> None:
    still = {"opacity": [0.0, 0.0]}
    x = dataset("weather_clips", **SMALL, moving=0.0, rain=still).splits["train"][0][::3]
    assert torch.equal(x[:, 0], x[:, 2])
    moving = dataset("weather_clips", **SMALL, moving=1.0, rain=still).splits["train"][0][::3]
    assert not torch.equal(moving[:, 0], moving[:, 2])


def test_an_unknown_photograph_is_refused(dataset: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="no scene 'moon'"):
        dataset("weather_clips", scenes={"train": ["moon"], "val": [], "test": []})


# -- Benchmarks ------------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """The published layout: clips of 7, 6 and 8 frames; clean ones are PNG, numbered alike."""
    draw = np.random.default_rng(0)
    lengths = {"RainMotion": 7, "REVIDE": 6, "KITTI_snow": 8}
    for number, (name, length) in enumerate(lengths.items()):
        for part in ("Train", "Test"):
            for frame in range(1, length + 1):
                picture = draw.integers(0, 256, (40 + 8 * number, 48, 3), dtype=np.uint8)
                for folder, kind in ((part, "jpg"), (f"{part}_GT", "png")):
                    place = tmp_path / "weather_videos" / name / folder / "clip"
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(picture).save(place / f"{frame:05}.{kind}")
    return tmp_path


def benchmark(dataset: Callable[..., Any], root: Path, **knobs: Any) -> Any:
    small: dict[str, Any] = {"input_shape": [5, 3, 32, 32], "workers": 0, "batch_size": 2}
    return dataset("weather_videos", root / "hf", **{**small, "val_items": 1, **knobs})


def test_windows_of_the_published_folders(dataset: Callable[..., Any], videos: Path) -> None:
    data = benchmark(dataset, videos)
    batches = list(data.train_dataloader())
    assert len(batches) == 2  # an epoch has the 8 - 4 windows of the longest set
    x, y, weather = batches[0]
    assert x.shape == (6, 5, 3, 32, 32)
    assert y.shape == (6, 3, 32, 32)
    assert weather.tolist() == [0, 1, 2, 0, 1, 2]
    # The target is the centre frame, cropped and flipped like the clip (which is a JPEG of it).
    errors = (x - y[:, None]).abs().mean((2, 3, 4))
    assert (errors.argmin(1) == 2).all()
    tests = list(data.test_dataloader())
    assert len(tests) == 3 + 2 + 4
    assert [tuple(t[0].shape) for t in tests[::4]] == [
        (1, 5, 3, 40, 48), (1, 5, 3, 48, 48), (1, 5, 3, 56, 48)
    ]  # fmt: skip
    assert [int(t[2]) for t in tests] == [0] * 3 + [1] * 2 + [2] * 4
    assert len(list(data.val_dataloader())) == 1
    assert data.preview(2)[0].shape == (3, 6, 3, 32, 32)
    assert data.fingerprint()["sizes"] == {"train": 9, "test": 9}


def test_a_resumed_epoch_goes_on_with_the_same_crops(
    dataset: Callable[..., Any], videos: Path
) -> None:
    straight = list(benchmark(dataset, videos).train_dataloader())
    resumed = benchmark(dataset, videos).train_dataloader()
    resumed.load_state_dict({"epoch": 0, "batch": 1, "batches": 2})
    (second,) = list(resumed)
    assert torch.equal(second[0], straight[1][0])


def test_crops_turns_and_flips(videos: Path) -> None:
    """All four combinations come about, the same for a clip and its target."""
    ramp = np.stack([np.arange(16) * 16 + n for n in range(16)]).astype(np.uint8)
    picture = np.repeat(ramp[..., None], 3, 2)
    window = type("W", (), {"frames": [videos] * 3, "clean": videos})
    examples = WindowExamples(
        [[window]], crop=8, augmented=True, seed=0, read=lambda _path: picture  # type: ignore[list-item]
    )  # fmt: skip
    seen = set()
    for epoch in range(40):
        x, y, _ = examples[epoch, 0]
        assert torch.equal(x[0, 1], y[0])
        corner = y[0, 0].int()
        seen.add((bool(corner[0, 0] < corner[0, -1]), bool(corner[0, 0] < corner[-1, 0])))
    assert len(seen) == 4


def test_missing_frames_are_one_clear_message(dataset: Callable[..., Any], videos: Path) -> None:
    (videos / "weather_videos/REVIDE/Train/clip/00001.jpg").unlink()
    with pytest.raises(UserError, match="5 frames and 6 clean ones"):
        benchmark(dataset, videos).setup()
    with pytest.raises(UserError, match="'weather_videos' is missing"):
        benchmark(dataset, videos / "elsewhere").setup()
    sets = {"rain": "RainMotion", "haze": "RainMotion", "snow": "KITTI_snow"}
    large = benchmark(dataset, videos, input_shape=[5, 3, 64, 64], sets=sets).train_dataloader()
    with pytest.raises(UserError, match="too small for crops of 64"):
        next(iter(large))
