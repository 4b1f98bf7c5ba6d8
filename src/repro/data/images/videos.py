"""Clips in bad weather beside what they show without it: simulated, and three benchmarks.

Batches are (clips, clean, weather, …): degraded clips (B, T, 3, H, W) and their clean centre frames
(B, 3, H, W), float in [0, 1], and labels (B,) int64, 0 rain, 1 haze, 2 snow. A training item is one
clip of each weather, so that a batch of b items holds 3 b clips, item after item.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from typing_extensions import override

from repro.data.base.files import INSTALL, data_root, sha256_of
from repro.data.base.iterators import Batch, BatchIterator, generator_for
from repro.data.base.modules import SPLIT_NAMES, Split, Splits, TensorData
from repro.data.images.hub import StreamIterator
from repro.data.images.photographs import photograph
from repro.data.images.weather import WEATHERS, Haze, Rain, Snow
from repro.errors import UserError
from repro.knobs import Count, Natural, checked

# Names of scenes, and of their photographs.
SCENES = {
    "astronaut": "astronaut", "brick": "brick", "camera": "camera", "chelsea": "chelsea",
    "coffee": "coffee", "gravel": "gravel", "hubble": "hubble_deep_field",
    "ihc": "immunohistochemistry", "motorcycle": "stereo_motorcycle", "retina": "retina",
    "rocket": "rocket", "china": "china", "flower": "flower",
}  # fmt: skip


# -- Simulated -------------------------------------------------------------------------------------


class ItemIterator(BatchIterator):
    """Batches of items, handed out clip by clip, in [0, 1].

    Args:
        tensors: of clips, so many in a row to an item.
        batch_size: items.
        how: see `BatchIterator`.
    """

    def __init__(self, tensors: Split, batch_size: int, **how: Any) -> None:
        items = [tensor.unflatten(0, (-1, len(WEATHERS))) for tensor in tensors]
        super().__init__(items, batch_size, **how)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields (clips, clean, weather, …)."""
        for batch in super().batches(epoch, start):
            yield _handed_out(batch)


def _handed_out(batch: Batch) -> Batch:
    x, y, *rest = (tensor.flatten(0, 1) for tensor in batch)
    return (x.float() / 255, y.float() / 255, *rest)


class ClipData(TensorData):
    """A `TensorData` of clips, three in a row to an item; pictures are bytes.

    Args:
        longer: makes one clip of each weather, so many frames long, (3, F, 3, H, W).
        args: see `TensorData`.
        facts: likewise; batch sizes count items.
    """

    def __init__(self, *args: Any, longer: Callable[[int], Tensor], **facts: Any) -> None:
        super().__init__(*args, **facts)
        self.longer = longer

    def preview(self, frames: int) -> tuple[Tensor, int]:
        """A test clip of each weather, so much longer than T, and T."""
        assert self.input_shape is not None
        T = self.input_shape[0]
        return self.longer(frames + T - 1), T

    @override
    def train_dataloader(self) -> ItemIterator:
        """Shuffled batches; a last, smaller one is left out."""
        return ItemIterator(
            self._placed("train"), self.batch_size, shuffle=True, drop_last=True, seed=self.seed
        )

    @override
    def _eval_dataloader(self, split: str) -> ItemIterator:
        return ItemIterator(self._placed(split), self.eval_batch_size)

    def probe_dataloader(self, split: str) -> ItemIterator:
        """Clips to train (``train``) or to test (``test``) a classifier of features on."""
        return self._eval_dataloader(split)


