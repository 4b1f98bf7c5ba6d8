"""Handwritten digits in photographed scenes: pictures of an object in a context, with a dial.

Digits come from scikit-learn, scenes from pictures that scikit-image and scikit-learn bring along.
Each class has a scene that it is found in more often than in others; how much more is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from repro.data.base.iterators import generator_for
from repro.data.base.modules import Splits, TensorData
from repro.data.images.photographs import photograph
from repro.knobs import Count, Natural, Positive, Probability, checked

SCENES = (
    "brick", "grass", "gravel", "coffee", "chelsea", "hubble_deep_field", "immunohistochemistry",
    "rocket", "retina", "astronaut", "china", "flower",
)  # fmt: skip
CLASSES = 10
SIDE = 32  # of a picture
STEP = 2  # between the photograph's pixels that are taken: a crop is twice as wide as a picture
DIGIT = 16  # height and width of a digit in a picture
TRAIN_DIGITS = 1200  # of 1797; the others are seen in test pictures only


class Composites(TensorData):
    """Pictures (3, 32, 32), uint8, of digits in scenes.

    Besides ``train``, ``val`` and ``test``, which hold pictures and digits, there is a split
    ``source`` of (picture, digit, scene), in which digit and scene have nothing to do with each
    other: networks that know one of them only are trained there.

    Args:
        strength_K: probability that class k is shown in its own scene.
        facts: see `TensorData`.
    """

    def __init__(self, strength_K: Tensor, **facts: Any) -> None:
        super().__init__(**facts)
        self.strength_K = strength_K


@checked
def digits_in_scenes(
    name: str,
    *,
    train_size: Count = 2500,
    val_size: Count = 500,
    test_size: Count = 1000,
    source_size: Natural = 3000,
    weakest: Probability = 0.1,
    strongest: Probability = 0.95,
    contrast: Positive = 0.5,
    data_seed: int = 0,
    **facts: Any,
) -> Composites:
    """Draws digits into scenes.

    Class k stands in its own scene with a probability q_k, in each of the other eleven with
    (1 - q_k) / 11. The q_k rise evenly from `weakest` to `strongest` over the classes in random
    order; at 1/12 the scene says nothing. Training and validation pictures are cut from the left
    halves of the photographs, test pictures from the right ones, and no digit is in both.

    Args:
        name: of the data set.
        train_size: pictures in that split; likewise the next three.
        val_size: cut and drawn like the training pictures.
        test_size: from the other halves, with other digits.
        source_size: where digit and scene are independent.
        weakest: least q_k.
        strongest: largest q_k.
        contrast: by how much a digit is brighter or darker than what it covers, of 0 to 1.
        data_seed: of everything random: q_k, own scenes, places, digits.
        facts: see `TensorData`.
    """
    order_K, own_K = own_scenes(data_seed)
    strength_K = torch.linspace(weakest, strongest, CLASSES)[order_K]

    def load() -> Splits:
        left, right = _halves()
        known, unknown = _digits()
        splits = {}
        sizes = {"train": train_size, "val": val_size, "test": test_size}
        for number, (split, size) in enumerate(sizes.items(), start=2):
            generator = generator_for(data_seed, number)
            sides = (right, unknown) if split == "test" else (left, known)
            y_N = torch.randint(CLASSES, (size,), generator=generator)
            scene_N = drawn_scenes(y_N, own_K, strength_K, generator)
            splits[split] = (compose(y_N, scene_N, *sides, contrast, generator), y_N)
        generator = generator_for(data_seed, 1)
        y_N = torch.randint(CLASSES, (source_size,), generator=generator)
        scene_N = torch.randint(len(SCENES), (source_size,), generator=generator)
        source = compose(y_N, scene_N, left, known, contrast, generator)
        return splits | {"source": (source, y_N, scene_N)}

    return Composites(strength_K, name=name, splits=load, **facts)


def own_scenes(seed: int) -> tuple[Tensor, Tensor]:
    """The rank of each class's strength, a permutation (10,), and its own scene, (10,)."""
    generator = generator_for(seed, 0)
    order_K = torch.randperm(CLASSES, generator=generator)
    return order_K, torch.randperm(len(SCENES), generator=generator)[:CLASSES]


