"""What the gradients are for: adversarial noise, an embedding that was hidden, a style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from repro.experiments.adjoint_dpm.module import NOISE, scaled
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.knobs import Count, Natural, NonNegative, Probability, checked
from repro.methods.adjoint_dpm import Pulled, Sampling, Way
from repro.records.names import ARTIFACTS
from repro.toolbox.diffusion import Predictor
from repro.toolbox.method import OptimizerFactory
from repro.training.procedure import Procedure

SPLITS = {"train": 0, "val": 1, "test": 2}  # keys of noises
FLOOR = 1e-6  # of the norms of gradients, as published


class Customised(Procedure):
    """Optimises noise, condition or weights for a loss of the samples; a step is an iteration.

    Args:
        model: the noise predictor, trained by the parent arm.
        classifier: likewise.
        sampling: how samples are made.
        way: to the gradient.
        optimizer: called with what is optimised, returns an optimizer.
        seed: of all noises.
        log_every: steps between rows of the training loss.
    """

    METRICS: ClassVar = {"train/loss": "mean of the objective over all iterations"}
    model: Any  # a module with conditions

    def __init__(
        self,
        model: nn.Module,
        classifier: nn.Module,
        sampling: Sampling,
        way: Way,
        optimizer: OptimizerFactory,
        seed: Natural = 0,
        log_every: Count = 50,
    ) -> None:
        super().__init__(optimizer, log_every=log_every)
        self.model = model.requires_grad_(False)
        self.classifier = classifier.requires_grad_(False)
        self.sampling, self.way, self.seed = sampling, way, seed
        self.pictures: list[Tensor] = []  # rows of images, of the last measures

    @override
    def start_from(self, checkpoint: dict[str, Any]) -> None:
        """Takes over both networks."""
        self.load_state_dict(checkpoint["state_dict"], strict=False)

    def predictor(self) -> Predictor:
        """Of the training samples' noise."""
        raise NotImplementedError

    def noises(self) -> Tensor:
        """Of the training samples, x_T."""
        raise NotImplementedError

    def objective(self, x_0: Tensor) -> Tensor:
        """The loss of the training samples."""
        raise NotImplementedError

    def measures(self, split: str) -> dict[str, float]:
        """What has come of it, on noises of ``val`` or ``test``."""
        raise NotImplementedError

    def apply_gradients(self, found: Pulled) -> None:
        """Hands gradients to the optimizer."""
        for variable, gradient in zip(self.trained(), found.at_inputs, strict=True):
            variable.grad = gradient

    def inputs(self) -> list[nn.Parameter]:
        """What the predictor reads and is optimised."""
        return self.trained()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """One iteration; the batch counts them."""
        self.eval()  # with dropout, products with Jacobians would not fit the samples
        found = self.sampling.gradients(
            self.way, self.predictor(), self.noises(), self.objective, self.inputs(), self.seed
        )
        self.apply_gradients(found)
        self.tick()
        self.note_loss(found.loss)
        return {"loss": found.loss}

    def on_train_epoch_end(self) -> None:
        """Logs the mean of the objective."""
        self.log("train/loss", self.running_loss.take())

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: samples are made at the end."""

    def on_validation_epoch_end(self) -> None:
        """Logs what has come of it."""
        self.log_dict({f"val/{name}": value for name, value in self.measures("val").items()})

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing: samples are made at the end."""

    def on_test_epoch_end(self) -> None:
        """Logs what has come of it, and keeps pictures."""
        self.log_dict({f"test/{name}": value for name, value in self.measures("test").items()})
        folder = Path(self.trainer.default_root_dir) / ARTIFACTS
        folder.mkdir(exist_ok=True)
        np.save(folder / "samples.npy", gallery(self.pictures))

    def drawn(self, split: str, size: int) -> Tensor:
        """Noises of a split, the same in every arm."""
        shape = (size, *self.model.input_shape)
        draws = generator_for(self.seed, NOISE, SPLITS[split])
        return torch.randn(shape, generator=draws).to(self.device)

    def samples(self, x_T: Tensor, condition_BLE: Tensor) -> Tensor:
        """What becomes of noises, by the sampler of this way."""

        def predict(x: Tensor, time_B: Tensor) -> Tensor:
            noise: Tensor = self.model(x, time_B, condition_BLE)
            return noise

        return self.sampling.draw(predict, x_T, self.way)

    def labels(self, size: int) -> Tensor:
        """All classes in turn, (size,)."""
        classes = self.model.embed.table.num_embeddings
        return torch.arange(size, device=self.device) % classes


