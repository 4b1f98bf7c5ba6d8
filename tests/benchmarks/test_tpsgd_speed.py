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


def test_what_is_kept_by_depth() -> None:
    """Bytes, which no other load of the machine changes, of 2 to 64 layers of 256.

    Target projection keeps three activations whatever the depth; autograd's graph grows by one or
    two a layer, whether its gradients are replaced by hooks or not.
    """
    x, depths = torch.randn(100, 784), [2, 4, 8, 16, 32, 64]
    kept: dict[str, list[float]] = {"local": [], "backpropagation": [], "hooks": []}
    for depth in depths:
        model = perceptron(depth, 256)
        steps: dict[str, Step] = {
            "local": step_of(TargetProjection("drtp"), model, x),
            "backpropagation": partial(autograd, model, x),
            "hooks": partial(hooked, model, x, {}),
        }
        for name, step in steps.items():
            step()
            with SavedForBackward([*model.parameters(), x]) as saved:
                step()
            kept[name].append(saved.peak / 1024)
        print(f"\n{depth} layers of 256, KB kept:", {k: round(v[-1]) for k, v in kept.items()})
    assert len(set(kept["local"])) == 1
    for graph in (kept["backpropagation"], kept["hooks"]):
        # So much for each of the layers between, as long as the network is.
        each = {(graph[i + 1] - graph[i]) / (depths[i + 1] - depths[i]) for i in range(5)}
        assert len(each) == 1
        assert min(each) >= 100 * 256 * 4 / 1024
    assert 20 * kept["local"][-1] < kept["backpropagation"][-1] <= kept["hooks"][-1]