def drawn_scenes(
    y_N: Tensor, own_K: Tensor, strength_K: Tensor, generator: torch.Generator
) -> Tensor:
    """Scenes (N,) for digits (N,): their own with probability q, else one of the others."""
    is_own_N = torch.rand(len(y_N), generator=generator) < strength_K[y_N]
    steps_N = torch.randint(1, len(SCENES), (len(y_N),), generator=generator)
    return torch.where(is_own_N, own_K[y_N], (own_K[y_N] + steps_N) % len(SCENES))


def compose(
    y_N: Tensor,
    scene_N: Tensor,
    scenes: Sequence[Tensor],
    digits: tuple[Tensor, Tensor],
    contrast: float,
    generator: torch.Generator,
) -> Tensor:
    """Pictures (N, 3, 32, 32), uint8.

    Args:
        y_N: digit of each.
        scene_N: number of the scene of each.
        scenes: photographs (3, H, W), uint8.
        digits: images (M, 16, 16) in [0, 1], and their labels (M,).
        contrast: see `digits_in_scenes`.
        generator: of places, of which image shows a digit, and of bright or dark.
    """
    N = len(y_N)
    place_2N = torch.rand(2, N, generator=generator)
    x_NCHW = torch.empty(N, 3, SIDE, SIDE, dtype=torch.uint8)
    steps = STEP * torch.arange(SIDE)
    for number, scene in enumerate(scenes):
        chosen = (scene_N == number).nonzero().squeeze(1)
        room = torch.tensor(scene.shape[1:])[:, None] - STEP * SIDE + 1
        top, left = (place_2N[:, chosen] * room).long()
        rows, columns = top[:, None] + steps, left[:, None] + steps
        x_NCHW[chosen] = scene[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)

    images, labels = digits
    choice_N = torch.rand(N, generator=generator)
    at_2N = torch.randint(SIDE - DIGIT + 1, (2, N), generator=generator)
    sign_N = torch.randint(2, (N,), generator=generator) * 2 - 1
    # Which of a class's images each picture shows: the choice-th of them.
    by_class, count_K = labels.argsort(stable=True), torch.bincount(labels, minlength=CLASSES)
    first_N = (count_K.cumsum(0) - count_K)[y_N]
    index_N = by_class[first_N + (choice_N * count_K[y_N]).long()]
    rows = at_2N[0, :, None, None, None] + torch.arange(DIGIT)[:, None]
    columns = at_2N[1, :, None, None, None] + torch.arange(DIGIT)
    places = torch.arange(N)[:, None, None, None], torch.arange(3)[:, None, None], rows, columns
    covered = x_NCHW[places] / 255
    colour = covered.mean((2, 3), keepdim=True) + contrast * sign_N[:, None, None, None]
    mask = images[index_N][:, None]
    shown = covered * (1 - mask) + colour.clamp(0, 1) * mask
    x_NCHW[places] = (shown * 255).round().to(torch.uint8)
    return x_NCHW


def _halves() -> tuple[list[Tensor], list[Tensor]]:
    """Left and right halves of all scenes, (3, H, W), uint8."""
    left, right = [], []
    for name in SCENES:
        image = (photograph(name) * 255).round().to(torch.uint8)
        middle = image.shape[2] // 2
        left.append(image[:, :, :middle])
        right.append(image[:, :, middle:])
    return left, right


def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Digits of training and of test pictures: images (M, 16, 16) in [0, 1] and labels (M,)."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images / 16).float().view(-1, 1, 8, 8)
    x = F.interpolate(x, (DIGIT, DIGIT), mode="bilinear", align_corners=False)[:, 0]
    order = torch.randperm(len(x), generator=generator_for(0))
    x, y = x[order], torch.from_numpy(labels)[order]
    return (x[:TRAIN_DIGITS], y[:TRAIN_DIGITS]), (x[TRAIN_DIGITS:], y[TRAIN_DIGITS:])
