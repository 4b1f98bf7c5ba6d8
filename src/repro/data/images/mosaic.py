"""Augmentation of scenes with boxes: mosaic, copy-paste, MixUp, scale, colour, mirroring.

As in the training recipe of YOLOv9 (arXiv 2402.13616, appendix; originally of YOLOv4 and v5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.knobs import Fraction, Natural, NonNegative, Probability, checked

GREY = 114  # of what no picture covers


@dataclass(frozen=True)
class Scene:
    """An image with its objects.

    Attributes:
        image: of Pillow, RGB.
        targets: see `repro.data.images.scenes`.
        outlines: polygons (points, 2) of each object; none where they are not known.
    """

    image: Any
    targets: np.ndarray  # M7
    outlines: list[list[np.ndarray]]

    def where(self, kept: np.ndarray) -> Scene:
        """With some of its objects only."""
        outlines = [self.outlines[n] for n in np.flatnonzero(kept)]
        return replace(self, targets=self.targets[kept], outlines=outlines)

    def without_crowds(self) -> Scene:
        """With objects that are one."""
        return self.where(self.targets[:, 5] == 0)

    def moved(self, image: Any, scale: float, shift: tuple[float, float]) -> Scene:
        """With another image, where a point is ``scale`` times the point here plus ``shift``."""
        targets = self.targets.copy()
        targets[:, 1:5] = targets[:, 1:5] * scale + np.array([*shift, *shift])
        targets[:, 6] *= scale**2
        outlines = [[p * scale + np.array(shift) for p in each] for each in self.outlines]
        return Scene(image, targets, outlines)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Image (3, H, W), bytes, and targets (M, 7)."""
        pixels = torch.from_numpy(np.array(self.image)).permute(2, 0, 1).contiguous()
        return pixels, torch.from_numpy(self.targets)


def resized(scene: Scene, size: int, smooth: bool = False) -> Scene:
    """The scene with its longest side at ``size``; areas of objects stay those of the original.

    Args:
        scene: of any size.
        size: in pixels.
        smooth: average over what is lost; otherwise interpolate linearly.
    """
    from PIL import Image

    scale = size / max(scene.image.size)
    new = tuple(max(1, round(edge * scale)) for edge in scene.image.size)
    how = Image.Resampling.BOX if smooth and scale < 1 else Image.Resampling.BILINEAR
    image = scene.image if scale == 1 else scene.image.resize(new, how)
    moved = scene.moved(image, scale, (0, 0))
    moved.targets[:, 6] = scene.targets[:, 6]
    return moved


