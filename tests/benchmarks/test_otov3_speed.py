"""What a step with penalties costs beside the optimizer's own, and what finding the groups does."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import torch
from timing import faster, seconds
from torch import Tensor, nn
from torch.nn import functional as F

from repro.methods.otov3 import SparseTraining
from repro.models.vision.resnet_imagenet import ResNetImageNet
from repro.toolbox.costs import PeakMemory
from repro.toolbox.dependency_graph import remove, trace

X, Y = torch.randn(64, 3, 32, 32), torch.arange(64) % 10


def network() -> nn.Module:
    return ResNetImageNet([3, 32, 32], 10, depth=18, small_images=True)


def updates(model: nn.Module, method: SparseTraining | None) -> Callable[[], None]:
    """Updates by gradients that are there already."""
    sgd = torch.optim.SGD(model.parameters(), lr=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if method is not None:
        method.attach(model)
        sgd = method.optimizer(model, lambda groups: torch.optim.SGD(groups, lr=1e-6))  # type: ignore[assignment]
        method.find(X[:2])

    def update() -> None:
        if method is not None:
            method.before_step(model)
        sgd.step()
        if method is not None:
            method.after_step(model)

    return update


def by_hand(model: nn.Module) -> Callable[[], None]:
    """A penalty group by group, as one would write it first: rows of each tensor, concatenated."""
    groups = [group for group in trace(model, X[:2]).prunable if group.exact]
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():  # a copy has none
        parameter.grad = torch.randn_like(parameter)

    @torch.no_grad()
    def update() -> None:
        for group in groups:
            rows, gradients = [], []
            for member in group.owned:
                weight = parameters[member.name]
                assert weight.grad is not None
                places = member.indices.flatten()
                rows.append(weight[places].reshape(group.size, -1))
                gradients.append(weight.grad[places].reshape(group.size, -1))
            x, g = torch.cat(rows, 1), torch.cat(gradients, 1)
            trial = x - 1e-6 * (g + x / x.norm(dim=1, keepdim=True))
            assert ((trial * x).sum(1) > 0).all()
            start = 0
            for member, part in zip(group.owned, rows, strict=True):
                weight, width = parameters[member.name], part.shape[1]
                new = trial[:, start : start + width].reshape(-1, *weight.shape[1:])
                weight[member.indices.flatten()] = new
                start += width

    return update


def test_a_step_against_one_group_by_group() -> None:
    model = network()
    ours = updates(model, SparseTraining(start=0, candidates="all"))
    faster("penalties of ResNet-18, against rows side by side", ours, by_hand(copy.deepcopy(model)), 0.8)  # noqa: E501  # fmt: skip


def test_a_step_beside_the_pass_that_it_follows() -> None:
    model = network()
    ours = updates(model, SparseTraining(start=0, candidates="all"))

    def passes() -> None:
        F.cross_entropy(model(X), Y).backward()

    faster("penalties of ResNet-18, against a pass forth and back", ours, passes, 5.0)


def test_memory_of_a_step() -> None:
    """Bytes, which no other load of the machine changes: in copies of the parameters."""
    model = network()
    update = updates(model, SparseTraining(start=0, candidates="all"))
    size = sum(p.numel() for p in model.parameters()) * 4
    update()
    with PeakMemory(torch.device("cpu")) as memory:
        update()
    print(f"\nadded by a step of ResNet-18: {memory.peak / size:.2f} copies of its parameters")
    assert memory.peak < 4 * size


def test_the_groups_of_resnet50_are_found_in_two_seconds() -> None:
    model = ResNetImageNet([3, 224, 224], 1000, depth=50)
    x = torch.zeros(1, 3, 224, 224)
    gc.freeze()  # the collector need not walk through what the tests themselves hold
    best = min(seconds(lambda: trace(model, x)) for _ in range(3))
    print(f"\ngroups of ResNet-50: {best:.2f} s")
    assert best < 2


def test_the_smaller_network_is_faster() -> None:
    model = network().eval()
    graph = trace(model, X[:1])
    kept = {group: range(max(1, group.size * 3 // 10)) for group in graph.prunable}
    smaller = remove(model, kept, graph)

    def run(each: nn.Module, x: Tensor) -> Callable[[], object]:
        return lambda: each(x)

    with torch.no_grad():
        for size in (1, 64):
            faster(f"30 % of ResNet-18's channels, batch {size}", run(smaller, X[:size]), run(model, X[:size]), 2.0)  # noqa: E501  # fmt: skip
