"""Blood vessels to be segmented: simulated trees, the DRIVE photographs, the VesSAP volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from repro.data.base.files import INSTALL, data_root, sha256_of
from repro.data.base.iterators import generator_for
from repro.data.base.modules import SPLIT_NAMES, Split, Splits, TensorData
from repro.data.images.shapes import masks_of
from repro.data.images.trees import vessel_tree
from repro.errors import UserError
from repro.knobs import Count, Natural, NonNegative, Positive, checked

CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


def _observe(
    mask: Tensor, generator: torch.Generator, contrast: float, noise: float, gaps: int
) -> Tensor:
    """A picture of a mask (N, 1, *size): blurred, with gaps, uneven light, and noise."""
    dims = mask.dim() - 2
    light = torch.randn(len(mask), 1, *[4] * dims, generator=generator)
    mode = {2: "bilinear", 3: "trilinear"}[dims]
    light = F.interpolate(light, mask.shape[2:], mode=mode, align_corners=True)
    grid = torch.stack(
        torch.meshgrid(*[torch.arange(e).float() for e in mask.shape[2:]], indexing="ij"), -1
    )
    visible = torch.ones_like(mask)
    for _ in range(gaps):
        place = torch.rand(len(mask), *[1] * dims, dims, generator=generator)
        away = (grid - place * torch.tensor(mask.shape[2:])).norm(dim=-1)
        visible = visible * (away[:, None] > 2.5)
    blur = torch.ones(1, 1, *[3] * dims) / 3**dims
    seen = CONVOLUTIONS[dims](mask * visible, blur, padding=1)
    return contrast * seen + 0.3 * light + noise * torch.randn(mask.shape, generator=generator)


@checked
def vessels(
    name: str = "vessels",
    *,
    input_shape: Sequence[int],
    train_size: Count,
    val_size: Count,
    test_size: Count,
    contrast: float = 1.0,
    noise: NonNegative = 0.5,
    gaps: Natural = 2,
    radius: Positive = 2.0,
    data_seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Simulated vessels, 2-D or 3-D: a noisy picture (N, 1, *size), and the mask to be found.

    Args:
        name: of the data set.
        input_shape: (1, H, W) or (1, D, H, W).
        train_size: pictures of the training split.
        val_size: of the validation split.
        test_size: of the test split.
        contrast: of vessels against the background.
        noise: standard deviation of what each point gets added.
        gaps: places in each picture where vessels are invisible.
        radius: of the thickest vessels, in points.
        data_seed: of all of this.
        facts: see `TensorData`.

    Raises:
        UserError: a shape of more than one channel, or sizes below one.
    """
    if len(input_shape) not in (3, 4) or input_shape[0] != 1:
        raise UserError(
            f"Data set '{name}': input_shape is [1, height, width] or [1, depth, height, width], "
            f"not {list(input_shape)}."
        )
    counts = dict(zip(SPLIT_NAMES, (train_size, val_size, test_size), strict=True))

    def load() -> Splits:
        splits = {}
        for number, (split, count) in enumerate(counts.items()):
            generator = generator_for(data_seed, number)
            trees = [vessel_tree(input_shape[1:], generator, radius=radius) for _ in range(count)]
            mask = torch.stack(trees)[:, None].float()
            splits[split] = (_observe(mask, generator, contrast, noise, gaps), mask)
        return splits

    return TensorData(name, load, input_shape=input_shape, **facts)