@checked
class Augment:
    """One training image out of one, four or eight.

    Args:
        mosaic: probability that four pictures make one.
        mixup: probability that two mosaics are blended.
        copy_paste: share of a mosaic's objects that are mirrored and pasted where they fit.
        hue: largest relative change of the hue; likewise `saturation` and `value`.
        saturation: of the saturation.
        value: of the brightness.
        translate: largest shift, as a share of the size.
        scale: the factor of the size is uniform in 1 ± this.
        mirror: probability of a reflection.
        rare: probability of a blur, and of a median filter, of grey, and of equalised contrast.
        epochs: of the training.
        close: epochs at its end without mosaic, and so without MixUp and pasting.
    """

    def __init__(
        self,
        mosaic: Probability = 1.0,
        mixup: Probability = 0.15,
        copy_paste: Probability = 0.3,
        hue: NonNegative = 0.015,
        saturation: NonNegative = 0.7,
        value: NonNegative = 0.4,
        translate: NonNegative = 0.1,
        scale: Fraction = 0.9,
        mirror: Probability = 0.5,
        rare: Probability = 0.01,
        epochs: Natural = 0,
        close: Natural = 0,
    ) -> None:
        self.mosaic, self.mixup, self.copy_paste = mosaic, mixup, copy_paste
        self.gains = (hue, saturation, value)
        self.translate, self.scale, self.mirror, self.rare = translate, scale, mirror, rare
        self.last = epochs - close if close else None

    def __call__(
        self,
        read: Callable[[int], Scene],
        index: int,
        count: int,
        size: int,
        epoch: int,
        draw: np.random.Generator,
    ) -> Scene:
        """A square scene.

        Args:
            read: returns a picture by its number.
            index: of the picture.
            count: of all pictures.
            size: edge of the scene.
            epoch: under way.
            draw: all that is random.
        """
        closed = self.last is not None and epoch >= self.last
        if not closed and draw.random() < self.mosaic:
            scene = self._mosaic(read, index, count, size, draw)
            if draw.random() < self.mixup:
                other = self._mosaic(read, int(draw.integers(count)), count, size, draw)
                scene = blended(scene, other, float(draw.beta(32, 32)))
        else:
            scene = self._moved(centred(resized(read(index), size), size), size, draw)
        scene = self._coloured(scene, draw)
        return mirrored(scene) if draw.random() < self.mirror else scene

    def _mosaic(
        self,
        read: Callable[[int], Scene],
        index: int,
        count: int,
        size: int,
        draw: np.random.Generator,
    ) -> Scene:
        numbers = [index, *draw.integers(count, size=3).tolist()]
        centre = draw.uniform(0.5 * size, 1.5 * size, 2).astype(int)
        scene = tiled([resized(read(number), size) for number in numbers], size, centre)
        return self._moved(pasted(scene, self.copy_paste, draw), size, draw)

    def _moved(self, scene: Scene, size: int, draw: np.random.Generator) -> Scene:
        """Scaled about its middle, shifted and cut to a square of ``size``."""
        from PIL import Image

        scale = draw.uniform(1 - self.scale, 1 + self.scale)
        middle = np.array(scene.image.size) / 2
        goal = size * draw.uniform(0.5 - self.translate, 0.5 + self.translate, 2)
        x, y = goal - scale * middle
        image = scene.image.transform(
            (size, size),
            Image.Transform.AFFINE,
            (1 / scale, 0, -x / scale, 0, 1 / scale, -y / scale),
            Image.Resampling.BILINEAR,
            fillcolor=(GREY,) * 3,
        )
        return cut(scene.moved(image, scale, (x, y)), size)

    def _coloured(self, scene: Scene, draw: np.random.Generator) -> Scene:
        from PIL import Image, ImageFilter

        image = scene.image
        for filtered in (ImageFilter.BoxBlur(2), ImageFilter.MedianFilter(3)):
            image = image.filter(filtered) if draw.random() < self.rare else image
        image = image.convert("L").convert("RGB") if draw.random() < self.rare else image
        image = _equalised(image) if draw.random() < self.rare else image
        factors = 1 + draw.uniform(-1, 1, 3) * self.gains
        hsv = np.array(image.convert("HSV")).astype(float) * factors
        hsv[..., 0] %= 256
        hsv = hsv.clip(0, 255).astype(np.uint8)
        return replace(scene, image=Image.fromarray(hsv, "HSV").convert("RGB"))


def _equalised(image: Any) -> Any:
    """Contrast equalised tile by tile (CLAHE)."""
    from PIL import Image
    from skimage.exposure import equalize_adapthist

    return Image.fromarray((255 * equalize_adapthist(np.array(image))).astype(np.uint8))


