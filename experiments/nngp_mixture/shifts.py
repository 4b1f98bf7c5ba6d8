"""Pictures that a classifier was not trained on, and training sets that were spoilt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.errors import UserError, did_you_mean


def _noise(x: Tensor, size: float, generator: torch.Generator) -> Tensor:
    return x + size * torch.randn(x.shape, generator=generator).to(x)


def _impulse(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    hit = torch.rand(x.shape, generator=generator).to(x) < share
    white = torch.rand(x.shape, generator=generator).to(x) < 0.5
    return torch.where(hit, torch.where(white, x.max(), x.min()), x)


def _roll(x: Tensor, pixels: float, _generator: torch.Generator) -> Tensor:
    return x.roll(int(pixels), -1)


def _blur(x: Tensor, width: float, _generator: torch.Generator) -> Tensor:
    return F.avg_pool2d(x, int(width), stride=1, padding=int(width) // 2)


# Each changes images (N, C, H, W) by an amount; lengths are in units of the normalised pixels.
SHIFTS = {"noise": _noise, "impulse": _impulse, "roll": _roll, "blur": _blur}


def shifted(x: Tensor, name: str, amount: float, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) under a shift of a name, by an amount.

    Raises:
        UserError: there is no such shift.
    """
    if name not in SHIFTS:
        raise UserError(
            f"nngp_mixture: there is no shift '{name}'; known: {', '.join(SHIFTS)}."
            f"{did_you_mean(name, SHIFTS)}"
        )
    return SHIFTS[name](x, amount, generator)


@dataclass
class TrainingSet:
    """How training and validation examples differ from the test split's.

    Attributes:
        drop: classes that are left out.
        label_noise: share of the labels that are drawn anew, uniformly over the classes.
        imbalance: class number c keeps this to the power of c of its examples, in (0, 1].
    """

    drop: Sequence[int] = ()
    label_noise: float = 0.0
    imbalance: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_noise <= 1 or not 0 < self.imbalance <= 1:
            raise UserError(
                "nngp_mixture: label_noise lies in [0, 1] and imbalance in (0, 1]; they are"
                f" {self.label_noise} and {self.imbalance}."
            )

    def spoil(
        self, x: Tensor, y: Tensor, classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Examples (n, …) and labels (n,) that are left of (N, …) and (N,), noise included.

        Raises:
            UserError: nothing is left.
        """
        keep = ~torch.isin(y, torch.tensor(list(self.drop), dtype=y.dtype))
        if self.imbalance < 1:
            keep &= torch.rand(len(y), generator=generator) < self.imbalance ** y.double()
        x, y = x[keep], y[keep]
        if not len(y):
            raise UserError("nngp_mixture: module.training_set leaves no examples to train on.")
        if self.label_noise:
            allowed = torch.tensor([c for c in range(classes) if c not in self.drop])
            drawn = allowed[torch.randint(len(allowed), (len(y),), generator=generator)]
            again = torch.rand(len(y), generator=generator) < self.label_noise
            y = torch.where(again, drawn, y)
        return x, y
