"""Trains a detector with an auxiliary branch, cuts the branch off, and measures what is left."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Count, Inside, NonNegative, Positive, Probability, checked
from repro.methods.yolov9 import Branch, Image, Pgi, pgi_loss
from repro.models.vision.gelan import Gelan, Predictions
from repro.toolbox.costs import multiply_accumulates
from repro.toolbox.detection import AveragePrecision, DetectionLoss, detect
from repro.toolbox.method import Batch, Method, OptimizerFactory
from repro.training.procedure import Evaluated, ScheduleFactory, refuse_methods

AP = {
    "ap": "average precision over overlaps of 0.5 to 0.95",
    "ap50": "average precision at an overlap of 0.5",
    "ap75": "average precision at an overlap of 0.75",
    "ap_small": "average precision of objects below 32 × 32 pixels",
    "ap_medium": "average precision of objects from there to 96 × 96 pixels",
    "ap_large": "average precision of larger objects",
    "fitness": "0.1 ap50 + 0.9 ap, by which the authors choose an epoch",
}


@checked
class Detection(Evaluated):
    """A detector, trained with an auxiliary branch or without, tested without.

    Args:
        model: the detector.
        method: must be the plain one.
        optimizer: called with groups of parameters, returns an optimizer.
        schedule: called with the optimizer and the number of steps, returns a scheduler.
        loss: of one group of heads.
        branch: which one, see `Pgi`; None: none.
        image: what it reads; see `Pgi`, likewise `detached` and `width`.
        detached: cuts its gradient.
        width: of a wide deep supervision.
        weight: of the auxiliary loss.
        lead: lead-head guidance.
        clip_norm: largest gradient norm.
        clip: over all parameters (``joint``, as published), or main and auxiliary ``apart``.
        times_batch: multiply the loss by the number of images in the step, all processes together.
        warmup: steps; None: none.
        warmup_bias: learning rate of biases at its start; that of others is 0.
        warmup_momentum: momentum at its start.
        average: decay of the moving average of weights that is evaluated; None: none.
        average_steps: in which that decay comes about.
        half: round first weights to half precision.
        confidence: see `detect`; likewise `overlap` and `most`.
        overlap: at which detections suppress each other.
        most: detections of an image.
        log_every: steps between rows of the training loss.
    """

    METRICS: ClassVar = {
        "train/loss": "mean loss of an image in the epoch",
        **{f"{split}/{name}": what for split in ("val", "test") for name, what in AP.items()},
        "test/parameters": "of what is deployed",
        "test/auxiliary_parameters": "of what is cut off",
        "test/products": "multiply-accumulates for a test image, deployed",
        "test/difference": "largest difference between outputs with and without the branch",
    }

    def __init__(
        self,
        model: Gelan,
        method: Method,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        loss: DetectionLoss,
        branch: Branch | None = None,
        image: Image = "own",
        detached: bool = False,
        width: Count | None = None,
        weight: NonNegative = 0.25,
        lead: bool = False,
        clip_norm: float | None = None,
        clip: Literal["joint", "apart"] = "joint",
        times_batch: bool = False,
        warmup: Count | None = None,
        warmup_bias: NonNegative = 0.1,
        warmup_momentum: NonNegative = 0.8,
        average: Inside | None = None,
        average_steps: Positive = 2000.0,
        half: bool = False,
        confidence: Probability = 0.001,
        overlap: Probability = 0.7,
        most: Count = 300,
        log_every: int = 50,
    ) -> None:
        super().__init__(optimizer, schedule, clip_norm, log_every)
        refuse_methods(method, "yolov9 trains detectors by itself; it cannot use {method}.")
        # The detector's weights are the same with and without a branch: it is built first.
        self.network: Pgi | Gelan = (
            model if branch is None else Pgi(model, branch, image, detached, width)
        )
        # A fifth to a third off a step's time.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss, self.weight, self.lead, self.clip = loss, weight, lead, clip
        self.times_batch = times_batch
        self.warmup, self.warmup_bias, self.warmup_momentum = warmup, warmup_bias, warmup_momentum
        self.decay, self.average_steps = average, average_steps
        self.limits: dict[str, Any] = {"confidence": confidence, "threshold": overlap, "most": most}
        if half:
            with torch.no_grad():
                for p in self.network.parameters():
                    p.copy_(p.half())
        self.average = None if average is None else copy.deepcopy(model).requires_grad_(False)
        self.metric = AveragePrecision()
        self.seen: Tensor | None = None  # test images, to compare outputs on

    @property
    def detector(self) -> Gelan:
        """What is deployed, before averaging."""
        return self.network.strip() if isinstance(self.network, Pgi) else self.network

    # -- Training ---------------------------------------------------------------------------------

    def groups(self) -> list[dict[str, Any]]:
        """Biases, weights of convolutions and weights of norms: only the second decay."""
        biases: list[nn.Parameter] = []
        weights: list[nn.Parameter] = []
        scales: list[nn.Parameter] = []
        for name, p in self.network.named_parameters():
            if p.requires_grad:
                (biases if name.endswith("bias") else weights if p.dim() > 1 else scales).append(p)
        return [
            {"params": biases, "weight_decay": 0.0, "is_bias": True},
            {"params": weights},
            {"params": scales, "weight_decay": 0.0},
        ]

    @override
    def configure_optimizers(self) -> Any:
        """The optimizer of the three groups, with its schedule."""
        assert self.optimizer_factory is not None
        return self.scheduled(self.optimizer_factory(self.groups()))

    @override
    def on_train_start(self) -> None:
        """Refuses a warm-up that needs a schedule.

        Raises:
            UserError: there is none.
        """
        super().on_train_start()
        if self.warmup is not None and self.lr_schedulers() is None:
            raise UserError("module.warmup rises to the rate of a schedule: choose schedule=….")

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update."""
        images, targets = batch
        optimizer: Any = self.optimizers()
        self._warm_up(optimizer, self.global_step)
        optimizer.zero_grad()
        loss = self._loss(self.network(images.float() / 255), targets)
        count = len(images) * self.trainer.world_size if self.times_batch else 1
        self.manual_backward(count * loss)
        if self.clip_norm is not None:
            for parameters in self._clipped():
                nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.tick()
        self._update_average(self.global_step)
        loss = loss.detach()
        self.note_loss(loss)
        return {"loss": loss}

    def _loss(self, found: Any, targets: Tensor) -> Tensor:
        labels_BM, objects_BM4 = targets[..., 0].long(), targets[..., 1:5]
        if isinstance(found, Predictions):
            return self.loss(found, labels_BM, objects_BM4)
        main, auxiliary = found
        return pgi_loss(self.loss, main, auxiliary, labels_BM, objects_BM4, self.weight, self.lead)

    def _clipped(self) -> list[list[nn.Parameter]]:
        """The sets of parameters whose gradients are clipped together."""
        if self.clip == "joint" or not isinstance(self.network, Pgi):
            return [list(self.network.parameters())]
        return [list(self.detector.parameters()), self.network.auxiliary()]

    def _warm_up(self, optimizer: Any, step: int) -> None:
        if self.warmup is None or step > self.warmup:
            return
        done = step / self.warmup
        scheduler: Any = self.lr_schedulers()
        for group, goal in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            start = self.warmup_bias if group.get("is_bias") else 0.0
            group["lr"] = start + done * (goal - start)
            if "momentum" in group:
                last = group.setdefault("last_momentum", group["momentum"])
                group["momentum"] = self.warmup_momentum + done * (last - self.warmup_momentum)

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Moves averages of weights and statistics; the decay grows with the steps."""
        if self.average is None or self.decay is None:
            return
        decay = self.decay * (1 - math.exp(-step / self.average_steps))
        new = self.detector.state_dict()
        for name, old in self.average.state_dict().items():
            if old.is_floating_point():
                old.lerp_(new[name], 1 - decay)
            else:
                old.copy_(new[name])

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean loss."""
        self.log("train/loss", self.running_loss.take(), sync_dist=self.trainer.world_size > 1)

    # -- Evaluation -------------------------------------------------------------------------------

    @property
    def evaluated(self) -> Gelan:
        """What is measured: the average, where there is one."""
        return self.detector if self.average is None else self.average

    def on_validation_start(self) -> None:
        """Starts anew."""
        super().on_validation_start()
        self.metric, self.seen = AveragePrecision(), None

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Notes the detections of a batch, by the main heads."""
        images, targets = batch
        images = images.float() / 255
        self.seen = images if self.seen is None else self.seen
        found = self.evaluated(images)
        detections = detect(found.boxes.float(), found.logits.float(), **self.limits)
        for each, target_M7 in zip(detections, targets, strict=True):
            label, _, crowd, area = target_M7[target_M7[:, 0] >= 0].split([1, 4, 1, 1], 1)
            boxes = target_M7[target_M7[:, 0] >= 0, 1:5]
            self.metric.add(each, boxes, label[:, 0].long(), crowd[:, 0], area[:, 0])

    @override
    def measured(self) -> dict[str, Any]:
        """Average precision over the images of all processes; on a test also what is deployed."""
        if self.trainer.world_size > 1:
            others: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(others, self.metric)
            self.metric = AveragePrecision.merged(others)
        found: dict[str, Any] = self.metric.compute()
        found["fitness"] = 0.1 * found["ap50"] + 0.9 * found["ap"]
        return found if self.split == "val" else {**found, **self._deployed()}

    def _deployed(self) -> Mapping[str, float]:
        """What the branch costs after training."""
        assert self.seen is not None
        auxiliary = self.network.auxiliary() if isinstance(self.network, Pgi) else []
        return {
            "parameters": sum(p.numel() for p in self.detector.parameters()),
            "auxiliary_parameters": sum(p.numel() for p in auxiliary),
            "products": multiply_accumulates(self.evaluated, self.seen[:1]),
            "difference": self._difference(self.seen),
        }

    @torch.no_grad()
    def _difference(self, images: Tensor) -> float:
        """Between the main outputs of the whole network and those of the detector alone."""
        if not isinstance(self.network, Pgi):
            return 0.0
        taps, pyramid = self.detector.features(images)
        self.network.branch(images, taps)
        whole = self.network.main.head(pyramid)
        alone = copy.deepcopy(self.network.strip())(images)
        return max(float((a - b).abs().max()) for a, b in zip(whole, alone, strict=True))