@checked
def weather_clips(
    name: str = "weather_clips",
    *,
    input_shape: Sequence[Count],
    scenes: Mapping[str, Sequence[str]],
    items: Mapping[str, Count],
    moving: float = 0.5,
    rain: Mapping[str, Any] | None = None,
    haze: Mapping[str, Any] | None = None,
    snow: Mapping[str, Any] | None = None,
    data_seed: int = 0,
    **facts: Any,
) -> ClipData:
    """Windows that move over photographs at half their size, in simulated weather.

    A split's batches have a fourth tensor, the number of each clip's photograph in its list.

    Args:
        name: of the data set.
        input_shape: (T, 3, H, W) of a clip.
        scenes: photographs by split: names of `SCENES`.
        items: so many clips of each weather, by split.
        moving: share of the clips whose window moves, by -1, 0 or 1 pixels a frame and axis.
        rain: arguments of `repro.data.images.weather.Rain`.
        haze: of `Haze`.
        snow: of `Snow`.
        data_seed: of all draws.
        facts: see `TensorData`.

    Raises:
        UserError: a photograph that is not known.
    """
    for scene in (each for split in SPLIT_NAMES for each in scenes[split]):
        if scene not in SCENES:
            raise UserError(f"Data set '{name}': no scene '{scene}', but {', '.join(SCENES)}.")
    skies: list[Callable[[Tensor, torch.Generator], Tensor]] = [
        Rain(**_tuples(rain)),
        Haze(**_tuples(haze)),
        Snow(**_tuples(snow)),
    ]

    def filmed(split: str, count: int, shape: Sequence[int], seed: int) -> Split:
        """Clips in weather and clean, labels and photographs; item by item, (count, 3, …)."""
        generator = generator_for(data_seed, seed)
        photographs = [half_size(scene) for scene in scenes[split]]
        takes = [_clips(photographs, count, shape, moving, generator) for _ in skies]
        wet = [sky(dry, generator) for sky, (dry, _) in zip(skies, takes, strict=True)]
        chosen = torch.stack([scene for _, scene in takes], 1)
        weather = torch.arange(len(skies)).expand_as(chosen)
        return torch.stack(wet, 1), torch.stack([dry for dry, _ in takes], 1), weather, chosen

    def load() -> Splits:
        splits = {}
        for number, split in enumerate(SPLIT_NAMES):
            wet, dry, *rest = filmed(split, items[split], input_shape, number)
            middle = dry[:, :, input_shape[0] // 2]
            parts = (_bytes(wet), _bytes(middle), *rest)
            splits[split] = tuple(each.flatten(0, 1).contiguous() for each in parts)
        return splits

    def longer(frames: int) -> Tensor:
        return filmed("test", 1, (frames, *input_shape[1:]), len(SPLIT_NAMES))[0][0]

    return ClipData(name, load, longer=longer, input_shape=input_shape, **facts)


@functools.cache
def half_size(scene: str) -> Tensor:
    """The photograph of a scene of `SCENES` at half its size, (3, H, W) in [0, 1]."""
    return F.avg_pool2d(photograph(SCENES[scene]), 2)


def _clips(
    photographs: Sequence[Tensor],
    count: int,
    shape: Sequence[int],
    moving: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Clean clips (N, T, 3, H, W), and the number of the photograph of each."""
    T, _, H, W = shape
    chosen = torch.randint(len(photographs), (count,), generator=generator)
    starts = torch.rand(count, 2, generator=generator)
    steps = torch.randint(-1, 2, (count, 2), generator=generator)
    steps *= torch.rand(count, 1, generator=generator) < moving
    clips = torch.empty(count, *shape)
    for clip, scene, start, step in zip(clips, chosen, starts, steps, strict=True):
        picture = photographs[int(scene)]
        room = torch.tensor([picture.shape[1] - H, picture.shape[2] - W]) - 2 * (T - 1)
        first = (T - 1) + (start * room).long()
        for t in range(T):
            y, x = (first + t * step).tolist()
            clip[t] = picture[:, y : y + H, x : x + W]
    return clips, chosen


def _bytes(x: Tensor) -> Tensor:
    return (255 * x).round().clamp(0, 255).to(torch.uint8)


def _tuples(knobs: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, Sequence) else value
        for key, value in (knobs or {}).items()
    }


# -- Benchmarks ------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Consecutive frames of a clip, and the clean centre frame."""

    frames: list[Path]
    clean: Path


class WindowExamples(Dataset[Batch]):
    """Windows read from disk, in the worker that asks for them.

    Args:
        windows: by weather.
        crop: edge of square crops; None: whole frames, one window of one weather at a time.
        augmented: random crops, flips and half turns, the same for all frames; else the middle.
        seed: of these.
        read: maps a path to a picture (H, W, 3) of bytes.
    """

    def __init__(
        self,
        windows: Sequence[Sequence[Window]],
        *,
        crop: int | None,
        augmented: bool,
        seed: int,
        read: Callable[[Path], np.ndarray],
    ) -> None:
        self.windows, self.crop, self.augmented = windows, crop, augmented
        self.seed, self.read = seed, read

    def __len__(self) -> int:
        """Items: the longest set's windows, or with whole frames those of all."""
        lengths = [len(each) for each in self.windows]
        return sum(lengths) if self.crop is None else max(lengths)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """Returns (C, T, 3, H, W), (C, 3, H, W) bytes and labels (C,) for (epoch, index)."""
        epoch, index = key
        if self.crop is None:
            weather = 0
            while index >= len(self.windows[weather]):
                index -= len(self.windows[weather])
                weather += 1
            clips = [(*self._pictures(self.windows[weather][index]), torch.tensor(weather))]
        else:
            clips = []
            for weather, windows in enumerate(self.windows):
                # Shorter sets begin again; pairs of clips meet again within an epoch.
                pictures = self._pictures(windows[index % len(windows)])
                generator = generator_for(self.seed, epoch, index, weather)
                clips.append((*self._cropped(*pictures, generator), torch.tensor(weather)))
        x, y, weather_C = (torch.stack(each) for each in zip(*clips, strict=True))
        return x, y, weather_C

    def _pictures(self, window: Window) -> tuple[Tensor, Tensor]:
        x, y = np.stack([self.read(path) for path in window.frames]), self.read(window.clean)
        return torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y).permute(2, 0, 1)

    def _cropped(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert self.crop is not None
        H, W = y.shape[1:]
        if min(H, W) < self.crop:
            raise UserError(f"Frames of {H} x {W} pixels are too small for crops of {self.crop}.")
        draws = torch.rand(5, generator=generator) if self.augmented else torch.full((5,), 0.5)
        top, left = (int(share * (room - self.crop + 1)) for share, room in zip(draws, (H, W)))  # noqa: B905
        vertical, horizontal, turned = (self.augmented and bool(each < 0.5) for each in draws[2:])
        # Half a turn is both flips.
        axes = [axis for axis, on in ((-2, vertical), (-1, horizontal)) if on != turned]
        part = (..., slice(top, top + self.crop), slice(left, left + self.crop))
        return x[part].flip(axes), y[part].flip(axes)


class WindowIterator(StreamIterator):
    """Batches of `WindowExamples`, handed out clip by clip, in [0, 1]."""

    def _collated(self, examples: list[Any]) -> Batch:
        return _handed_out(tuple(torch.stack(each) for each in zip(*examples, strict=True)))


class WeatherVideos(LightningDataModule):
    """Benchmarks of rain, haze and snow in folders, ``<set>/Train/<clip>/00001.jpg``.

    Clean frames lie in ``Train_GT``, in the same order; likewise ``Test`` and ``Test_GT``. A clip
    of n frames gives n - T + 1 windows. An epoch has as many items as the longest set has windows.

    Args:
        name: of the data set.
        input_shape: (T, 3, S, S) of a training clip.
        sets: folders of the three benchmarks by weather.
        val_items: windows of each training set that validation looks at, in the middle of frames.
        task: ``regression``.
        batch_size: training items per step and process.
        eval_batch_size: validation items.
        workers: reading processes for each process that trains.
        prefetch: batches that each of them reads ahead.
        seed: of order and crops.
        root: folder of data sets; the sets lie beside it, in `name`.
        info: for `repro.data.base.catalog`.

    A `UserError` says so if frames are missing, when the data are read.
    """

    name: str

    @checked
    def __init__(
        self,
        name: str,
        *,
        input_shape: Sequence[Count],
        sets: Mapping[str, str],
        val_items: Count,
        task: Literal["regression"] = "regression",
        batch_size: Count,
        eval_batch_size: Count,
        workers: Natural = 0,
        prefetch: Count = 2,
        seed: int = 0,
        root: str | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.task, self.seed = name, task, seed
        self.folder = data_root(root).parent / name
        self.input_shape = tuple(input_shape)
        self.sets = {weather: sets[weather] for weather in WEATHERS}
        self.val_items = val_items
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.workers, self.prefetch = workers, prefetch
        self.info = dict(info or {})
        self._windows: dict[str, list[list[Window]]] = {}

    @override
    def setup(self, stage: str | None = None) -> None:
        """Lists the windows; does so once.

        A `UserError` says so if there are none.
        """
        if not self._windows:
            self._windows = {
                split: [self.windows_of(weather, split.capitalize()) for weather in WEATHERS]
                for split in ("train", "test")
            }

    def windows_of(self, weather: str, part: str) -> list[Window]:
        """All windows of a set's ``Train`` or ``Test``, clip by clip.

        Args:
            weather: whose set.
            part: of it.

        Raises:
            UserError: there are no frames, or not as many clean ones.
        """
        folder = self.folder / self.sets[weather] / part
        T, windows = self.input_shape[0], []
        for clip in sorted(folder.glob("*/")):
            frames = sorted(clip.iterdir())
            clean = sorted((folder.with_name(f"{part}_GT") / clip.name).glob("*"))
            if len(frames) != len(clean):
                raise UserError(
                    f"Data set '{self.name}': {clip} has {len(frames)} frames and {len(clean)}"
                    " clean ones."
                )
            for start in range(len(frames) - T + 1):
                windows.append(Window(frames[start : start + T], clean[start + T // 2]))
        if not windows:
            raise UserError(
                f"Data set '{self.name}' is missing: no clips of {T} frames in {folder}. Put them"
                " there by hand, or point `data.root=` (or REPRO_DATA_ROOT) at a folder beside it."
            )
        return windows

    def read(self, path: Path) -> np.ndarray:
        """A picture (H, W, 3) of bytes.

        Args:
            path: of the file.

        Raises:
            UserError: it is damaged, or Pillow is not installed.
        """
        try:
            from PIL import Image
        except ImportError as error:
            raise UserError(f"Reading pictures needs Pillow: {INSTALL}") from error
        try:
            return np.array(Image.open(path).convert("RGB"))
        except OSError as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}).") from error

    def _iterator(
        self,
        split: str,
        size: int,
        *,
        crop: int | None,
        augmented: bool = False,
        most: int | None = None,
        **how: Any,
    ) -> WindowIterator:
        self.setup()
        windows = self._windows[split]
        if most is not None:  # evenly spaced
            windows = [each[:: max(1, len(each) // most)][:most] for each in windows]
        examples = WindowExamples(
            windows,
            crop=crop, augmented=augmented, seed=self.seed, read=self.read,
        )  # fmt: skip
        return WindowIterator(
            examples, size, workers=self.workers, prefetch=self.prefetch, seed=self.seed, **how
        )

    def train_dataloader(self) -> WindowIterator:
        """Shuffled, augmented crops; a last, smaller batch is left out."""
        return self._iterator(
            "train", self.batch_size, crop=self.input_shape[-1], augmented=True,
            shuffle=True, drop_last=True,
        )  # fmt: skip

    def val_dataloader(self) -> WindowIterator:
        """The middle of some windows of the training clips: the sets have no validation part."""
        return self._iterator(
            "train", self.eval_batch_size, crop=self.input_shape[-1], most=self.val_items
        )

    def test_dataloader(self) -> WindowIterator:
        """All windows, one at a time, whole frames: sets differ in size."""
        return self._iterator("test", 1, crop=None)

    def probe_dataloader(self, split: str) -> WindowIterator:
        """Crops to train (``train``) or to test (``test``) a classifier of features on."""
        size = self.input_shape[-1]
        return self._iterator(split, self.eval_batch_size, crop=size, augmented=True)

    def preview(self, frames: int) -> tuple[Tensor, int]:
        """The middle of consecutive windows of each test set, as one clip each, and T."""
        self.setup()
        T, size = self.input_shape[0], self.input_shape[-1]
        clips = []
        for windows in self._windows["test"]:
            # The frames that are new in each window follow those of the first one.
            paths = [*windows[0].frames, *(w.frames[-1] for w in windows[1:frames])]
            paths += paths[-1:] * (frames + T - 1 - len(paths))
            video = torch.from_numpy(np.stack([self.read(path) for path in paths]))
            top, left = ((edge - size) // 2 for edge in video.shape[1:3])
            part = video[:, top : top + size, left : left + size]
            clips.append(part.permute(0, 3, 1, 2).float() / 255)
        return torch.stack(clips), T

    def fingerprint(self) -> dict[str, Any]:
        """Returns ``name``, ``sha256`` of names and sizes of all files, and windows by split."""
        self.setup()
        files = sorted(self.folder.glob("*/*/*/*"))
        sizes = {split: sum(map(len, each)) for split, each in self._windows.items()}
        return {"name": self.name, "sha256": sha256_of(files, contents=False), "sizes": sizes}