def centred(scene: Scene, size: int) -> Scene:
    """The scene in the middle of a grey square."""
    from PIL import Image

    width, height = scene.image.size
    shift = ((size - width) // 2, (size - height) // 2)
    canvas = Image.new("RGB", (size, size), (GREY,) * 3)
    canvas.paste(scene.image, shift)
    return scene.moved(canvas, 1.0, shift)


def tiled(scenes: list[Scene], size: int, centre: np.ndarray) -> Scene:
    """Four scenes around a point of a canvas of twice the size.

    Args:
        scenes: whose longest side is ``size``.
        size: half the edge of the canvas.
        centre: x and y of the point.
    """
    from PIL import Image

    canvas = Image.new("RGB", (2 * size, 2 * size), (GREY,) * 3)
    parts = []
    for number, scene in enumerate(scenes):
        width, height = scene.image.size
        left = int(centre[0]) - (width if number in (0, 2) else 0)
        top = int(centre[1]) - (height if number in (0, 1) else 0)
        canvas.paste(scene.image, (left, top))
        parts.append(scene.moved(canvas, 1.0, (left, top)))
    targets = np.concatenate([part.targets for part in parts])
    outlines = [each for part in parts for each in part.outlines]
    whole = Scene(canvas, targets, outlines)
    whole.targets[:, 1:5] = whole.targets[:, 1:5].clip(0, 2 * size)
    return whole.where((targets[:, 3] > targets[:, 1]) & (targets[:, 4] > targets[:, 2]))


def pasted(scene: Scene, share: float, draw: np.random.Generator) -> Scene:
    """Mirrors some objects and pastes them where they cover at most 30 % of any other.

    Args:
        scene: with outlines; objects without are left alone.
        share: of its objects.
        draw: which ones.
    """
    from PIL import Image, ImageDraw, ImageOps

    known = [n for n, each in enumerate(scene.outlines) if each]
    chosen: list[int] = draw.permutation(known)[: round(share * len(known))].tolist()
    mask, width = Image.new("1", scene.image.size), scene.image.size[0]
    targets, outlines = scene.targets, list(scene.outlines)
    for number in chosen:
        row = targets[number].copy()
        row[1], row[3] = width - row[3], width - row[1]
        low = np.maximum(targets[:, 1:3], row[1:3])
        high = np.minimum(targets[:, 3:5], row[3:5])
        sizes = (targets[:, 3:5] - targets[:, 1:3]).prod(1)
        if ((high - low).clip(0).prod(1) < 0.3 * sizes).all():
            flipped = [p * np.array([-1, 1]) + np.array([width, 0]) for p in outlines[number]]
            for polygon in flipped:
                ImageDraw.Draw(mask).polygon([tuple(point) for point in polygon], fill=1)
            targets, outlines = np.concatenate([targets, row[None]]), [*outlines, flipped]
    image = Image.composite(ImageOps.mirror(scene.image), scene.image, mask)
    return Scene(image, targets, outlines)


def blended(scene: Scene, other: Scene, share: float) -> Scene:
    """MixUp: both images at their shares, and the objects of both."""
    from PIL import Image

    image = Image.blend(other.image, scene.image, share)
    targets = np.concatenate([scene.targets, other.targets])
    return Scene(image, targets, [*scene.outlines, *other.outlines])


def mirrored(scene: Scene) -> Scene:
    """The scene with left and right exchanged."""
    from PIL import ImageOps

    width = scene.image.size[0]
    targets = scene.targets.copy()
    targets[:, [1, 3]] = width - targets[:, [3, 1]]
    outlines = [[p * np.array([-1, 1]) + np.array([width, 0]) for p in e] for e in scene.outlines]
    return Scene(ImageOps.mirror(scene.image), targets, outlines)


def cut(scene: Scene, size: int) -> Scene:
    """Boxes cut to the image; what is left of an object has to be enough to be seen.

    That is more than 2 pixels along both axes, a tenth of its area (a hundredth, where its outline
    is known), and sides of which none is 100 times the other.

    Args:
        scene: whose objects may reach beyond the image.
        size: edge of the image.
    """
    targets = scene.targets.copy()
    before = (targets[:, 3:5] - targets[:, 1:3]).prod(1)
    for number, outline in enumerate(scene.outlines):
        if outline:
            points = np.concatenate(outline).clip(0, size)
            targets[number, 1:5] = [*points.min(0), *points.max(0)]
    targets[:, 1:5] = targets[:, 1:5].clip(0, size)
    width, height = (targets[:, 3:5] - targets[:, 1:3]).T
    least = np.array([0.01 if outline else 0.1 for outline in scene.outlines])
    ratio = np.maximum(width, height) / np.maximum(np.minimum(width, height), 1e-9)
    enough = (width > 2) & (height > 2) & (width * height > least * before) & (ratio < 100)
    return replace(scene, targets=targets).where(enough)
