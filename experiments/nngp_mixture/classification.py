"""Classifiers under shift: sparse Gaussian and t processes, and ensembles of finite networks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from repro.experiments.nngp_mixture.base import Room
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.data.base.modules import TensorData
from repro.data.base.spoilt import Spoilt
from repro.errors import UserError
from repro.knobs import Count, checked
from repro.methods.nngp_mixture import (
    NNGPKernel,
    ScalePrior,
    SparseProcess,
    heavy_tailed_readout,
)
from repro.toolbox.corruptions import shifted
from repro.toolbox.method import Batch


class Classifier(Room):
    """What both kinds share: the spoilt training set, and measures on shifted test images.

    Args:
        classes: number of classes.
        training_set: how it is spoilt.
        shifts: name: [kind, amount], see `repro.toolbox.corruptions`; None for none.
        room: see `Room`.
    """

    METRICS: ClassVar = (
        {"val/accuracy": "share of right examples", "train/loss": "of the latest step"}
        | {
            f"test/{images}{name}": meaning
            for images in ("", "shifted/", "*/")  # as they are; mean over the shifts; one shift
            for name, meaning in {
                "nll": "nats per example",
                "accuracy": "share of right examples",
                "ece": "expected calibration error, in 15 bins",
            }.items()
        }
        | {
            "test/unknown_auroc": "how well uncertainty finds the classes that were left out",
            "test/known/nll": "nats per example of the other classes",
            "test/df": "degrees of freedom of the scale's posterior",
            "test/scale_mean": "its mean",
            "test/largest_sigma": "largest initial scale of a member's last layer",
        }
    )

    def __init__(
        self,
        classes: int | None,
        training_set: Spoilt,
        shifts: Mapping[str, Sequence[Any]] | None,
        **room: Any,
    ) -> None:
        super().__init__(**room)
        if classes is None:
            raise UserError(
                "nngp_mixture: this arm classifies images; choose a data set that has classes."
            )
        self.classes, self.training_set, self.shifts = classes, training_set, dict(shifts or {})
        self.spoilt = False

    @override
    def setup(self, stage: str) -> None:
        """Spoils training and validation data, once.

        Raises:
            UserError: the data set is streamed, or not of images.
        """
        if self.spoilt:
            return
        data = self.data
        if not isinstance(data, TensorData) or data.splits["train"][0].dim() != 4:
            raise UserError("nngp_mixture: this arm takes images in memory, (N, C, H, W).")
        for number, split in enumerate(("train", "val")):
            x, y = data.splits[split]
            generator = generator_for(self.seed, number)
            data.splits[split] = self.training_set.spoil(x, y, self.classes, generator)
        self.size = len(data.splits["train"][1])
        self.spoilt = True

    @abstractmethod
    def log_probabilities(self, x: Tensor, final: bool) -> Tensor:
        """Log of the predicted class probabilities, (B, C); `final` asks for more samples."""

    def on_validation_start(self) -> None:
        """Starts collecting."""
        self.collected: dict[str, list[tuple[Tensor, Tensor]]] = {}

    on_test_start = on_validation_start

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects predictions."""
        x, y = batch
        self._collect("", self.log_probabilities(x, final=False), y)

    def on_validation_epoch_end(self) -> None:
        """Logs the likelihood and the accuracy."""
        log_p, y = self._gathered("")
        measured = {"nll": float(F.nll_loss(log_p, y))}
        self.watch(measured | {"accuracy": float((log_p.argmax(1) == y).double().mean())})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects predictions for the images as they are, and for each shift."""
        x, y = batch
        self._collect("", self.log_probabilities(x, final=True), y)
        for number, (name, (kind, amount)) in enumerate(self.shifts.items()):
            generator = generator_for(self.seed, batch_idx, number)
            seen = shifted(x, kind, amount, generator)
            self._collect(name, self.log_probabilities(seen, final=True), y)

    def on_test_epoch_end(self) -> None:
        """Logs measures of each kind of image, and their mean over the shifts."""
        values = {f"test/{name}": value for name, value in self._measures("").items()}
        each = [self._measures(name) for name in self.shifts]
        for name, measured in zip(self.shifts, each, strict=True):
            values |= {f"test/{name}/{metric}": value for metric, value in measured.items()}
        if each:
            for metric in each[0]:
                values[f"test/shifted/{metric}"] = sum(m[metric] for m in each) / len(each)
        drop = torch.tensor(list(self.training_set.drop), device=self.device)
        if len(drop):
            from torchmetrics.functional.classification import binary_auroc

            log_p, y = self._gathered("")
            unknown = torch.isin(y, drop)
            values["test/unknown_auroc"] = float(
                binary_auroc(1 - log_p.exp().amax(1), unknown.long())
            )
            values["test/known/nll"] = float(F.nll_loss(log_p[~unknown], y[~unknown]))
        self.log_dict(values)

    def _collect(self, name: str, log_p: Tensor, y: Tensor) -> None:
        self.collected.setdefault(name, []).append((log_p, y))

    def _gathered(self, name: str) -> tuple[Tensor, Tensor]:
        log_p, y = map(torch.cat, zip(*self.collected[name], strict=True))
        return log_p, y

    def _measures(self, name: str) -> dict[str, float]:
        from torchmetrics.functional.classification import multiclass_calibration_error

        log_p, y = self._gathered(name)
        ece = multiclass_calibration_error(log_p.exp(), y, self.classes, n_bins=15)
        return {
            "nll": float(F.nll_loss(log_p, y)),
            "accuracy": float((log_p.argmax(1) == y).double().mean()),
            "ece": float(ece),
        }


class SparseClassifier(Classifier):
    """SVGP (``alpha`` null) and SVTP: see `repro.methods.nngp_mixture.SparseProcess`.

    Args:
        kernel: its starting point.
        input_shape: of one image.
        inducing: number of inducing inputs, the first training images of each class.
        alpha: shape of the prior of σ_v², or None for the NNGP, whose σ_v is trained instead.
        beta: its scale.
        jitter: added to the kernel matrix of the inducing inputs.
        samples: draws in training.
        val_samples: draws in validation.
        test_samples: draws at test.
        sampling: shared | official_iid.
        options: see `Classifier`.
    """

    @checked
    def __init__(
        self,
        kernel: NNGPKernel,
        input_shape: Sequence[int],
        inducing: Count,
        alpha: float | None,
        beta: float,
        jitter: float,
        samples: Count,
        val_samples: Count,
        test_samples: Count,
        sampling: Any = "shared",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.samples, self.val_samples, self.test_samples = samples, val_samples, test_samples
        kernel.raw_last.requires_grad_(alpha is None)
        places = torch.zeros(inducing, *input_shape)
        self.process = SparseProcess(kernel, places, self.classes, alpha, beta, jitter, sampling)

    def setup(self, stage: str) -> None:
        """Takes the first training images of each class as inducing inputs.

        Raises:
            UserError: there are too few training images.
        """
        first = not self.spoilt
        super().setup(stage)
        if first and stage == "fit":
            x, y = next(iter(self.whole("train").values()))
            # Sorted by how many of the class came before: class-balanced, first images first.
            chosen = torch.argsort(_rank_in_class(y) * self.classes + y)[
                : len(self.process.inducing)
            ]
            if len(chosen) < len(self.process.inducing):
                raise UserError(
                    f"nngp_mixture: {len(self.process.inducing)} inducing inputs, but only"
                    f" {len(chosen)} training images."
                )
            with torch.no_grad():
                self.process.inducing.copy_(self._prepare(x[chosen]))

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step on the evidence lower bound."""
        x, y = batch
        loss = -self.process.elbo(x.double(), y, self.size, self.samples)
        self.descend(loss)
        self.log("train/loss", loss.detach())
        return {"loss": loss.detach()}

    def log_probabilities(self, x: Tensor, final: bool) -> Tensor:
        """Log of the mean over draws of the latent functions."""
        count = self.test_samples if final else self.val_samples
        generator = torch.Generator(self.device).manual_seed(self.seed)
        return self.process.log_predictive(x.double(), count, generator)

    def on_test_epoch_end(self) -> None:
        """Adds the posterior of the scale."""
        super().on_test_epoch_end()
        if self.process.alpha is not None:
            a, b = self.process.scale_posterior()
            self.log_dict({"test/df": float(2 * a), "test/scale_mean": float(b / a)})

    def _prepare(self, x: Tensor) -> Tensor:
        """Normalises stored bytes as the loaders do."""
        data = self.data
        return x if data.normalise is None else data.normalise(x)


