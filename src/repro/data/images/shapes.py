"""Binary shapes of many sizes, one after another: pictures, simple solids, random volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from lightning.pytorch import LightningDataModule
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor
from typing_extensions import override

from repro.data.base.files import INSTALL
from repro.data.base.iterators import Batch, EpochIterator, generator_for
from repro.data.base.modules import digest
from repro.data.images.trees import vessel_tree
from repro.errors import UserError
from repro.knobs import Natural, checked

Shapes = Mapping[str, Tensor]  # name -> (H, W) or (D, H, W), boolean


class ShapeIterator(EpochIterator):
    """Yields (mask, number): one shape of (1, 1, *size) in {0, 1} and its place in the list."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def __len__(self) -> int:
        """Number of shapes."""
        return len(self.masks)

    @override
    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the shapes from number ``start`` on, always in the same order."""
        for number in range(start, len(self)):
            yield self.masks[number].float()[None, None], torch.tensor(number)


class ShapeData(LightningDataModule):
    """Shapes to be looked at one by one; every split holds all of them.

    Args:
        name: of the data set.
        shapes: returns the shapes by name; called once.
    """

    def __init__(self, name: str, shapes: Callable[[], Shapes]) -> None:
        super().__init__()
        self.name = name
        self._load = shapes
        self._shapes: Shapes | None = None

    @property
    def shapes(self) -> Shapes:
        """The shapes by name, in the order in which they are handed out."""
        if self._shapes is None:
            self._shapes = dict(self._load())
        return self._shapes

    @override
    def setup(self, stage: str | None = None) -> None:
        """Loads the shapes.

        A `UserError` says so if they are missing.
        """
        _ = self.shapes

    def train_dataloader(self) -> ShapeIterator:
        """Returns the shapes, one by one."""
        return ShapeIterator(list(self.shapes.values()))

    test_dataloader = train_dataloader

    def fingerprint(self) -> dict[str, Any]:
        """Returns ``name``, ``sha256`` of the shapes and how many there are."""
        masks = list(self.shapes.values())
        return {"name": self.name, "sha256": digest(masks), "sizes": {"shapes": len(masks)}}


@checked
def shapes(
    name: str = "shapes",
    *,
    pictures: bool = True,
    solids: bool = True,
    blobs: Natural = 12,
    trees: Natural = 2,
    size: Annotated[int, Ge(8)] = 20,
    data_seed: int = 0,
    **_facts: Any,
) -> ShapeData:
    """Shapes for judging what a transformation does to topology, in 2-D and 3-D; no download.

    Args:
        name: of the data set.
        pictures: masks from pictures that come with scikit-image and scikit-learn, 2-D.
        solids: a ball, a torus, a hollow shell and crossing rods, 3-D.
        blobs: how many random blobs in 3-D, with tunnels and cavities.
        trees: how many random vessel trees in 2-D, and as many in 3-D.
        size: edge of the random volumes; random images are twice as wide.
        data_seed: of the random ones.
        **_facts: ``task``, ``input_shape`` and ``info``, for other readers of the config.

    Raises:
        UserError: a size that is too small, or nothing to look at.
    """
    if not (pictures or solids or blobs or trees):
        raise UserError(f"Data set '{name}': no shapes are left. Switch some on.")

    def load() -> Shapes:
        found = dict(picture_masks()) if pictures else {}
        for number in range(trees):
            generator = generator_for(data_seed, 2, number)
            found[f"tree_2d_{number}"] = vessel_tree([2 * size] * 2, generator)
        if solids:
            found |= solid_masks()
        for number in range(blobs):
            found[f"blobs_{number}"] = blob_mask(size, generator_for(data_seed, 0, number))
        for number in range(trees):
            found[f"tree_3d_{number}"] = vessel_tree(
                [size] * 3, generator_for(data_seed, 3, number)
            )
        return found

    return ShapeData(name, load)


def picture_masks() -> Shapes:
    """Masks from bundled pictures, 2-D: a horse, letters, coins, retinal vessels, digits.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        from skimage import data
        from skimage.filters import sato, threshold_otsu
        from skimage.transform import resize
    except ImportError as error:
        raise UserError(f"Bundled pictures need scikit-image: {INSTALL}") from error

    def half(picture: np.ndarray) -> np.ndarray:
        return resize(
            picture.astype(float), [edge // 2 for edge in picture.shape], anti_aliasing=True
        )

    text, page, coins = (half(load()) for load in (data.text, data.page, data.coins))
    lines = ndimage.gaussian_filter(page, 12)  # the page's light falls unevenly
    retina = resize(data.retina()[..., 1] / 255.0, (256, 256), anti_aliasing=True)
    ridges = sato(retina, sigmas=(1, 2))
    inside = ndimage.binary_erosion(retina > 0.1, iterations=8)
    digits = np.hstack(load_digits().images[:10].reshape(10, 8, 8))
    found = {
        "horse": half(~data.horse()) > 0.5,
        "text": text < threshold_otsu(text),
        "page": page < 0.85 * lines,
        "coins": coins > threshold_otsu(coins),
        "retina": inside & (ridges > np.quantile(ridges[inside], 0.88)),
        "digits": ndimage.gaussian_filter(np.kron(digits, np.ones((4, 4))), 1) > 7,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in found.items()}


def solid_masks() -> Shapes:
    """A ball, a torus, a hollow shell and three crossing rods, each of 21 voxels a side."""
    z, y, x = torch.meshgrid(*[torch.arange(21.0) - 10] * 3, indexing="ij")
    square = z**2 + y**2 + x**2
    rods = torch.zeros(21, 21, 21, dtype=torch.bool)
    rods[8:13, 8:13, 2:19] = rods[8:13, 2:19, 8:13] = rods[2:19, 8:13, 8:13] = True
    return {
        "ball": square <= 49,
        "torus": ((y**2 + x**2).sqrt() - 6) ** 2 + z**2 <= 6,
        "shell": (square >= 16) & (square <= 64),
        "rods": rods,
    }


def blob_mask(size: int, generator: torch.Generator) -> Tensor:
    """Smoothed noise above its mean, (size, size, size): tangled parts with tunnels, some hollow.

    Args:
        size: voxels a side.
        generator: of the noise.
    """
    noise = torch.randn(size, size, size, generator=generator, dtype=torch.float64)
    return torch.from_numpy(ndimage.gaussian_filter(noise.numpy(), 1.2)) > 0


def masks_of(name: str, load: Callable[[], Mapping[str, tuple[Tensor, ...]]]) -> ShapeData:
    """The target masks of a segmentation data set's test split as shapes.

    Args:
        name: of the data set.
        load: returns its splits, whose second tensors are masks (N, 1, *size).
    """

    def shapes() -> Shapes:
        targets = load()["test"][1]
        return {f"{name}_{number}": mask[0] > 0.5 for number, mask in enumerate(targets)}

    return ShapeData(name, shapes)
