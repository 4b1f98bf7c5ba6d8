"""Points of the plane in classes that no line separates: moons, circles, a spiral."""

from __future__ import annotations

from typing import Any, Literal

import torch
from sklearn import datasets as simulated
from torch import Tensor

from repro.data.base.iterators import generator_for
from repro.data.base.modules import Split, Splits, TensorData
from repro.knobs import Count, checked

Shape = Literal["moons", "circles", "spiral"]
CLASSES: dict[Shape, int] = {"moons": 2, "circles": 2, "spiral": 4}


def planar_points(shape: Shape, per_class: int, generator: torch.Generator) -> Split:
    """Draws points along curves at equal distances, with noise of 0.1 (spiral: of angle, 0.2).

    At one point a class a curve is its first point: of the spiral, whose arms r = t begin at the
    origin, the same for all four classes.

    Args:
        shape: ``moons``, two half circles of radius 1; ``circles`` of radius 1 and 0.3; ``spiral``,
            four arms (r sin t, r cos t), t from 4 j to 4 (j + 1).
        per_class: points of each class.
        generator: of the noise.

    Returns:
        Points (N, 2) float32 and classes (N,), class after class.
    """
    if shape == "spiral":
        r = torch.linspace(0, 1, per_class)
        arms = []
        for arm in range(CLASSES[shape]):
            t = torch.linspace(4 * arm, 4 * (arm + 1), per_class)
            t = t + 0.2 * torch.randn(per_class, generator=generator)
            arms.append(torch.stack([r * t.sin(), r * t.cos()], 1))
        return torch.cat(arms), torch.arange(len(arms)).repeat_interleave(per_class)
    settings: dict[str, Any] = {
        "n_samples": (per_class, per_class),
        "shuffle": False,
        "noise": 0.1,
        "random_state": int(torch.randint(2**31, (), generator=generator)),
    }
    if shape == "moons":
        x, y = simulated.make_moons(**settings)
    else:
        x, y = simulated.make_circles(factor=0.3, **settings)
    return torch.from_numpy(x).float(), torch.from_numpy(y)


class Planar(TensorData):
    """Points of the plane, and as many others like them as are asked for.

    Args:
        name: of the data set.
        shape: see `planar_points`.
        per_class: training points of each class.
        val_per_class: validation points of each class.
        test_size: test points in all.
        data_seed: decides all of them.
        facts: see `TensorData`.
    """

    @checked
    def __init__(
        self,
        name: str,
        *,
        shape: Shape,
        per_class: Count = 1000,
        val_per_class: Count = 250,
        test_size: Count = 500,
        data_seed: int = 0,
        **facts: Any,
    ) -> None:
        self.shape: Shape = shape

        def load() -> Splits:
            sizes = {"train": per_class, "val": val_per_class, "test": test_size // CLASSES[shape]}
            return {
                split: planar_points(shape, size, generator_for(data_seed, number))
                for number, (split, size) in enumerate(sizes.items())
            }

        super().__init__(name, load, **facts)

    def draw(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns fresh points (N, 2) and their classes (N,)."""
        x, y = planar_points(self.shape, per_class, generator)
        return x, y
