"""Compressing a trained network on calibration examples, and comparing it with the float one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.models.parts.folding import fold_batch_norm
from repro.toolbox.method import Batch, Method
from repro.toolbox.pretrained import Base
from repro.toolbox.reconstruction import Report, UnitByUnit
from repro.training.procedure import Evaluated, model_weights
from repro.training.supervised import Supervised

SOURCES = ("data", "noise", "unbalanced")
SPLITS = ("val", "test")


@dataclass
class Protocol:
    """What a network is compressed on, and how the result is compared.

    Attributes:
        base: gives the network its weights, unless the run starts from another arm.
        size: number of calibration examples, always of the training split.
        source: ``data``; ``noise`` of the same mean and deviation (for tokens: uniform ones);
            ``unbalanced``, images of the first half of the classes only.
        noise: standard deviation of the noise on images, in units of the data's deviation.
        copies: noisy copies of each image.
        eval_batches: batches that are compared; None for all.
        seed: of everything random.
    """

    base: Base
    size: int = 256
    source: str = "data"
    noise: float = 0.8
    copies: int = 4
    eval_batches: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"module.protocol.source is {', '.join(SOURCES)}; not {self.source}.")
        if self.size < 1:
            raise UserError("module.protocol.size is 1 or more.")

    def calibration(self, batches: Any, classes: int | None) -> tuple[Tensor, Tensor | None]:
        """Takes the first examples of a shuffled epoch.

        Args:
            batches: of (x, y).
            classes: number of classes, if there are classes.

        Returns:
            Inputs (N, …) and, unless they are noise, their labels or next tokens.

        Raises:
            UserError: there are too few examples.
        """
        found: list[tuple[Tensor, Tensor]] = []
        count = 0
        for x, y in batches:
            if self.source == "unbalanced":
                if classes is None:
                    raise UserError("module.protocol.source=unbalanced needs classes.")
                x, y = x[y < classes // 2], y[y < classes // 2]
            found.append((x, y))
            count += len(x)
            if count >= self.size:
                break
        if count < self.size:
            raise UserError(
                f"module.protocol.size={self.size}, but an epoch has {count} such examples."
            )
        x, y = (torch.cat(parts)[: self.size] for parts in zip(*found, strict=True))
        if self.source != "noise":
            return x, y
        generator = generator_for(self.seed, 2)
        if x.is_floating_point():
            return x.mean() + x.std() * torch.randn(x.shape, generator=generator), None
        return torch.randint(int(x.max()) + 1, x.shape, generator=generator), None


class FloatNetwork(Supervised):
    """Trains the network that other arms compress, by plain mini-batch training.

    Args:
        method: of compression; not for here.
        protocol: likewise.
        settings: see `Supervised`.
    """

    def __init__(self, method: object, protocol: Protocol, **settings: Any) -> None:
        del method, protocol  # all arms are given them
        super().__init__(method=Method(), **settings)


class Compression(Evaluated):
    """One training step compresses one unit; evaluation compares with the float network.

    Args:
        model: the network.
        protocol: what it is calibrated and compared on.
        task: ``classification`` or ``language``.

    Raises:
        UserError: another task.
    """

    METRICS: ClassVar = {
        "train/loss": "relative error of the last unit, on calibration data",
        "error/relative": "mean over units, on calibration data",
    } | {
        f"{split}/{name}": meaning
        for split in SPLITS
        for name, meaning in {
            "kl": "float || compressed, per example or token, nats; of images noisy copies, where"
            " accuracy is not saturated",
            "accuracy": "share of right examples",
            "noisy_accuracy": "likewise, of noisy copies",
            "loss": "cross-entropy per token",
            "perplexity": "its exponential",
            "float_accuracy": "of the float network",
            "float_noisy_accuracy": "of the float network",
            "float_loss": "of the float network",
            "float_perplexity": "of the float network",
        }.items()
    }

    def __init__(self, model: nn.Module, protocol: Protocol, task: str = "classification") -> None:
        super().__init__()
        if task not in ("classification", "language"):
            raise UserError(f"Classes or tokens are compared; this data set's task is {task}.")
        self.model = model
        self.protocol, self.task = protocol, task
        self.units: UnitByUnit | None = None

    def compressor(self, x: Tensor, y: Tensor | None) -> UnitByUnit:
        """What compresses `model` on calibration inputs and their targets."""
        raise NotImplementedError

    @override
    def setup(self, stage: str) -> None:
        """Before a fit: the float network, the calibration examples, and the plan of the units.

        All of it is a function of the seed, the data and where the network comes from, so that a
        resumed run finds what the killed one had; its checkpoint then brings the compressed units.
        """
        if self.units is not None:
            return
        data, device = self.data, self.trainer.strategy.root_device
        self.protocol.base(self.model, data, device)
        self.model.to(device).eval()
        fold_batch_norm(self.model)
        x, y = self.protocol.calibration(data.train_dataloader(), getattr(data, "classes", None))
        self.units = self.compressor(x.to(device), None if y is None else y.to(device))

    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the weights of an arm that trained the network with `Supervised`."""
        self.model.load_state_dict(model_weights(checkpoint))

    def on_train_epoch_start(self) -> None:
        """Keeps the network in evaluation mode."""
        self.model.eval()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compresses the next unit; the batch that comes along is not looked at."""
        assert self.units is not None
        with torch.no_grad():
            report = self.units.step(self.global_step)
        self.reported(report)
        self.tick()
        error = torch.tensor(report.error)
        self.log("train/loss", error)
        if self.global_step == self.units.steps:
            self.trainer.should_stop = True
        return {"loss": error}

    def reported(self, report: Report) -> None:
        """Keeps what is to be logged of a unit."""
        raise NotImplementedError

    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Notes how the network does, and how far it is from the float one."""
        if batch_idx >= (self.protocol.eval_batches or math.inf):
            return
        x, y = batch
        if self.task == "language":
            self._compare("kl", self.outputs(x, y), "loss")
            return
        self._compare(None, self.outputs(x, y), "accuracy")
        generator = generator_for(self.protocol.seed, SPLITS.index(self.split), batch_idx)
        for _ in range(self.protocol.copies):
            noise = torch.randn(x.shape, generator=generator).to(x)
            noisy = self.outputs(x + self.protocol.noise * noise, y)
            self._compare("kl", noisy, "noisy_accuracy")

    def outputs(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, classes) of the compressed and of the float network, and targets (N,)."""
        assert self.units is not None
        logits, reference = self.model(x), self.units.reference(x)
        return logits.flatten(0, -2), reference.flatten(0, -2), y.flatten()

    def _compare(
        self, kl: str | None, outputs: tuple[Tensor, Tensor, Tensor], measure: str
    ) -> None:
        logits, reference, target = outputs
        found: dict[str, Tensor] = {}
        for prefix, each in (("", logits), ("float_", reference)):
            found[prefix + measure] = (
                F.cross_entropy(each, target)
                if measure == "loss"
                else (each.argmax(1) == target).float().mean()
            )
        if kl is not None:
            p, q = reference.log_softmax(1), logits.log_softmax(1)
            found[kl] = F.kl_div(q, p, reduction="batchmean", log_target=True)
        self.note(found, len(target))

    def measured(self) -> dict[str, Tensor]:
        """The means, and the perplexities."""
        measured = super().measured()
        for prefix in ("", "float_"):
            if prefix + "loss" in measured:
                measured[prefix + "perplexity"] = measured[prefix + "loss"].exp()
        return measured
