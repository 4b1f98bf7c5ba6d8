"""Networks: vessel segmentation with centreline losses, and skeletons learnt from examples."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from repro.experiments.skeleton.benchmark import skeletonizer_for_loss, skeletonizer_of
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.errors import UserError
from repro.methods.skeleton import ClassicalSkeleton, betti_errors, cldice_of, dice, overlap_loss
from repro.toolbox.method import Batch, Method
from repro.training.supervised import Supervised


class _Masks(Supervised):
    """Supervised training on (picture, mask), measured mask by mask."""

    METRICS: ClassVar = {
        f"{split}/{name}": meaning
        for split in ("val", "test")
        for name, meaning in {
            "dice": "overlap of the masks, in [0, 1]",
            "cldice": "overlap of each mask with the other's skeleton, in [0, 1]",
            "score": "mean of Dice and clDice, which hyper-parameters are chosen by",
            "betti_error": "sum of the errors of all Betti numbers",
            "betti_*_error": "error of one Betti number",
        }.items()
    }

    def __init__(self, model: nn.Module, flips: bool, **settings: Any) -> None:
        super().__init__(model, Method(), task="regression", **settings)
        self.flips = flips

    def flipped(self, batch: Batch) -> Batch:
        """The batch, mirrored along axes that are drawn at random."""
        if not self.flips:
            return batch
        axes = [axis for axis in range(2, batch[0].dim()) if torch.rand(()) < 0.5]
        return tuple(tensor.flip(axes) for tensor in batch)


class Segmentation(_Masks):
    """Trains with ``(1 − share) (1 − Dice) + share (1 − clDice)``; arms exchange the skeleton.

    Masks are predicted where the probability exceeds 1/2. Measured on them: ``dice``; ``cldice``,
    with Lee's skeletons for every arm; ``betti_0_error`` (and 1, 2); ``score``, the mean of Dice
    and clDice, which hyper-parameters are chosen by.

    Args:
        model: maps pictures to logits.
        method: the skeletonisation of the loss; ``method=none`` trains with Dice alone.
        share: weight of the centreline term, the paper's lambda.
        flips: mirror training pictures at random.
        settings: see `Supervised`.

    Raises:
        UserError: the share lies outside [0, 1], or the method cannot pass gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        method: object,
        share: float = 0.5,
        flips: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(model, flips, **settings)
        self.skeletonizer = skeletonizer_for_loss(method, share)
        self.share = share
        self.judge = ClassicalSkeleton("lee")

    def loss(self, batch: Batch) -> Tensor:
        """The mean training loss of a batch."""
        pictures, masks = self.flipped(batch)
        predicted = torch.sigmoid(self.model(pictures))
        return overlap_loss(predicted, masks, self.skeletonizer, self.share).mean()

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Notes the measures of each mask."""
        pictures, masks = batch
        predicted = (self.model(pictures) > 0).float()
        areas = dice(predicted, masks)
        lines = cldice_of(predicted, self.judge(predicted), masks, self.judge(masks))
        for found, mask, area, line in zip(predicted, masks, areas, lines, strict=True):
            errors = betti_errors(*(each[0].cpu().numpy() > 0.5 for each in (mask, found)))
            measures = {"dice": float(area), "cldice": float(line), "score": float(area + line) / 2}
            measures |= {f"betti_{k}_error": float(error) for k, error in enumerate(errors)}
            self.note({**measures, "loss": 1 - measures["score"]})


class SkeletonLearning(_Masks):
    """Trains a network to draw the skeletons of masks; the pictures of the data are not used.

    The loss is the cross-entropy of every point plus one minus Dice. Measured against the teacher:
    ``dice``, and the Betti errors against the mask.

    Args:
        model: maps masks to logits.
        method: the teacher.
        flips: mirror training masks at random.
        settings: see `Supervised`.

    Raises:
        UserError: there is no teacher.
    """

    def __init__(
        self, model: nn.Module, method: object, flips: bool = True, **settings: Any
    ) -> None:
        super().__init__(model, flips, **settings)
        teacher = skeletonizer_of(method)
        if teacher is None:
            raise UserError(
                "skeleton: learning skeletons takes a teacher: method=skeleton/classical."
            )
        self.teacher = teacher

    def loss(self, batch: Batch) -> Tensor:
        """The mean training loss of a batch."""
        (masks,) = self.flipped(batch[1:])
        target = self.teacher(masks)
        logits = self.model(masks)
        overlap = 1 - dice(torch.sigmoid(logits), target)
        return F.binary_cross_entropy_with_logits(logits, target) + overlap.mean()

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Notes the measures of each mask."""
        masks = batch[1]
        target = self.teacher(masks)
        predicted = ((self.model(masks) > 0) & (masks > 0)).float()
        agreement = dice(predicted, target)
        for found, mask, same in zip(predicted, masks, agreement, strict=True):
            errors = betti_errors(*(each[0].cpu().numpy() > 0.5 for each in (mask, found)))
            self.note(
                {"dice": float(same), "betti_error": float(sum(errors)), "loss": 1 - float(same)}
            )