class NetworkEnsemble(Classifier):
    """Convolutional networks trained side by side, their logits averaged.

    Args:
        input_shape: of one image.
        members: how many.
        channels: of every convolution.
        depth: convolutions.
        prior: of the variance of each member's last layer at its birth; None for the usual one.
        options: see `Classifier`.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[int],
        members: Count,
        channels: Count,
        depth: Count,
        prior: ScalePrior | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        networks = [plain_cnn(input_shape, self.classes, channels, depth) for _ in range(members)]
        self.members = nn.ModuleList(networks)
        self.sigmas = torch.ones(members)
        if prior is not None:
            for number, member in enumerate(networks):
                generator = generator_for(self.seed, number)
                self.sigmas[number] = heavy_tailed_readout(
                    cast(nn.Linear, member[-1]), prior, generator
                )

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step of every member, on its own loss."""
        x, y = batch
        loss = torch.stack([F.cross_entropy(member(x), y) for member in self.members]).sum()
        self.descend(loss)
        self.log("train/loss", loss.detach() / len(self.members))
        return {"loss": loss.detach()}

    @override
    def log_probabilities(self, x: Tensor, final: bool) -> Tensor:
        """Those of the mean of the members' logits."""
        logits = torch.stack([member(x) for member in self.members])
        return torch.log_softmax(logits.mean(0).double(), 1)

    def on_test_epoch_end(self) -> None:
        """Adds how far apart the members' last layers began."""
        super().on_test_epoch_end()
        self.log("test/largest_sigma", float(self.sigmas.max()))


def plain_cnn(input_shape: Sequence[int], classes: int, channels: int, depth: int) -> nn.Sequential:
    """Convolutions of 3 × 3 with ReLU, then one linear layer on all positions; no pooling."""
    before, height, width = input_shape
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
        before = channels
    last = nn.Linear(channels * height * width, classes)
    nn.init.normal_(last.weight, std=1 / math.sqrt(last.in_features))
    return nn.Sequential(*layers, nn.Flatten(), last)


def _rank_in_class(y: Tensor) -> Tensor:
    """How many examples of its own class stand before each, (N,)."""
    rank = torch.zeros_like(y)
    for label in y.unique():
        mine = (y == label).nonzero()[:, 0]
        rank[mine] = torch.arange(len(mine), device=y.device)
    return rank
