"""What needs no training: sizes of the published networks, and what random layers keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class _Measured(Procedure):
    """Measures something once, in the first step.

    Args:
        model: not used; the paper's networks are built here.
        method: must be the plain one.
    """

    KEPT: ClassVar = ("found",)

    def __init__(self, model: nn.Module, method: Method) -> None:
        super().__init__()
        refuse_methods(method, "Nothing is trained here, so {method} has nothing to change.")
        self.model = model
        self.found: dict[str, float] = {}

    def measure(self) -> Mapping[str, float]:
        """What is measured, by name."""
        raise NotImplementedError

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The first step measures."""
        self.found = self.found or dict(self.measure())
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
class Audit(_Measured):
    """Counts the published networks: a part of the paper's tables that is arithmetic.

    Args:
        model: see `_Measured`; likewise `method`.
        method: must be the plain one.
        sizes: of the networks.
        classes: K.
        image_size: edge of the image, of which operations are counted.
    """

    METRICS: ClassVar = {
        "test/parameters_*": "of the deployed network, in millions",
        "test/unfolded_*": "likewise before batch norms are folded, in millions",
        "test/training_*": "likewise with the auxiliary branch, in millions",
        "test/gflops_*": "operations of the deployed network, 1e9, a product being two",
    }

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        sizes: Sequence[Size] = ("t", "s", "m", "c", "e"),
        classes: Count = 80,
        image_size: Count = 640,
    ) -> None:
        super().__init__(model, method)
        self.sizes, self.classes, self.image_size = sizes, classes, image_size

    def measure(self) -> Mapping[str, float]:
        """Counts without allocating weights."""
        found = {}
        with torch.device("meta"):
            image = torch.empty(1, 3, self.image_size, self.image_size)
            for size in self.sizes:
                whole = Pgi(gelan(size, self.classes), BRANCHES[size])
                found[f"training_{size}"] = _millions(whole)
                main = whole.strip()
                found[f"unfolded_{size}"] = _millions(main)
                main.eval().fold()
                found[f"parameters_{size}"] = _millions(main)
                found[f"gflops_{size}"] = 2 * multiply_accumulates(main, image) / 1e9
        return found


def _millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


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


@checked
class Retention(_Measured):
    """How much of an image layers of random weights keep (figure 2 of the paper, as a number).

    Args:
        model: see `_Measured`; likewise `method`.
        method: must be the plain one.
        kinds: of layers, see `stack`.
        depths: at which features are looked at, multiples of 12.
        channels: of them.
        images: of the training split.
        penalty: of the ridge regression, on standardised features.
        seed: of the weights.
    """

    METRICS: ClassVar = {
        "test/r2_*": "R² of colours by depth and kind of layers, on held-out images",
        "test/null_*": "likewise against the colours of another image",
    }

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        kinds: Sequence[Kind] = ("plain", "resnet", "csp", "gelan"),
        depths: Sequence[Count] = (12, 24, 48, 96),
        channels: Count = 32,
        images: Count = 24,
        penalty: Positive = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(model, method)
        self.kinds, self.depths, self.channels = kinds, depths, channels
        self.images, self.penalty, self.seed = images, penalty, seed

    @torch.no_grad()
    def measure(self) -> Mapping[str, float]:
        """Every kind of layers, at every depth, on the same images."""
        images = self._images()
        found = {}
        for number, kind in enumerate(self.kinds):
            with torch.random.fork_rng():
                torch.manual_seed(int(generator_for(self.seed, number).initial_seed() % 2**32))
                layers = stack(kind, self.channels, max(self.depths))
                x = Conv(3, self.channels, 3)(images)
            block = max(self.depths) // len(layers)
            for done, layer in enumerate(layers, start=1):
                x = layer(x)  # batch norms use the statistics of the batch
                if done * block in self.depths:
                    for name, other in (("r2", False), ("null", True)):
                        kept = colours_kept(x, images, self.penalty, other)
                        found[f"{name}_{kind}_{done * block}"] = kept
        return found

    def _images(self) -> Tensor:
        """The first training images (B, 3, H, W) in [0, 1]."""
        batches: list[Any] = []
        for batch, _ in self.data.train_dataloader():
            batches.append(batch.float() / 255)
            if sum(map(len, batches)) >= self.images:
                break
        return torch.cat(batches)[: self.images]
