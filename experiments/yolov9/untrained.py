"""What needs no training: sizes of the published networks, and what random layers keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.knobs import Count, Positive, checked
from repro.methods.yolov9 import Branch, Pgi
from repro.models.vision.gelan import gelan
from repro.models.vision.gelan.blocks import Conv, Elan, RepCSP
from repro.toolbox.costs import multiply_accumulates
from repro.toolbox.method import Batch, Method
from repro.training.procedure import Procedure, refuse_methods

Size = Literal["t", "s", "m", "c", "e"]
BRANCHES: dict[str, Branch] = {"t": "fpn", "s": "fpn", "m": "icn", "c": "icn", "e": "fpn"}
Kind = Literal["plain", "resnet", "csp", "gelan"]


class Measured(Procedure):
    """Measures something once, in the first step.

    Args:
        model: not used; the paper's networks are built where they are measured.
        method: must be the plain one.
        measure: takes the run's data, and returns what is measured, by name.
    """

    METRICS: ClassVar = {
        "test/parameters_*": "of the published network, deployed, in millions",
        "test/unfolded_*": "likewise before batch norms are folded",
        "test/training_*": "likewise with the auxiliary branch",
        "test/gflops_*": "operations of the deployed network, 1e9, a product being two",
        "test/r2_*": "R² of colours by kind of layers and depth, on held-out images",
        "test/null_*": "likewise against the colours of another image",
    }
    KEPT: ClassVar = ("found",)

    def __init__(
        self, model: nn.Module, method: Method, measure: Callable[[Any], Mapping[str, float]]
    ) -> None:
        super().__init__()
        refuse_methods(method, "Nothing is trained here, so {method} has nothing to change.")
        self.model, self.measure = model, measure
        self.found: dict[str, float] = {}

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The first step measures."""
        self.found = self.found or dict(self.measure(self.data))
        self.tick()
        return {"loss": torch.zeros(())}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """There is nothing to choose."""

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """All was measured."""

    def on_test_epoch_end(self) -> None:
        """Logs it."""
        self.log_dict({f"test/{name}": value for name, value in self.found.items()})


@checked
def audit(
    data: Any,  # noqa: ARG001 - the published networks are counted without any
    sizes: Sequence[Size] = ("t", "s", "m", "c", "e"),
    classes: Count = 80,
    image_size: Count = 640,
) -> Mapping[str, float]:
    """Counts the published networks, without allocating weights.

    Args:
        data: not used.
        sizes: of the networks.
        classes: K.
        image_size: edge of the image, of which operations are counted.
    """
    found = {}
    with torch.device("meta"):
        image = torch.empty(1, 3, image_size, image_size)
        for size in sizes:
            whole = Pgi(gelan(size, classes), BRANCHES[size])
            found[f"training_{size}"] = _millions(whole)
            main = whole.strip()
            found[f"unfolded_{size}"] = _millions(main)
            main.eval().fold()
            found[f"parameters_{size}"] = _millions(main)
            found[f"gflops_{size}"] = 2 * multiply_accumulates(main, image) / 1e9
    return found


def _millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


@checked
@torch.no_grad()
def retention(
    data: Any,
    kinds: Sequence[Kind] = ("plain", "resnet", "csp", "gelan"),
    depths: Sequence[Count] = (12, 24, 48, 96),
    channels: Count = 32,
    images: Count = 24,
    penalty: Positive = 1.0,
    seed: int = 0,
) -> Mapping[str, float]:
    """How much of an image layers of random weights keep (figure 2 of the paper, as a number).

    Args:
        data: of scenes, of which the first for training are looked at.
        kinds: of layers, see `stack`.
        depths: at which features are looked at, multiples of 12.
        channels: of them.
        images: half of them to fit a probe, half to test it.
        penalty: of its ridge regression.
        seed: of the weights.
    """
    images_B3HW = first_images(data, images)
    found = {}
    for number, kind in enumerate(kinds):
        with torch.random.fork_rng():
            torch.manual_seed(int(generator_for(seed, number).initial_seed() % 2**32))
            layers = stack(kind, channels, max(depths))
            x = Conv(3, channels, 3)(images_B3HW)
        block = max(depths) // len(layers)
        for depth, layer in enumerate(layers, start=1):
            x = layer(x)  # batch norms use the statistics of the batch
            if depth * block in depths:
                for name, other in (("r2", False), ("null", True)):
                    kept = colours_kept(x, images_B3HW, penalty, other)
                    found[f"{name}_{kind}_{depth * block}"] = kept
    return found


def first_images(data: Any, count: int) -> Tensor:
    """So many training images (B, 3, H, W) in [0, 1]."""
    batches: list[Tensor] = []
    for batch, _ in data.train_dataloader():
        batches.append(batch.float() / 255)
        if sum(map(len, batches)) >= count:
            break
    return torch.cat(batches)[:count]


def stack(kind: Kind, channels: int, depth: int) -> list[nn.Module]:
    """Blocks without halving, all of as many layers on their longest path.

    Args:
        kind: ``plain`` convolutions, residual blocks, CSP or GELAN blocks.
        channels: throughout.
        depth: layers on the longest path.
    """
    build, layers = {
        "plain": (lambda: Conv(channels, channels, 3), 1),
        "resnet": (lambda: Residual(channels), 2),
        "csp": (lambda: RepCSP(channels, channels, 1, 0.03), 4),
        "gelan": (lambda: Elan(channels, channels, channels, channels // 2, 1), 12),
    }[kind]
    return [build() for _ in range(depth // layers)]


class Residual(nn.Module):
    """Two convolutions beside the identity, and an activation of the sum (He et al., 2015).

    Args:
        channels: throughout.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Conv(channels, channels, 3)
        self.second = Conv(channels, channels, 3, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return nn.functional.silu(x + self.second(self.first(x)))


def colours_kept(features: Tensor, images: Tensor, penalty: float, other: bool = False) -> float:
    """R² of a ridge regression from a point's features to its colour, on held-out images.

    Args:
        features: (B, C, H, W); the first half of the images is fitted, the rest is tested.
        images: (B, 3, H, W).
        penalty: of the ridge.
        other: test against the colours of another image (null).
    """
    half = len(images) // 2
    x, y = (t.movedim(1, -1).flatten(1, 2) for t in (features, images))
    probe = Ridge(penalty).fit(x[:half].flatten(0, 1), y[:half].flatten(0, 1))
    goal = y[half:].roll(1, 0) if other else y[half:]
    return float(probe.score(x[half:].flatten(0, 1), goal.flatten(0, 1)))
