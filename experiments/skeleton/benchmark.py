"""What a skeletonisation does to the topology of many shapes, and what it costs."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.data.images.shapes import ShapeData
from repro.errors import UserError
from repro.methods.skeleton import (
    ClassicalSkeleton,
    LearnedSkeleton,
    Skeletonize,
    betti_errors,
    dice,
    foreign_operations,
    topology_change,
)
from repro.toolbox.method import Method
from repro.training.procedure import Procedure, model_weights

Batch = tuple[Tensor, Tensor]
KINDS = {2: "2d", 3: "3d"}


@dataclass
class SoftInput:
    """How soft masks are made and skeletonised; the keys of ``module.soft`` in the paper's config.

    Attributes:
        shapes: names of the shapes that are made soft.
        confidence: probability of a foreground point, and one minus that of a background point.
        noise: half the width of a uniform draw around it; stays on the right side of 1/2.
        passes: numbers of random skeletons whose rounded mean is compared with the true one.
        betas: scales of the binarisation's noise to compare.
        seed: of the masks and the binarisation.
    """

    shapes: list[str]
    confidence: float = 0.9
    noise: float = 0.1
    passes: tuple[int, ...] = (1, 5, 20)
    betas: tuple[float, ...] = (0.05, 0.33, 1.0)
    seed: int = 0


def skeletonizer_of(method: object) -> nn.Module | None:
    """The skeletonisation that a config's ``method`` names; None for ``method=none``.

    Raises:
        UserError: it names something else.
    """
    if type(method) is Method:
        return None
    if not isinstance(method, nn.Module):
        raise UserError(
            "paper=skeleton takes method=skeleton, skeleton/soft, skeleton/classical or none; "
            f"{type(method).__name__} changes the updates of a model instead."
        )
    return method


def skeletonizer_for_loss(method: object, share: float) -> nn.Module | None:
    """The skeletonisation of a loss whose centreline term weighs ``share``.

    Raises:
        UserError: the share lies outside [0, 1], or the method passes no gradients.
    """
    skeletonizer = skeletonizer_of(method)
    if not 0 <= share <= 1:
        raise UserError(f"skeleton: share={share}. It lies in [0, 1].")
    if isinstance(skeletonizer, ClassicalSkeleton):
        raise UserError("skeleton: a classical skeleton passes no gradient to a loss.")
    return skeletonizer


class Benchmark(Procedure):
    """Skeletonises each shape of `repro.data.images.shapes.ShapeData` once and counts what changed.

    One training step is one shape; after the last one training is over.

    Args:
        model: with ``method=none``, the network that has learnt to skeletonise.
        method: the skeletonisation.
        soft: about soft input; None leaves it out.

    Raises:
        UserError: the method is no skeletonisation.
    """

    METRICS: ClassVar = {
        "test/betti_error": "sum of the errors of all Betti numbers, mean over shapes",
        "test/wrong": "share of the shapes with an error",
        "test/usable_gradient": "share with a finite gradient that is not zero",
        "test/foreign_operations": "kinds of operations that the paper does not allow itself",
        "test/soft/*": "beta_<b>/dice_<n>: Dice with the true skeleton, of the rounded mean of n"
        " skeletons of soft input at noise scale b; betti_error_<n>: its Betti error",
    } | {
        name.format(kind=kind): meaning
        for kind in KINDS.values()
        for name, meaning in {
            "test/{kind}/betti_*_error": "error of one Betti number, mean over shapes",
            "test/{kind}/betti_error": "their sum",
            "test/{kind}/wrong": "share of the shapes with an error",
            "test/{kind}/size": "skeleton points per point of the shape",
            "test/{kind}/thick": "share of skeleton points in a full 2x2 or 2x2x2 block",
            "test/{kind}/usable_gradient": "share with a finite gradient that is not zero",
            "time/{kind}_ms": "milliseconds for one shape",
        }.items()
    }
    KEPT: ClassVar = ("rows", "soft_rows")
    data: ShapeData

    def __init__(self, model: nn.Module, method: object, soft: SoftInput | None = None) -> None:
        super().__init__()
        skeletonizer = skeletonizer_of(method)
        self.skeletonizer = LearnedSkeleton(model) if skeletonizer is None else skeletonizer
        self.soft = soft
        self.rows: list[dict[str, float]] = []
        self.soft_rows: list[dict[str, float]] = []

    @override
    def setup(self, stage: str) -> None:
        """Checks that the data are shapes.

        Raises:
            UserError: they are not.
        """
        if not isinstance(self.data, ShapeData):
            raise UserError(
                "The skeleton benchmark looks at single shapes: dataset=shapes, or "
                "dataset=drive (or vessap) with dataset.as_shapes=true."
            )
        self.names = list(self.data.shapes)

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes over a network from an arm that trained it.

        Raises:
            UserError: the skeletonisation of this arm has nothing to learn.
        """
        if not isinstance(self.skeletonizer, LearnedSkeleton):
            raise UserError("skeleton: only method=none starts from an arm that trained a network.")
        self.skeletonizer.network.load_state_dict(model_weights(checkpoint))

    def on_train_epoch_start(self) -> None:
        """Nothing here is trained: batch norm of a learned skeletonisation stays as it is."""
        self.skeletonizer.eval()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Skeletonises one shape."""
        mask, number = batch
        self.tick()
        name, dims = self.names[int(number)], mask.dim() - 2
        if int(number) + 1 == len(self.names):
            self.trainer.should_stop = True
        if dims not in getattr(self.skeletonizer, "dims", (2, 3)):
            return
        skeleton, milliseconds = self._timed(mask)
        shape, thin = (each[0, 0].cpu().numpy() for each in (mask > 0, skeleton > 0.5))
        row = {"dims": dims, "ms": milliseconds, **topology_change(shape, thin)}
        row["usable_gradient"] = float(self._has_gradient(mask))
        self.rows.append(row)
        soft = self.soft
        if soft is not None and name in soft.shapes and isinstance(self.skeletonizer, Skeletonize):
            self.soft_rows.append(self._skeletons_of_soft(mask, int(number), soft))

    def on_test_epoch_end(self) -> None:
        """Logs the means over shapes.

        Raises:
            UserError: the skeletonisation can handle none of the shapes.
        """
        if not self.rows:
            raise UserError("skeleton: none of the shapes has a dimension that the method takes.")
        means: dict[str, float] = {}
        for dims, kind in KINDS.items():
            rows = [row for row in self.rows if row["dims"] == dims]
            if rows:
                mean = _means(rows)
                means[f"time/{kind}_ms"] = mean.pop("ms")
                means |= {f"test/{kind}/{key}": v for key, v in mean.items() if key != "dims"}
        overall = _means([{key: row[key] for key in OVERALL} for row in self.rows])
        means |= {f"test/{key}": value for key, value in overall.items()}
        if self.soft_rows:
            means |= {f"test/soft/{key}": v for key, v in _means(self.soft_rows).items()}
        if isinstance(self.skeletonizer, Skeletonize):
            foreign = foreign_operations(self.skeletonizer)
            means["test/foreign_operations"] = float(len(foreign))
        self.log_dict(means)

    @torch.no_grad()
    def _timed(self, mask: Tensor) -> tuple[Tensor, float]:
        """The skeleton, and the time that the faster of two passes took."""
        times = []
        for _ in range(2):
            started = time.perf_counter()
            skeleton = self.skeletonizer(mask)
            if mask.is_cuda:
                torch.cuda.synchronize(mask.device)
            times.append(1e3 * (time.perf_counter() - started))
        return skeleton, min(times)

    def _has_gradient(self, mask: Tensor) -> bool:
        with torch.enable_grad():
            x = mask.clone().requires_grad_()
            skeleton = self.skeletonizer(x)
            if not skeleton.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(skeleton.sum(), x)
        return bool(gradient.isfinite().all() and (gradient != 0).any())

    @torch.no_grad()
    def _skeletons_of_soft(
        self, mask: Tensor, number: int, settings: SoftInput
    ) -> dict[str, float]:
        """Agreement with the true skeleton, for every beta and number of passes."""
        true = self.skeletonizer(mask)
        generator = generator_for(settings.seed, number)
        away = settings.noise * (2 * torch.rand(mask.shape, generator=generator) - 1).to(
            mask.device
        )
        right = (settings.confidence + away).clamp(0.5 + 1e-3, 1)
        soft = torch.where(mask > 0, right, 1 - right)
        thin = copy.deepcopy(self.skeletonizer)
        row: dict[str, float] = {}
        for beta in settings.betas:
            thin.beta = beta  # type: ignore[assignment]
            draws = torch.Generator(mask.device).manual_seed(settings.seed)
            many = thin(soft.expand(max(settings.passes), *soft.shape[1:]), draws)
            for passes in settings.passes:
                mean = (many[:passes].mean(0, keepdim=True) > 0.5).float()
                row[f"beta_{beta:g}/dice_{passes}"] = float(dice(mean, true, smooth=0.0))
                errors = betti_errors(*(x[0, 0].cpu().numpy() > 0.5 for x in (mask, mean)))
                row[f"beta_{beta:g}/betti_error_{passes}"] = float(sum(errors))
        return row


OVERALL = ("betti_error", "wrong", "usable_gradient")


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}