def gallery(rows: Sequence[Tensor], columns: int = 10) -> NDArray[np.float32]:
    """One grey picture of rows of images (B, C, H, W), some of each, from the first to the last.

    Samples leave the range of images in single pixels, which would take all contrast from the rest.
    """
    chosen = [row[torch.linspace(0, len(row) - 1, columns).round().long()].mean(1) for row in rows]
    picture = torch.cat([torch.cat(list(row), dim=1) for row in chosen])
    return picture.clamp(-1, 1).detach().cpu().float().numpy()


class Audit(Customised):
    """Moves noises until the classifier no longer sees the class that was asked for.

    Every iteration moves a noise by the optimizer's rate along its normalised gradient, so that
    its path is as long in every arm.

    Args:
        size: noises.
        **kwargs: see `Customised`.
    """

    METRICS: ClassVar = {
        "test/success": "share misclassified in the end, of those classified rightly before",
        "test/accuracy": "share classified rightly before",
        "test/distance": "to the nearest training image, mean of the successful",
        "test/distance_before": "the same of all before",
        "test/moved": "‖x_T - its start‖, mean",
    }

    @checked
    def __init__(self, *, size: Count = 200, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.x_T = nn.Parameter(torch.zeros(size, *self.model.input_shape))

    @override
    def setup(self, stage: str) -> None:
        """Draws the noises; a checkpoint's replace them."""
        if stage == "fit":
            self.x_T.data.copy_(self.drawn("train", len(self.x_T)))

    @override
    def noises(self) -> Tensor:
        return self.x_T

    @override
    def inputs(self) -> list[nn.Parameter]:
        return []

    @override
    def predictor(self) -> Predictor:
        condition = self.model.embed(self.labels(len(self.x_T)))
        return lambda x, time_B: self.model(x, time_B, condition)

    @override
    def objective(self, x_0: Tensor) -> Tensor:
        """Minus the cross-entropy of the classes asked for."""
        return -F.cross_entropy(self.classifier(x_0), self.labels(len(x_0)), reduction="sum")

    @override
    def apply_gradients(self, found: Pulled) -> None:
        norms = found.at_noise.flatten(1).norm(dim=1).clamp(min=FLOOR)
        self.x_T.grad = found.at_noise / norms.view(-1, *[1] * (self.x_T.ndim - 1))

    @override
    def measures(self, split: str) -> dict[str, float]:
        if split == "val":
            return {}  # nothing is chosen
        labels = self.labels(len(self.x_T))
        condition, start = self.model.embed(labels), self.drawn("train", len(labels))
        before, after = (self.samples(x_T, condition) for x_T in (start, self.x_T.detach()))
        right = self.classifier(before).argmax(1) == labels
        fooled = right & (self.classifier(after).argmax(1) != labels)
        self.pictures = [before[fooled], after[fooled]] if fooled.any() else [before, after]
        return {
            "success": float(fooled.sum() / right.sum().clamp(min=1)),
            "accuracy": float(right.float().mean()),
            "distance": self._distance(after[fooled]),
            "distance_before": self._distance(before),
            "moved": float((self.x_T.detach() - start).flatten(1).norm(dim=1).mean()),
        }

    def _distance(self, x_0: Tensor) -> float:
        if not len(x_0):
            return math.nan
        images = self.data.take("train", torch.arange(len(self.data.splits["train"][0])))[0]
        real = scaled(self.data, images).flatten(1).to(x_0)
        return float(torch.cdist(x_0.flatten(1), real).amin(1).mean())


class Inversion(Customised):
    """Finds the embedding of a class from samples that were made with it.

    Args:
        hidden: classes, each found apart from the others.
        size: noises of each, in training.
        held_out: noises of each, on which the embedding is judged.
        until: the condition enters at times above this alone; below the mean embedding does.
        **kwargs: see `Customised`.
    """

    METRICS: ClassVar = {
        f"{split}/{name}": what
        for split in ("val", "test")
        for name, what in {
            "left": "squared error on held-out noises over that at the start, geometric mean",
            "left_*": "the same of one class",
            "start": "squared error of a pixel at the start, mean over classes",
        }.items()
    }

    @checked
    def __init__(
        self,
        *,
        hidden: Sequence[Natural] = (1, 3, 7),
        size: Count = 16,
        held_out: Count = 64,
        until: Probability = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden, self.size, self.held_out, self.until = hidden, size, held_out, until
        self.condition = nn.Parameter(torch.zeros(len(hidden), *self.model.condition_shape))
        self.targets: Tensor | None = None

    @override
    def setup(self, stage: str) -> None:
        """Starts from the mean embedding; a checkpoint's replaces it."""
        if stage == "fit":
            self.condition.data.copy_(self.start())

    def start(self) -> Tensor:
        """The condition that tells nothing, once for each class."""
        blank: Tensor = self.model.embed.blank()
        return blank.detach().expand_as(self.condition).clone()

    def found(self) -> Tensor:
        """The conditions as they are now."""
        return self.condition

    def truth(self) -> Tensor:
        """The conditions that are hidden."""
        embedded: Tensor = self.model.embed(torch.tensor(self.hidden, device=self.device))
        return embedded

    def conditioned(self, condition_KLE: Tensor, size: int) -> Predictor:
        """The predictor for so many noises of each class."""
        condition = condition_KLE.repeat_interleave(size, 0)

        def predict(x: Tensor, time_B: Tensor) -> Tensor:
            enters = self.until == 0 or float(time_B[0]) > self.until
            shown = condition if enters else self.start().repeat_interleave(size, 0)
            noise: Tensor = self.model(x, time_B, shown)
            return noise

        return predict

    @override
    def noises(self) -> Tensor:
        return self.drawn("train", self.size).repeat(len(self.hidden), *[1] * self._rank)

    @override
    def predictor(self) -> Predictor:
        return self.conditioned(self.found(), self.size)

    @override
    def objective(self, x_0: Tensor) -> Tensor:
        """The squared error of a pixel, summed over classes."""
        if self.targets is None:
            truth = self.conditioned(self.truth(), self.size)
            self.targets = self.images(self.sampling.draw(truth, self.noises(), self.way))
        return (self.images(x_0) - self.targets).square().mean() * len(self.hidden)

    def images(self, x_0: Tensor) -> Tensor:
        """What samples look like."""
        return x_0

    @override
    def measures(self, split: str) -> dict[str, float]:
        x_T = self.drawn(split, self.held_out).repeat(len(self.hidden), *[1] * self._rank)
        with torch.no_grad():
            goal, start, found = (
                self.images(self.sampling.draw(self.conditioned(c, self.held_out), x_T, self.way))
                for c in (self.truth(), self.start(), self.found())
            )
        self.pictures = [goal, start, found]
        errors = _errors(goal, start, found, len(self.hidden))
        return left(dict(zip(map(str, self.hidden), errors, strict=True)))

    @property
    def _rank(self) -> int:
        return len(self.model.input_shape)


def _errors(goal: Tensor, start: Tensor, found: Tensor, classes: int) -> list[tuple[float, float]]:
    """Squared errors at the start and in the end, by class."""
    before, after = ((each - goal).square().view(classes, -1).mean(1) for each in (start, found))
    return list(zip(before.tolist(), after.tolist(), strict=True))


def left(errors: dict[str, tuple[float, float]]) -> dict[str, float]:
    """What is left of errors, given as (at the start, in the end).

    >>> left({"1": (0.2, 0.1), "7": (0.4, 0.05)})
    {'left_1': 0.5, 'left_7': 0.125, 'left': 0.25, 'start': 0.30000000000000004}
    """
    shares = {f"left_{name}": max(b, 1e-12 * a) / a for name, (a, b) in errors.items()}
    mean = math.exp(sum(map(math.log, shares.values())) / len(shares))
    return shares | {"left": mean, "start": sum(b for b, _ in errors.values()) / len(errors)}


class Style(Customised):
    """Tunes the predictor's weights until samples have the style of a reference, and their class.

    The style is the mean ink and the Gram matrix of two fixed random convolutions; the reference, a
    training image with thick strokes.

    Args:
        size: noises in training.
        held_out: noises on which the style is judged.
        content: weight of the classifier's cross-entropy of the class asked for.
        reference: index of a training image.
        **kwargs: see `Customised`.
    """

    METRICS: ClassVar = {
        f"{split}/{name}": what
        for split in ("val", "test")
        for name, what in {
            "left": "style loss on held-out noises over that before",
            "start": "style loss before",
            "accuracy": "share of the samples that the classifier sees as the class asked for",
            "accuracy_before": "the same before",
        }.items()
    }

    @checked
    def __init__(
        self,
        *,
        size: Count = 64,
        held_out: Count = 200,
        content: NonNegative = 0.1,
        reference: Natural = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model.requires_grad_(True)
        self.size, self.held_out = size, held_out
        self.content, self.reference = content, reference
        channels = self.model.input_shape[0]
        draws = generator_for(0)
        self.register_buffer("filters", torch.randn(2, channels, 3, 3, generator=draws) / 3)
        self.untouched: dict[str, tuple[float, float]] = {}

    KEPT = ("untouched",)
    filters: Tensor

    @override
    def on_train_start(self) -> None:
        """Judges the samples before."""
        super().on_train_start()
        self.eval()
        if not self.untouched:
            self.untouched = {split: self._judged(split) for split in ("val", "test")}

    @override
    def noises(self) -> Tensor:
        return self.drawn("train", self.size)

    @override
    def predictor(self) -> Predictor:
        return self._conditioned(self.size)

    @override
    def objective(self, x_0: Tensor) -> Tensor:
        """Style, and a share of content."""
        content = F.cross_entropy(self.classifier(x_0), self.labels(len(x_0)))
        return self._style_loss(x_0) + self.content * content

    @override
    def measures(self, split: str) -> dict[str, float]:
        (before, accuracy_before), (after, accuracy) = self.untouched[split], self._judged(split)
        found = {"left": after / before, "start": before}
        return found | {"accuracy": accuracy, "accuracy_before": accuracy_before}

    def _judged(self, split: str) -> tuple[float, float]:
        """Style loss, and share of the samples whose class is seen."""
        x_T = self.drawn(split, self.held_out)
        with torch.no_grad():
            x_0 = self.sampling.draw(self._conditioned(len(x_T)), x_T, self.way)
            right = self.classifier(x_0).argmax(1) == self.labels(len(x_0))
            self.pictures = [self._thickened(x_0).expand_as(x_0), x_0]
            return float(self._style_loss(x_0)), float(right.float().mean())

    def _conditioned(self, size: int) -> Predictor:
        labels = self.labels(size)
        return lambda x, time_B: self.model(x, time_B, self.model.embed(labels))

    def _style_loss(self, x_0: Tensor) -> Tensor:
        """Squared distance of the samples' styles to the reference's, mean."""
        return (self.style(x_0) - self.style(self._thickened(x_0))).square().sum(1).mean()

    def _thickened(self, x_0: Tensor) -> Tensor:
        """The reference (1, C, H, W), where the samples are."""
        image = self.data.take("train", torch.tensor([self.reference]))[0]
        return F.max_pool2d(scaled(self.data, image).to(x_0), 3, 1, 1)

    def style(self, x: Tensor) -> Tensor:
        """Ink and Gram matrix of images, (B, 5)."""
        features = F.conv2d(x, self.filters, padding=1).flatten(2)
        gram = features @ features.mT / features.shape[2]
        return torch.cat([x.flatten(1).mean(1, keepdim=True), gram.flatten(1)], 1)
