"""The tasks as published: an embedding of words and noise for a class, with Stable Diffusion."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from repro.experiments.adjoint_dpm.tasks import Audit, Inversion
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.knobs import Count, Natural, Positive, checked
from repro.methods.adjoint_dpm import Pulled
from repro.toolbox.diffusion import Predictor
from repro.toolbox.pretrained import Base

CUTOUTS = 6  # key of the random cutouts
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels


class PromptInversion(Inversion):
    """Finds the embedding of a style: the prompt's tokens stay, those behind them are optimised.

    Args:
        prompt: that is kept.
        effect: what is appended to it in the target.
        **kwargs: see `Inversion`.
    """

    def __init__(self, *, prompt: str, effect: str, **kwargs: Any) -> None:
        super().__init__(hidden=(0,), **kwargs)
        self.prompt, self.effect = prompt, effect

    @override
    def start(self) -> Tensor:
        """The prompt, and behind it the tokens of an empty one."""
        return self._kept(self.model.embed("").to(self.device)).clone()

    @override
    def truth(self) -> Tensor:
        """The prompt with the effect."""
        embedded: Tensor = self.model.embed(self.prompt + self.effect).to(self.device)
        return embedded

    @override
    def found(self) -> Tensor:
        return self._kept(self.condition)

    @override
    def images(self, x_0: Tensor) -> Tensor:
        """Decoded, cut to [0, 1] as published: what is saturated has no gradient."""
        image: Tensor = self.model.decode(x_0)
        return image.clamp(0, 1)

    def _kept(self, condition_KLE: Tensor) -> Tensor:
        n = self.model.length(self.prompt)
        prompt = self.model.embed(self.prompt).to(condition_KLE)
        return torch.cat([prompt[:, :n], condition_KLE[:, n:]], 1)


class Vocabulary(Audit):
    """Moves noises until a classifier sees a class that the prompt alone does not bring about.

    Args:
        prompt: of all samples.
        target: the class.
        base: gives the classifier its weights.
        weight: of the loss.
        cutouts: random squares of the image that the classifier sees.
        power: of a uniform number, from which a cutout's side follows.
        view: side of what the classifier sees.
        **kwargs: see `Audit`.
    """

    METRICS: ClassVar = {
        "test/target_share": "images in which the classifier sees the class, in the end",
        "test/target_share_before": "the same before",
        "test/target_loss": "its cross-entropy in the end",
        "test/target_loss_before": "the same before",
    }

    @checked
    def __init__(
        self,
        *,
        prompt: str,
        target: Natural,
        base: Base,
        weight: Positive = 0.05,
        cutouts: Count = 16,
        power: Positive = 0.3,
        view: Count = 224,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt, self.target, self.base, self.weight = prompt, target, base, weight
        self.cutouts, self.power, self.view = cutouts, power, view

    @override
    def setup(self, stage: str) -> None:
        """Loads the classifier, and draws the noises."""
        super().setup(stage)
        self.base(self.classifier, self.data, self.device)

    @override
    def predictor(self) -> Predictor:
        condition = self.model.embed(self.prompt).to(self.device)
        return lambda x, time_B: self.model(x, time_B, condition.expand(len(x), -1, -1))

    @override
    def objective(self, x_0: Tensor) -> Tensor:
        """Cross-entropy of the class, on random cutouts."""
        draws = generator_for(self.seed, CUTOUTS, self.global_step)
        image = self.model.decode(x_0)
        side = min(image.shape[2:])
        least = min(side, self.view)
        views = []
        for _ in range(self.cutouts):
            share, *corner = torch.rand(3, generator=draws).tolist()
            size = int(share**self.power * (side - least) + least)
            top, start = (int(at * (side - size + 1)) for at in corner)
            views.append(self._seen(image[:, :, top : top + size, start : start + size]))
        logits = torch.cat(views)
        wanted = torch.full((len(logits),), self.target, device=logits.device)
        return self.weight * F.cross_entropy(logits, wanted)

    @override
    def apply_gradients(self, found: Pulled) -> None:
        self.x_T.grad = found.at_noise

    @override
    def measures(self, split: str) -> dict[str, float]:
        if split == "val":
            return {}
        found: dict[str, float] = {}
        self.pictures = []
        noises = {"_before": self.drawn("train", len(self.x_T)), "": self.x_T.detach()}
        for when, x_T in noises.items():
            image = self.model.decode(self.sampling.draw(self.predictor(), x_T, self.way))
            logits = self._seen(image)
            wanted = torch.full((len(logits),), self.target, device=logits.device)
            found[f"target_loss{when}"] = float(F.cross_entropy(logits, wanted))
            found[f"target_share{when}"] = float((logits.argmax(1) == self.target).float().mean())
            self.pictures.append(image)
        return found

    def _seen(self, image: Tensor) -> Tensor:
        """Logits of images, made as large as the classifier wants them and normalised."""
        mean, std = (torch.tensor(each).to(image)[:, None, None] for each in (MEAN, STD))
        small = F.interpolate(image, (self.view, self.view), mode="bilinear", antialias=True)
        logits: Tensor = self.classifier((small - mean) / std)
        return logits
