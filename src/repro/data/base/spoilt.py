"""Classification data that are not what was expected: classes missing, labels wrong or uneven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.errors import UserError
from repro.knobs import Probability, Share, checked


@checked
@dataclass
class Spoilt:
    """How training and validation examples differ from the test split's.

    Attributes:
        drop: classes that are left out.
        label_noise: share of the labels that are drawn anew, uniformly over the classes.
        imbalance: class number c keeps this to the power of c of its examples.

    Raises:
        UserError: a share is none.
    """

    drop: Sequence[int] = ()
    label_noise: Probability = 0.0
    imbalance: Share = 1.0

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
            raise UserError("drop and imbalance leave no examples to train on.")
        if self.label_noise:
            allowed = torch.tensor([c for c in range(classes) if c not in self.drop])
            drawn = allowed[torch.randint(len(allowed), (len(y),), generator=generator)]
            again = torch.rand(len(y), generator=generator) < self.label_noise
            y = torch.where(again, drawn, y)
        return x, y
