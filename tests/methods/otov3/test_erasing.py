"""Segments that can be erased, when a network is left, and what is left of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.methods.otov3 import SegmentGraph, Segments, SparseTraining, erase
from repro.models.vision.cell_net import CellNet
from repro.toolbox.dependency_graph import trace

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def conv(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


class Branches(nn.Module):
    """Two operators and an identity into a sum, then two into a concatenation, then a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 4)
        self.a, self.b = conv(4, 4), conv(4, 4)
        self.left, self.right = conv(4, 3), conv(4, 5)
        self.norm = nn.BatchNorm2d(8)
        self.tail = conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a(x) + self.b(x)
        return self.tail(self.norm(torch.cat([self.left(x), self.right(x)], 1)))


def silenced(model: nn.Module, graph: SegmentGraph, erased: list[int]) -> nn.Module:
    """With statistics of no special value, and zeros in some segments."""
    generator = torch.Generator().manual_seed(1)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and "weight" not in name:
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    alive = torch.ones(len(graph.removable))
    alive[erased] = 0
    Segments(model, X).blocks.scale_(alive)
    return model


def test_segments_of_cells() -> None:
    graph = SegmentGraph(CellNet([1, 8, 8], 10))
    assert len(graph.removable) == 12
    assert graph.removable[0].modules == ("cells.0.candidates.0.0", "cells.0.candidates.0.1")


def test_what_feeds_more_than_sums_stays() -> None:
    graph = SegmentGraph(Branches())
    first = [segment.modules[0].partition(".")[0] for segment in graph.removable]
    assert first == ["a", "b", "left", "right"]


def test_a_chain_has_nothing_to_erase() -> None:
    with pytest.raises(UserError, match="no operators in Sequential"):
        Segments(conv(1, 2), X.float())


class Loud(nn.Module):
    """An operator that is not zero when its parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).sigmoid() + self.b(x)


def test_an_operator_that_does_not_fall_silent_stays() -> None:
    assert [each.modules for each in SegmentGraph(Loud()).removable] == [("b",)]


def test_valid_by_what_each_cell_keeps() -> None:
    graph = SegmentGraph(CellNet([1, 8, 8], 10))
    for count, share in ((8, 207 / 495), (9, 156 / 220)):
        sets = list(itertools.combinations(range(12), count))
        cut = [any(set(range(4 * c, 4 * c + 4)) <= set(each) for c in range(3)) for each in sets]
        assert [not graph.valid(each) for each in sets] == cut
        assert sum(cut) / len(cut) == pytest.approx(share)


def test_beside_an_identity_everything_can_go_and_a_concatenation_needs_one() -> None:
    graph = SegmentGraph(Branches())
    assert graph.valid([0, 1])
    assert graph.valid([0, 1, 2])
    assert not graph.valid([2, 3])
    assert not graph.valid([0, 1, 2, 3])


@pytest.mark.parametrize("erased", [[0], [1], [0, 1], [2], [3], [0, 1, 3]])
def test_what_is_left_computes_the_same(erased: list[int]) -> None:
    torch.manual_seed(0)
    model: nn.Module = Branches()
    graph = SegmentGraph(model)
    model = silenced(model, graph, erased)
    smaller = erase(model, erased, graph, trace(model, X))
    assert torch.allclose(smaller(X), model(X), atol=1e-12)
    gone = {name.partition(".")[0] for n in erased for name in graph.removable[n].modules}
    assert not gone & {name.partition(".")[0] for name, _ in smaller.named_parameters()}
    for module in smaller.modules():
        if isinstance(module, nn.Conv2d):
            assert module.in_channels == module.weight.shape[1]


def test_of_cells_too_and_it_trains() -> None:
    model: nn.Module = CellNet([1, 8, 8], 10, width=4)
    graph = SegmentGraph(model)
    model = silenced(model, graph, [0, 1, 2, 5, 8, 10])
    smaller = erase(model, [0, 1, 2, 5, 8, 10], graph)
    assert torch.allclose(smaller(X), model(X), atol=1e-12)
    smaller.train()(X).sum().backward()


def test_what_would_be_no_network_is_refused() -> None:
    model = Branches()
    with pytest.raises(UserError, match="keep one"):
        erase(model, [2, 3], SegmentGraph(model))
    with pytest.raises(UserError, match="dependency graph"):
        erase(model, [2], SegmentGraph(model))


class Branching(nn.Module):
    """A path that depends on numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_named() -> None:
    with pytest.raises(UserError, match=r"'1' cannot be traced by torch\.fx"):
        SegmentGraph(nn.Sequential(nn.Linear(3, 3), Branching()))


def test_the_check_is_cumulative_and_passes_over_what_would_cut() -> None:
    model = CellNet([1, 8, 8], 10)
    score = torch.arange(12.0, 0, -1)
    chosen = Segments(model, X.float()).redundant(score, 8)
    assert chosen.nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    unchecked = Segments(model, X.float(), checked=False).redundant(score, 8)
    assert unchecked.nonzero().flatten().tolist() == list(range(8))


@pytest.mark.parametrize("valid", [True, False])
def test_training_erases_as_many_as_asked_for(valid: bool) -> None:
    torch.manual_seed(0)
    model: Any = CellNet([1, 8, 8], 4, width=4).double()
    method = SparseTraining(0.67, start=1, penalty=5.0, epsilon=0.95, mode="erasing", valid=valid)
    method.attach(model)
    optimizer = method.optimizer(model, lambda groups: torch.optim.SGD(groups, lr=0.1))
    for epoch in range(12):
        method.start_epoch(epoch)
        optimizer.zero_grad()
        batch = (X, torch.arange(4))
        method.backward(lambda b: nn.functional.cross_entropy(model(b[0]), b[1]), batch, Tensor.backward)  # fmt: skip # noqa: E501
        method.before_step(model)
        optimizer.step()
        method.after_step(model)
    assert isinstance(method.structure, Segments)
    zero = method.structure.zero()
    assert int(zero.sum()) == 8
    if valid:
        assert method.structure.emptied(zero) == 0
        assert torch.allclose(method.extract().eval()(X), model.eval()(X), atol=1e-12)