@checked
def drive(
    name: str = "drive",
    *,
    val_size: Count = 4,
    as_shapes: bool = False,
    root: str | None = None,
    info: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Any:
    """DRIVE: 40 photographs of retinas with their vessels drawn by hand, 584 × 565 points.

    Read as published from ``<root>/../drive``: ``training/images/21_training.tif``,
    ``training/1st_manual/21_manual1.gif``, and so on, likewise ``test``. Official split; the last
    of the training pictures are for validation.

    Args:
        name: of the data set.
        val_size: pictures for validation.
        as_shapes: hand out the test masks alone, as `repro.data.images.shapes.ShapeData`.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        info: for `repro.data.base.catalog`.
        facts: see `TensorData`.

    A `UserError` says so if pictures are missing or damaged, when its data are read.
    """
    folder = data_root(root).parent / "drive"

    def load() -> Splits:
        rest, test = _drive_split(folder / "training"), _drive_split(folder / "test")
        cut = len(rest[0]) - val_size
        if cut < 1:
            raise UserError(f"Data set '{name}': val_size={val_size} leaves nothing to train on.")
        train, val = (tuple(t[part] for t in rest) for part in (slice(cut), slice(cut, None)))
        return {"train": train, "val": val, "test": test}

    return _real(name, load, folder, "*/*/*.*", as_shapes, info, facts)


@checked
def vessap(
    name: str = "vessap",
    *,
    patch: Count = 48,
    as_shapes: bool = False,
    root: str | None = None,
    info: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Any:
    """VesSAP: light-sheet volumes of mouse-brain vessels and their masks, cut into cubes.

    Read from ``<root>/../vessap``: ``raw/<name>.nii.gz`` and the masks ``seg/<name>.nii.gz``, in
    the order of their names: the first 60 % of the volumes train, the next 20 % validate, the
    rest tests. Values are scaled to [0, 1] volume by volume. Needs nibabel.

    Args:
        name: of the data set.
        patch: voxels along each edge of a cube; what is left at the far ends is not used.
        as_shapes: hand out the test masks alone, as `repro.data.images.shapes.ShapeData`.
        root: folder of data sets, see `repro.data.base.files.data_root`.
        info: for `repro.data.base.catalog`.
        facts: see `TensorData`.

    A `UserError` says so if volumes or nibabel are missing, or too few or too small, when its data
    are read.
    """
    folder = data_root(root).parent / "vessap"

    def load() -> Splits:
        files = sorted((folder / "raw").glob("*.nii*"))
        _require(files, folder / "raw" / "*.nii.gz", "VesSAP")
        if len(files) < 3:
            raise UserError(f"{folder / 'raw'} holds {len(files)} volumes; 3 or more make splits.")
        first = int(0.6 * len(files))
        second = max(first + 1, int(0.8 * len(files)))
        parts = zip(SPLIT_NAMES, (files[:first], files[first:second], files[second:]), strict=True)
        return {split: _cubes(part, folder / "seg", patch) for split, part in parts}

    return _real(name, load, folder, "*/*.nii*", as_shapes, info, facts)


def _real(
    name: str,
    load: Any,
    folder: Path,
    pattern: str,
    as_shapes: bool,
    info: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
) -> Any:
    if as_shapes:
        return masks_of(name, load)
    return TensorData(
        name,
        load,
        source_digest=lambda: sha256_of(sorted(folder.glob(pattern)), contents=False),
        info=info,
        **facts,
    )


def _drive_split(folder: Path) -> Split:
    """Pictures (N, 3, 584, 565) in [0, 1] and their masks (N, 1, 584, 565)."""
    files = sorted((folder / "images").glob("*.tif"))
    _require(files, folder / "images" / "*.tif", "DRIVE")
    masks = [folder / "1st_manual" / f"{file.name.split('_')[0]}_manual1.gif" for file in files]
    pictures = np.stack([_picture(file, "RGB") for file in files])
    drawn = np.stack([_picture(file, "L") for file in masks])
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 255
    return x, (torch.from_numpy(drawn)[:, None] > 127).float()


def _picture(file: Path, mode: str) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(f"Reading pictures needs Pillow: {INSTALL}") from error
    try:
        return np.asarray(Image.open(file).convert(mode))
    except OSError as error:
        raise UserError(f"{file} is missing or damaged ({type(error).__name__}).") from error


def _cubes(files: Sequence[Path], masks: Path, edge: int) -> Split:
    """All whole cubes of volumes, (N, 1, edge, edge, edge), scaled to [0, 1], and their masks.

    Raises:
        UserError: a file or nibabel is missing, or there is no cube.
    """
    try:
        import nibabel
    except ImportError as error:
        raise UserError("Reading .nii volumes needs nibabel: pip install nibabel") from error
    found: list[list[Tensor]] = [[], []]
    for file in files:
        for kind, path in enumerate((file, masks / file.name)):
            try:
                volume = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
            except (OSError, nibabel.filebasedimages.ImageFileError) as error:
                raise UserError(
                    f"{path} is missing or damaged ({type(error).__name__})."
                ) from error
            if kind == 0:
                low, high = volume.min(), volume.max()
                volume = (volume - low) / max(high - low, 1e-6)
            cubes = torch.from_numpy(volume)
            for axis in range(3):
                cubes = cubes.unfold(axis, edge, edge) if cubes.shape[axis] >= edge else cubes[:0]
            found[kind].append(cubes.reshape(-1, 1, edge, edge, edge))
    x, y = (torch.cat(each) for each in found)
    if not len(x) or len(x) != len(y):
        raise UserError(
            f"{files[0].parent}: {len(x)} cubes of {edge} voxels a side in the volumes and "
            f"{len(y)} in the masks. Choose a smaller patch, or check the files."
        )
    return x, (y > 0).float()


def _require(files: Sequence[Path], pattern: Path, what: str) -> None:
    if not files:
        raise UserError(
            f"{what} is missing: no {pattern}. Put it there by hand, or point `data.root=` (or "
            "REPRO_DATA_ROOT) at the folder beside its folder."
        )


@checked
def arches(
    name: str = "arches",
    *,
    size: Annotated[int, Ge(16)],
    pairs: Count,
    thin: float = 2.0,
    thick: float = 4.0,
    roughness: float = 0.6,
    landmarks: Count = 24,
    data_seed: int = 0,
    **facts: Any,
) -> TensorData:
    """Pairs of jaw-like arches to be aligned: one drawn thin, one thick and moved affinely.

    Stands for one anatomy seen by two instruments. Each split holds other pairs:
    (fixed, moving, landmarks of fixed, the same landmarks in moving), of shapes (N, 1, size,
    size) twice and (N, landmarks, 2) twice. Landmarks lie on the centrelines, in the coordinates of
    `torch.nn.functional.grid_sample`: x before y, both in [−1, 1].

    Args:
        name: of the data set.
        size: edge of the pictures.
        pairs: how many in each split.
        thin: half the width of the fixed arch, in points.
        thick: of the moving one.
        roughness: standard deviation of the radii along the border, in points.
        landmarks: points on each centreline.
        data_seed: of all of this.
        facts: see `TensorData`.
    """

    def load() -> Splits:
        splits = {}
        for number, split in enumerate(SPLIT_NAMES):
            generator = generator_for(data_seed, number)
            splits[split] = _arch_pairs(generator, pairs, size, thin, thick, roughness, landmarks)
        return splits

    return TensorData(name, load, **facts)


def _arch_pairs(
    generator: torch.Generator,
    pairs: int,
    size: int,
    thin: float,
    thick: float,
    roughness: float,
    landmarks: int,
) -> Split:
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(pairs, generator=generator)

    along = torch.linspace(-0.15, 1.15, 200) * math.pi
    wide, high, lean = uniform(0.42, 0.58), uniform(0.5, 0.7), uniform(-0.12, 0.12)
    x = wide[:, None] * along.cos() + lean[:, None] * (2 * along).sin()
    y = 0.3 - high[:, None] * along.sin()
    curve = torch.stack([x, y], -1)
    # A process on one side only, so that no reflection fits.
    share = torch.linspace(0, 1, 60)[:, None]
    process = curve[:, 60, None] + share * torch.tensor([-0.28, 0.08])
    fixed_line = torch.cat([curve, process], 1)

    angle, shear = uniform(-0.3, 0.3), uniform(-0.12, 0.12)
    scales = torch.stack([uniform(0.85, 1.1), uniform(0.85, 1.1)], -1)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    skew = torch.eye(2).repeat(pairs, 1, 1)
    skew[:, 0, 1] = shear
    matrix = turn @ skew * scales[:, None]
    shift = torch.stack([uniform(-0.12, 0.12), uniform(-0.12, 0.12)], -1)
    moving_line = fixed_line @ matrix.mT + shift[:, None]

    chosen = torch.linspace(0, fixed_line.shape[1] - 1, landmarks).round().long()
    pictures = [
        _drawn(line, size, radius, roughness, generator)
        for line, radius in ((fixed_line, thin), (moving_line, thick))
    ]
    return (*pictures, fixed_line[:, chosen], moving_line[:, chosen])


def _drawn(
    line: Tensor, size: int, radius: float, roughness: float, generator: torch.Generator
) -> Tensor:
    """Masks (N, 1, size, size) of the points near lines (N, P, 2), with a rough border."""
    centres = (torch.arange(size) + 0.5) * 2 / size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    away = torch.cdist(torch.stack([x, y], -1).view(1, -1, 2), line).amin(-1) * size / 2
    rough = torch.randn(len(line), 1, size // 4, size // 4, generator=generator)
    rough = F.interpolate(rough, (size, size), mode="bicubic", align_corners=False)
    return (away.view(-1, 1, size, size) <= radius + roughness * rough).float()
