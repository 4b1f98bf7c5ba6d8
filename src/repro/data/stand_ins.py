"""Stand-ins for data sets that have to be fetched: the same shapes, types, labels and sizes.

`repro run --rehearse` builds, instead of a data set, what ``info.stand_in.target`` of its config
names: a function of this module. It takes the config of the real loader, and the sizes from
``info.stand_in``. What the examples show is noise; what working with them costs is not.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.data.base.modules import SPLIT_NAMES, Split, Splits, TensorData, TextData
from repro.data.images.detection import DetectionFiles, Picture
from repro.data.images.hub import StreamedImages
from repro.data.images.shapes import masks_of
from repro.data.images.trees import vessel_tree
from repro.data.images.videos import WeatherVideos, Window
from repro.data.worlds.radio import ImageTracer, Material, Radio

POOL = 1000  # different examples, repeated: drawing millions would take longer than a rehearsal
POOL_TOKENS = 1 << 20
PHOTOGRAPHS = 32  # different encoded photographs
PHOTOGRAPH = (375, 500)  # height and width of most of ImageNet's
# What loaders take to find and cut what they read, and no stand-in needs.
READING = (
    "root", "image_column", "label_column", "text_column", "unit", "tokenizer", "end",
    "documents", "splits", "split", "language", "memory", "smallest",
)  # fmt: skip


def images(
    name: str,
    *,
    info: Mapping[str, Any],
    input_shape: Sequence[int],
    classes: int,
    val_size: int,
    limit: int | None = None,
    **facts: Any,
) -> TensorData:
    """Stands in for `repro.data.images.hub.hub_images`; ``info.stand_in`` says train and test.

    Args:
        name: of the data set.
        info: with the number of published training and test images.
        input_shape: (C, H, W) of an image.
        classes: all of the same frequency.
        val_size: training images set aside for validation.
        limit: train on the first this many of the rest.
        facts: see `TensorData`.
    """
    sizes = info["stand_in"]

    def load() -> Splits:
        x, y = _labelled(sizes["train"], input_shape, classes)
        test = _labelled(sizes["test"], input_shape, classes)
        train = (x[val_size:][:limit], y[val_size:][:limit])
        return {"train": train, "val": (x[:val_size], y[:val_size]), "test": test}

    shape: dict[str, Any] = {"input_shape": input_shape, "classes": classes}
    return TensorData(name, load, source_digest=_nothing, **shape, **_facts(facts))


def _labelled(count: int, shape: Sequence[int], classes: int) -> Split:
    pool = torch.randint(
        256, (min(count, POOL), *shape), dtype=torch.uint8, generator=generator_for(count)
    )
    numbers = torch.arange(count)
    return pool[numbers % len(pool)], numbers % classes


class PhotographStream(StreamedImages):
    """Stands in for `StreamedImages`: photographs of the usual size, encoded as they are there."""

    def __init__(self, name: str, *, info: Mapping[str, Any], **facts: Any) -> None:
        super().__init__(name, info=info, **facts)
        self.sizes = info["stand_in"]

    @override
    def setup(self, stage: str | None = None) -> None:
        """Encodes the photographs; does so once."""
        if self._indices:
            return
        train, test = (
            _Photographs(self.sizes[split], self.classes, **self.columns)
            for split in ("train", "test")
        )
        order = torch.randperm(len(train), generator=generator_for(0))
        self._tables = {"train": train, "val": train, "test": test}
        self._indices = {
            "train": order[self.val_size :][: self.limit],
            "val": order[: self.val_size],
            "test": torch.arange(len(test)),
        }

    @override
    def fingerprint(self) -> dict[str, Any]:
        """There is nothing to tell apart."""
        return {"name": self.name, "sha256": _nothing(), "sizes": dict(self.sizes)}


class PhotographScenes(DetectionFiles):
    """Stands in for `DetectionFiles`: photographs with seven boxes each, over and over."""

    def __init__(self, name: str, *, info: Mapping[str, Any], **facts: Any) -> None:
        super().__init__(name, info=info, **facts)
        self.sizes = info["stand_in"]

    @override
    def read(self, split: str) -> list[Picture]:
        """Photographs of the usual size."""
        count = self.sizes["train" if split == self.train_split else "test"]
        encoded = _Photographs(count, self.classes, "image", "label").encoded
        height, width = PHOTOGRAPH
        draw = np.random.default_rng(0)
        pictures = []
        for number in range(count):
            corner = draw.uniform(0, 0.8, (7, 2)) * (width, height)
            size = draw.uniform(0.05, 0.2, (7, 2)) * (width, height)
            label = (number + np.arange(7)) % self.classes
            rows = [label, *corner.T, *(corner + size).T, np.zeros(7), size.prod(1)]
            targets_M7 = np.stack(rows, 1).astype(np.float32)
            outline = [_outline(box) for box in targets_M7[:, 1:5]]
            source = encoded[number % PHOTOGRAPHS]
            pictures.append(Picture(source, (width, height), targets_M7, outline))
        return pictures

    @override
    def fingerprint(self) -> dict[str, Any]:
        """There is nothing to tell apart."""
        return {"name": self.name, "sha256": _nothing(), "sizes": dict(self.sizes)}


def _outline(box: np.ndarray) -> list[np.ndarray]:
    """A box as a polygon."""
    x1, y1, x2, y2 = box
    return [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])]


class _Photographs:
    """A table of encoded photographs and labels, a few of them in turn."""

    def __init__(self, count: int, classes: int, image_column: str, label_column: str) -> None:
        from PIL import Image

        self.count, self.classes = count, classes
        self.image_column, self.label_column = image_column, label_column
        draw = np.random.default_rng(0)
        self.encoded = []
        for _ in range(PHOTOGRAPHS):
            coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            opened = io.BytesIO()
            coarse.resize(PHOTOGRAPH[::-1], Image.Resampling.BICUBIC).save(opened, "JPEG")
            self.encoded.append(opened.getvalue())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | str) -> Any:
        """One row, or the whole column of labels."""
        if isinstance(key, str):
            return np.arange(self.count) % self.classes
        encoded = self.encoded[key % PHOTOGRAPHS]
        return {self.image_column: {"bytes": encoded}, self.label_column: key % self.classes}


def photographs_of_folders(name: str, *, info: Mapping[str, Any], **facts: Any) -> PhotographStream:
    """Stands in for `repro.data.images.medical.RadImageNet`, whose splits are published.

    Args:
        name: of the data set.
        info: ``info.stand_in`` says the images of train, val and test.
        facts: see `StreamedImages`.
    """
    sizes = info["stand_in"]
    whole = {**info, "hub": name, "config": "", "stand_in": dict(sizes)}
    whole["stand_in"]["train"] = sizes["train"] + sizes["val"]
    return PhotographStream(name, info=whole, val_size=sizes["val"], test_split="test", **facts)


def medical(
    name: str,
    *,
    info: Mapping[str, Any],
    sets: Sequence[str],
    input_shape: Sequence[int],
    classes: int,
    size: int,  # noqa: ARG001 - says what input_shape does
    limit: int | None = None,
    **facts: Any,
) -> TensorData:
    """Stands in for `repro.data.images.medical.medmnist`: one image, which takes no memory.

    Args:
        name: of the data set.
        info: ``info.stand_in`` says the images of train, val and test of a set.
        sets: how many there are counts.
        input_shape: (3, S, S) of an image.
        classes: all of the same frequency.
        size: S.
        limit: train on so many images of each set.
        facts: see `TensorData`.
    """
    sizes = dict(info["stand_in"])
    sizes["train"] = min(sizes["train"], limit or sizes["train"])

    def load() -> Splits:
        (image,), _ = _labelled(1, input_shape, classes)
        counts = {split: len(sets) * sizes[split] for split in SPLIT_NAMES}
        return {
            s: (image.expand(n, *image.shape), torch.arange(n) % classes) for s, n in counts.items()
        }

    shape: dict[str, Any] = {"input_shape": input_shape, "classes": classes}
    return TensorData(name, load, source_digest=_nothing, **shape, **_facts(facts))


class RepeatedTokens:
    """A stream (N,) of tokens too long to be drawn, or kept: a shorter one over and over.

    Does what `repro.data.base.iterators.TokenIterator` and `TextData` ask of a tensor, as far as
    they look at single places (``windows=True``).

    Args:
        pool: (P,) tokens.
        length: N.
    """

    def __init__(self, pool: Tensor, length: int) -> None:
        self.pool, self.length = pool, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, places: Tensor) -> Tensor:
        return self.pool[places % len(self.pool)]

    def max(self) -> Tensor:
        """The largest token."""
        return self.pool.max()

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.pool.device

    @property
    def nbytes(self) -> int:
        """Bytes that the stream would take."""
        return self.length * self.pool.element_size()


def text(
    name: str,
    *,
    info: Mapping[str, Any],
    vocab_size: int,
    windows: bool = False,
    shards: int | None = None,
    held_out: float = 0.0,
    limit: int | None = None,
    **facts: Any,
) -> TextData:
    """Stands in for text of the hub: ``hub_text``, ``tokenized_text`` and ``web_text``.

    Args:
        name: of the data set.
        info: ``info.stand_in`` says the tokens of train, val and test, or of a shard.
        vocab_size: V; frequencies fall like one over the rank, as those of words do.
        windows: whether training looks at random places; then a stream may be longer than memory.
        shards: files that would be read.
        held_out: share of them for validation and test.
        limit: train on the first this many tokens; None for all.
        facts: see `TextData`.
    """
    sizes = dict(info["stand_in"])
    if shards is not None:
        total = shards * sizes["shard"]
        held = round(total * held_out / 2)
        sizes |= {"train": total - 2 * held, "val": held, "test": held}

    sizes["train"] = min(sizes["train"], limit or sizes["train"])

    def load() -> dict[str, Tensor]:
        streams: dict[str, Any] = {}
        for number, split in enumerate(SPLIT_NAMES):
            pool = _tokens(min(sizes[split], POOL_TOKENS), vocab_size, number)
            is_longer = sizes[split] > len(pool)
            if is_longer and windows and split == "train":
                streams[split] = RepeatedTokens(pool, sizes[split])
            else:
                streams[split] = pool.repeat(-(-sizes[split] // len(pool)))[: sizes[split]]
        return streams

    kept = _facts(facts)
    return TextData(
        name, load, vocab_size=vocab_size, windows=windows, source_digest=_nothing, **kept
    )


def _tokens(count: int, vocab_size: int, seed: int) -> Tensor:
    """Tokens (N,) int32, each with a probability that falls like one over its number."""
    uniform = torch.rand(count, generator=generator_for(seed))
    return (vocab_size**uniform - 1).clamp(0, vocab_size - 1).to(torch.int32)


def table(
    name: str,
    *,
    info: Mapping[str, Any],
    input_shape: Sequence[int],
    targets: int = 1,
    val_size: float = 0.1,
    **facts: Any,
) -> TensorData:
    """Stands in for `repro.data.tables.uci.uci`: a tenth of the examples is for test.

    Args:
        name: of the data set.
        info: ``info.stand_in.examples`` says how many there are by name.
        input_shape: (D,).
        targets: of one example.
        val_size: share of what is not test, set aside for validation.
        facts: see `TensorData`.
    """
    count = info["stand_in"]["examples"][name]
    test = round(count / 10)
    val = max(1, round(val_size * (count - test)))

    def load() -> Splits:
        generator = generator_for(count)
        x = torch.randn(count, *input_shape, generator=generator)
        y = x.flatten(1).mean(1, keepdim=True) * torch.ones(targets)
        y = y + 0.1 * torch.randn(count, targets, generator=generator)
        parts = zip(SPLIT_NAMES, (slice(val + test, None), slice(val), slice(val, val + test)))  # noqa: B905
        return {split: (x[part], y[part]) for split, part in parts}

    shape: dict[str, Any] = {
        "input_shape": input_shape,
        "targets": targets,
        "target_std": [1.0] * targets,
    }
    return TensorData(name, load, source_digest=_nothing, **shape, **_facts(facts))


def questions(
    name: str,
    *,
    info: Mapping[str, Any],
    input_shape: Sequence[int],
    classes: int,
    tasks: Sequence[int],
    val_size: float,
    **facts: Any,
) -> TensorData:
    """Stands in for `repro.data.text.babi.babi_files`: stories of words, answers that are words.

    Args:
        name: of the data set.
        info: ``info.stand_in`` says the training and test questions of a task.
        input_shape: (sentences and the question, words); 0 is padding.
        classes: words, with padding.
        tasks: that are trained jointly.
        val_size: share of the training questions set aside for validation.
        facts: see `TensorData`.
    """
    known, test = (len(tasks) * info["stand_in"][split] for split in ("train", "test"))
    val = round(val_size * known)

    def load() -> Splits:
        def drawn(count: int) -> Split:
            generator = generator_for(count)
            x = torch.randint(1, classes, (count, *input_shape), generator=generator)
            return x.to(torch.int16), torch.arange(count) % classes

        return {"train": drawn(known - val), "val": drawn(val), "test": drawn(test)}

    shape: dict[str, Any] = {"input_shape": input_shape, "classes": classes}
    return TensorData(name, load, source_digest=_nothing, **shape, **_facts(facts))


def segmentation(
    name: str,
    *,
    info: Mapping[str, Any],
    input_shape: Sequence[int],
    as_shapes: bool = False,
    **facts: Any,
) -> Any:
    """Stands in for `repro.data.images.vessels.drive` and ``vessap``: branching trees in noise.

    Args:
        name: of the data set.
        info: ``info.stand_in`` says the pictures of train, val and test.
        input_shape: (C, …) of a picture; masks are (1, …).
        as_shapes: hand out the test masks alone.
        facts: see `TensorData`.
    """
    sizes = info["stand_in"]

    def load() -> Splits:
        return {split: _segmented(sizes[split], input_shape) for split in SPLIT_NAMES}

    if as_shapes:
        return masks_of(name, load)
    facts = {key: value for key, value in facts.items() if key not in ("val_size", "patch")}
    return TensorData(name, load, input_shape=input_shape, source_digest=_nothing, **_facts(facts))


def _segmented(count: int, shape: Sequence[int]) -> Split:
    """Pictures (N, C, …) and masks (N, 1, …): one tree, drawn small and moved about."""
    generator = generator_for(count)
    size = shape[1:]
    small = vessel_tree([max(8, edge // 4) for edge in size], generator)
    mask = F.interpolate(small[None, None].float(), tuple(size))[0, 0]
    axes = tuple(range(len(size)))
    masks = torch.stack([mask.roll([7 * n] * len(size), axes) for n in range(min(count, 16))])
    y = masks[torch.arange(count) % len(masks)][:, None]
    noise = torch.rand(len(masks), *shape, generator=generator)[torch.arange(count) % len(masks)]
    return 0.5 * (noise + y), y


def image_tracer(
    materials: Sequence[Material],
    radio: Radio,
    **settings: Any,  # noqa: ARG001
) -> ImageTracer:
    """Stands in for `repro.data.worlds.sionna_maps.SionnaTracer`: rays in the plane.

    Args:
        materials: of the walls.
        radio: power and pattern.
        settings: of sionna's solver.
    """
    return ImageTracer(tuple(materials), radio)


class Videos(WeatherVideos):
    """Stands in for `WeatherVideos`: as many windows, of noise as large as training crops."""

    @override
    def windows_of(self, weather: str, part: str) -> list[Window]:
        """``info.stand_in`` says how many there are, by part and weather."""
        count = self.info["stand_in"][part.lower()][weather]
        frames = self.input_shape[0]
        return [Window([Path(str(n))] * frames, Path(str(n))) for n in range(count)]

    @override
    def read(self, path: Path) -> np.ndarray:
        """A frame."""
        draw = np.random.default_rng(int(path.name))
        return draw.integers(0, 256, (*self.input_shape[2:], 3), dtype=np.uint8)

    @override
    def fingerprint(self) -> dict[str, Any]:
        """There is nothing to tell apart."""
        return {"name": self.name, "sha256": _nothing(), "sizes": {}}


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says besides where to find and how to read files."""
    return {key: value for key, value in config.items() if key not in READING}


def _nothing() -> str:
    return "stand-in"
