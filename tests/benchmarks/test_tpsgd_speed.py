"""What a step costs when no gradient goes down: against autograd, and hooks on its graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timing import faster
from torch import Tensor, nn
from torch.nn import functional as F

from repro.methods.tpsgd import Backprop, FeedbackAlignment, TargetProjection
from repro.models import MLP
from repro.models.vision.vgg import VGG
from repro.toolbox.costs import SavedForBackward

LABELS = torch.arange(100) % 10
Step = Callable[[], object]


def perceptron(depth: int = 8, width: int = 1024) -> nn.Module:
    return MLP([784], 10, [width] * depth, "tanh")


def published_cnn() -> nn.Module:
    """DRTP's network for MNIST."""
    return VGG([1, 28, 28], 10, [[32]], kernel=5, hidden=[1000], activation="tanh")


def step_of(method: Backprop, model: nn.Module, x: Tensor) -> Step:
    method.attach(model)

    def step() -> None:
        model.zero_grad()
        method.backward(None, (x, LABELS), Tensor.backward)  # type: ignore[arg-type]

    return step


def autograd(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(x), LABELS).backward()


def hooked(model: nn.Module, x: Tensor, tables: dict[int, Tensor]) -> None:
    """DRTP as it was published: autograd's graph of the whole network, gradients replaced in it."""
    model.zero_grad()
    for number, unit in enumerate(model.chain().units):  # type: ignore[operator]
        x = unit(x)
        table = tables.setdefault(number, torch.randn(10, *x.shape[1:]))
        x.register_hook(lambda _, table=table: table[LABELS] / len(LABELS))
    F.cross_entropy(model.chain().head(x), LABELS).backward()  # type: ignore[operator]


def test_a_perceptron_against_backpropagation() -> None:
    x = torch.randn(100, 784)
    local = step_of(TargetProjection(), perceptron(), x)
    faster("8 layers of 1024, l2, against backpropagation", local, partial(autograd, perceptron(), x), 1.1)  # noqa: E501  # fmt: skip


def test_the_published_network_against_hooks() -> None:
    x = torch.randn(100, 1, 28, 28)
    local = step_of(TargetProjection("drtp"), published_cnn(), x)
    faster("DRTP's network, against hooks", local, partial(hooked, published_cnn(), x, {}), 1.0)


def test_feedback_alignment_costs_what_backpropagation_does() -> None:
    x = torch.randn(100, 784)
    fa = step_of(FeedbackAlignment(), perceptron(), x)
    faster("feedback alignment, against backpropagation", fa, partial(autograd, perceptron(), x), 0.8)  # noqa: E501  # fmt: skip


def test_what_is_kept_against_hooks() -> None:
    """Bytes, which no other load of the machine changes: three activations, whatever the depth."""
    x = torch.randn(100, 784)
    kept: dict[int, list[float]] = {}
    for depth in (2, 32):
        model = perceptron(depth, 256)
        kept[depth] = []
        for step in (step_of(TargetProjection("drtp"), model, x), partial(hooked, model, x, {})):
            step()
            with SavedForBackward([*model.parameters(), x]) as saved:
                step()
            kept[depth].append(saved.peak / 1024)
        ours, theirs = kept[depth]
        print(f"\n{depth} layers of 256: {ours:.0f} KB kept, with hooks {theirs:.0f} KB")
    assert kept[32][0] == kept[2][0]
    assert 10 * kept[32][0] < kept[32][1]
