"""Training students side by side on one pass over the data, and the teacher that they imitate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.knobs import Count, NonNegative, Positive, checked
from repro.methods.n2n.architecture import Architecture, build

Batch = tuple[Tensor, ...]
Epochs = Callable[[int], Iterable[Batch]]  # the batches of an epoch, by its number


@checked
@dataclass(frozen=True)
class Recipe:
    """How a network is trained, by Adam.

    Args:
        epochs: passes over the data.
        lr: of Adam.
        weight_decay: of Adam, on all parameters.
        loss: ``labels``: cross-entropy. ``logits``: distance to the teacher's, as in the released
            code. ``both``: their sum, as in the paper.
        weight: λ of ``both``; the paper gives none.
        schedule: ``constant``, or ``cosine`` down to zero.
        frozen_statistics: as released, epochs after the first train in evaluation mode: batch norm
            normalises by what it averaged in the first one.
    """

    epochs: Count = 5
    lr: Positive = 5e-4
    weight_decay: NonNegative = 5e-4
    loss: Literal["labels", "logits", "both"] = "both"
    weight: NonNegative = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    frozen_statistics: bool = False

    def of(self, logits_BC: Tensor, y_B: Tensor, z_BC: Tensor | None) -> Tensor:
        """The loss ``L_hard + λ (1/B) Σ ‖f(x) - z‖²`` of a batch, or a part of it.

        Args:
            logits_BC: f(x).
            y_B: labels.
            z_BC: the teacher's logits; None where only labels are learned.
        """
        if z_BC is None or self.loss == "labels":
            return F.cross_entropy(logits_BC, y_B)
        distance = (logits_BC - z_BC).square().sum(1).mean()
        if self.loss == "logits":
            return distance
        return F.cross_entropy(logits_BC, y_B) + self.weight * distance


def fresh(
    architecture: Architecture,
    input_shape: Sequence[int],
    seed: int,
    least_inputs: int = 1,
    uniform_gammas: bool = False,
) -> nn.Sequential:
    """A student with weights of its own, a function of its architecture and the seed.

    The global random state is left as it was.

    Args:
        architecture: of the student.
        input_shape: of one example.
        seed: of the weights.
        least_inputs: see `build`.
        uniform_gammas: draw batch norm's scales from U(0, 1), as PyTorch 0.2 did, which the paper
            used; they are 1 otherwise.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        student = build(architecture, input_shape, least_inputs)
        for module in student.modules() if uniform_gammas else ():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
    return student


def train(
    students: Sequence[nn.Module],
    epochs: Epochs,
    recipe: Recipe,
    teacher: nn.Module | None = None,
) -> None:
    """Trains students side by side: each ends as if it were trained alone.

    They share the batches and the teacher's logits, which are computed once.

    Args:
        students: networks on the device of the data; they end in evaluation mode.
        epochs: the batches (x, y) of an epoch.
        recipe: how.
        teacher: whose logits are imitated, in evaluation mode; None: labels are learned.
    """
    if not students:
        return
    parameters = [each for student in students for each in student.parameters()]
    optimizer = torch.optim.Adam(
        parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )
    imitates = teacher is not None and recipe.loss != "labels"
    for epoch in range(recipe.epochs):
        rate = 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (rate if recipe.schedule == "cosine" else 1.0)
        for student in students:
            student.train(not (recipe.frozen_statistics and epoch))
        for x, y in epochs(epoch):
            z_BC = None
            if imitates and teacher is not None:
                with torch.no_grad():
                    z_BC = teacher.eval()(x)
            losses = [recipe.of(student(x), y, z_BC) for student in students]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # nobody's gradient depends on the others
            optimizer.step()
    for student in students:
        student.eval()


@torch.no_grad()
def accuracies(models: Sequence[nn.Module], batches: Iterable[Batch]) -> list[float]:
    """The share of right predictions of each model, in evaluation mode."""
    right, count = torch.zeros(len(models)), 0
    for model in models:
        model.eval()
    for x, y in batches:
        hits = [(model(x).argmax(1) == y).sum().cpu() for model in models]
        right += torch.stack(hits) if hits else 0
        count += len(y)
    return (right / max(1, count)).tolist()
