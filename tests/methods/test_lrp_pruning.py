"""Pruning by relevance and its rivals: scores by other ways, removal that changes nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.lrp_pruning import (
    Activation,
    Criterion,
    FilterPruning,
    Gradient,
    Random,
    Relevance,
    Taylor,
    Weight,
    normalised,
    overlap,
    scoring_cost,
    silence,
    units_of,
    without_lowest,
)
from repro.models import MLP, VGG, ResNetCIFAR
from repro.models.toys.dropout_mlp import DropoutMLP
from repro.toolbox.dependency_graph import trace
from repro.toolbox.lrp import Epsilon, explained, one_hot, relevance, z_plus

ZPLUS = Relevance(conv=z_plus(), linear=z_plus())
NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: DropoutMLP([1, 8, 8], 3, hidden=[12, 10, 8]),
    "vgg": lambda: VGG([1, 8, 8], 3, [[4, 6], [6]], batch_norm=True),
    "resnet": lambda: ResNetCIFAR([1, 8, 8], 3, depth=8, width=4),
}
CRITERIA: dict[str, Criterion] = {
    "relevance": ZPLUS,
    "weight": Weight(),
    "gradient": Gradient(),
    "taylor": Taylor(),
    "taylor inside": Taylor(absolute_inside=True),
    "activation": Activation(),
}


@pytest.fixture(autouse=True)
def _alike() -> None:
    torch.manual_seed(0)


def references(count: int = 10) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 1, 8, 8), torch.arange(count) % 3


def tuned(model: nn.Module, after: Callable[[nn.Module], None] = lambda _: None) -> nn.Module:
    """After some updates."""
    x, y = references(24)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05, momentum=0.9)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after(model)
    return model.eval()


def layers_of(model: nn.Module) -> list[str]:
    return [each.layer for each in units_of(model)]


# -- Scores ----------------------------------------------------------------------------------------


def by_gates(model: nn.Module, x: Tensor, y: Tensor, additive: bool) -> dict[str, Tensor]:
    """The loss's derivative by a number that each unit's outputs are multiplied by, or raised by.

    By the chain rule it is the sum of z dL/dz, or of dL/dz, over examples and positions.
    """
    network = explained(model)
    gates: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for name in layers_of(model):
        layer = network.get_submodule(name)
        units = len(layer.get_parameter("weight"))
        gates[name] = torch.full((units,), float(not additive), requires_grad=True)

        def gate(_module: nn.Module, _inputs: Any, z: Tensor, name: str = name) -> Tensor:
            g = gates[name].view(-1, *[1] * (z.ndim - 2))
            sizes[name] = math.prod(z.shape[2:])
            return z + g if additive else z * g

        layer.register_forward_hook(gate)
    found = torch.autograd.grad(F.cross_entropy(network(x), y), list(gates.values()))
    return {k: g.abs() / sizes[k] for k, g in zip(gates, found, strict=True)}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("criterion", [Gradient(), Taylor()], ids=["gradient", "taylor"])
def test_gradient_and_taylor_are_derivatives_by_gates(net: str, criterion: Criterion) -> None:
    model, (x, y) = tuned(NETS[net]()), references()
    found = criterion(explained(model), layers_of(model), [(x, y)])
    for name, expected in by_gates(model, x, y, isinstance(criterion, Gradient)).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)


def test_taylor_cancels_between_examples_unless_told_not_to() -> None:
    model = tuned(NETS["mlp"]())
    x, y = references()
    inside = Taylor(absolute_inside=True)(explained(model), layers_of(model), [(x, y)])
    outside = Taylor()(explained(model), layers_of(model), [(x, y)])
    alone = [Taylor()(explained(model), layers_of(model), [(x[i : i + 1], y[i : i + 1])])
             for i in range(len(y))]  # fmt: skip
    for name, score in inside.items():
        torch.testing.assert_close(score, torch.stack([s[name] for s in alone]).mean(0))
        assert (score >= outside[name] - 1e-7).all()
        assert float(score.sum()) > 1.2 * float(outside[name].sum())


def test_weights_are_summed_without_biases_and_with_batch_norm() -> None:
    conv, norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1))
        norm.weight.copy_(torch.tensor([4.0, 1.0]))
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)).eval()
    scores = Weight()(explained(model), ["0"], [])
    torch.testing.assert_close(scores["0"], torch.tensor([4.0, 2.0]), rtol=1e-4, atol=0)


def test_activations_are_mean_outputs_above_zero() -> None:
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(2, 2))
    x = torch.tensor([[3.0], [1.0], [-2.0], [0.0]])
    scores = Activation()(explained(model), ["0"], [(x, torch.zeros(4).long())])
    torch.testing.assert_close(scores["0"], torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("net", NETS)
def test_relevance_sums_over_references_and_positions(net: str) -> None:
    model, (x, y) = tuned(NETS[net]()), references()
    R = relevance(model, x, {nn.Conv2d: z_plus(), nn.Linear: z_plus()}, one_hot(y))
    network, layers = explained(model), layers_of(model)
    plain = ZPLUS(network, layers, [(x, y)])
    absolute = Relevance(z_plus(), z_plus(), absolute=True)(network, layers, [(x, y)])
    for name in layers:
        by_unit = R[name].transpose(0, 1).flatten(1)
        torch.testing.assert_close(plain[name], by_unit.sum(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(absolute[name], by_unit.abs().sum(1), rtol=1e-4, atol=1e-5)


def test_relevance_is_that_of_the_true_class() -> None:
    model, (x, y) = tuned(NETS["mlp"]()), references()
    wrong = model(x).argmin(1)
    network, layers = explained(model), layers_of(model)
    of_logits = Relevance(Epsilon(), Epsilon(), start="true_logit")
    epsilon = Relevance(Epsilon(), Epsilon())
    for labels in (y, wrong):
        found = epsilon(network, layers, [(x, labels)])
        expected = relevance(model, x, {nn.Linear: Epsilon()}, one_hot(labels))
        torch.testing.assert_close(found["1"], expected["1"].sum(0))
    assert not torch.allclose(found["1"], epsilon(network, layers, [(x, y)])["1"])
    logit = model(x)[:1, y[0]].detach()
    one = epsilon(network, layers, [(x[:1], y[:1])])["1"]
    scaled = of_logits(network, layers, [(x[:1], y[:1])])["1"]
    torch.testing.assert_close(scaled, one * logit, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CRITERIA)
def test_batches_of_any_sizes_score_as_one(name: str) -> None:
    model, (x, y) = tuned(NETS["vgg"]()), references()
    network, layers, criterion = explained(model), layers_of(model), CRITERIA[name]
    whole = criterion(network, layers, [(x, y)])
    parts = criterion(network, layers, [(x[:7], y[:7]), (x[7:], y[7:])])
    for layer in layers:
        torch.testing.assert_close(parts[layer], whole[layer], rtol=1e-4, atol=1e-6)


def test_random_scores_follow_the_global_seed() -> None:
    network = explained(NETS["vgg"]())
    layers = layers_of(network)
    first, second = Random()(network, layers, []), Random()(network, layers, [])
    assert not torch.equal(first[layers[0]], second[layers[0]])
    torch.manual_seed(0)
    NETS["vgg"]()
    assert torch.equal(Random()(network, layers, [])[layers[0]], first[layers[0]])


def test_scoring_is_in_eval_mode_unless_dropout_is_asked_for() -> None:
    model, batch = tuned(NETS["mlp"]()).train(), references()
    quiet, noisy = FilterPruning(ZPLUS), FilterPruning(ZPLUS, dropout=True)
    for pruning in (quiet, noisy):
        pruning.begin(model)
    first, second = (quiet.scores(model, [batch])["1"] for _ in range(2))
    torch.testing.assert_close(first, second)
    first, second = (noisy.scores(model, [batch])["1"] for _ in range(2))
    assert not torch.allclose(first, second)
    assert model.training


def test_norms() -> None:
    scores = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([30.0, 10.0, 40.0])}
    assert normalised(scores, "none") is scores
    assert normalised(scores, "l1")["a"].tolist() == [0.25, 0.75]
    torch.testing.assert_close(normalised(scores, "l2")["a"], torch.tensor([1.0, 3.0]) / 10**0.5)
    torch.testing.assert_close(normalised(scores, "rank")["b"], torch.tensor([1.0, 0.0, 2.0]) / 3)


# Multiply-adds of the first layer, and of all others, for one example.
COSTS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "mlp": (lambda: MLP([1, 8, 8], 3, hidden=[20, 30]), 64 * 20, 20 * 30 + 30 * 3),
    "vgg": (NETS["vgg"], 64 * 9 * 4, 64 * 36 * 6 + 16 * 54 * 6 + 24 * 3),
}


@pytest.mark.parametrize("net", COSTS)
def test_the_cost_of_scoring_is_counted_by_hand(net: str) -> None:
    build, first, rest = COSTS[net]
    model, batch = build(), references()
    plain = (first + rest) + (first + 2 * rest)  # forward; gradients of weights and hidden outputs
    for criterion, own in (
        (ZPLUS, (first + rest) + 2 * rest),  # forward; positive parts and back, to the first layer
        (Relevance(Epsilon(), Epsilon()), (first + rest) + rest),
        (Taylor(), (first + rest) + rest),
        (Weight(), 0),
    ):
        pruning = FilterPruning(criterion)
        pruning.begin(model)
        assert scoring_cost(pruning, model, [batch]) == pytest.approx(own / plain)


# -- Removal ---------------------------------------------------------------------------------------


def test_the_units_that_may_go() -> None:
    found = units_of(NETS["vgg"]())
    assert [(each.layer, each.count, each.norm) for each in found] == [
        ("units.0.0", 4, "units.0.1"),
        ("units.1.0", 6, "units.1.1"),
        ("units.2.1", 6, "units.2.2"),
    ]
    assert [each.count for each in units_of(NETS["mlp"]())] == [12, 10, 8]
    assert len(units_of(VGG([1, 8, 8], 3, [[4]], hidden=[5]), "all")) == 2
    with pytest.raises(UserError, match=r"MLP has no filters that could go: choose method\.units"):
        units_of(MLP([4], 2, hidden=[3]), "filters")


def test_the_lowest_of_all_layers_go() -> None:
    scores = {"a": torch.tensor([5.0, 1.0, 4.0]), "b": torch.tensor([2.0, 9.0, 3.0])}
    kept = {name: torch.ones(3, dtype=torch.bool) for name in scores}
    once, guarded = without_lowest(scores, kept, 2)
    assert (once["a"].tolist(), once["b"].tolist()) == ([True, False, True], [False, True, True])
    assert guarded == 0
    twice, _ = without_lowest(scores, once, 2)
    assert twice["a"].tolist() == [True, False, False]
    assert twice["b"].tolist() == [False, True, False]
    assert kept["a"].all()
    with pytest.raises(UserError, match="1 units are to go, and only 0 may"):
        without_lowest(scores, twice, 1)
    assert without_lowest(scores, twice, 0)[0]["a"].tolist() == twice["a"].tolist()


def test_a_layer_keeps_its_best_units() -> None:
    scores = {"a": torch.tensor([1.0, 3.0, 2.0]), "b": torch.tensor([10.0, 20.0])}
    kept = {name: torch.ones(len(score), dtype=torch.bool) for name, score in scores.items()}
    left, guarded = without_lowest(scores, kept, 3)
    assert (left["a"].tolist(), left["b"].tolist()) == ([False, True, False], [False, True])
    assert guarded == 1
    swapped, guarded = without_lowest(scores, dict(reversed(kept.items())), 3)
    assert guarded == 1
    once, _ = without_lowest(scores, kept, 1)
    stepwise, _ = without_lowest(scores, once, 2)
    for name in kept:
        assert swapped[name].equal(left[name])
        assert stepwise[name].equal(left[name])
    left, guarded = without_lowest(scores, kept, 1, least=2)
    assert (left["a"].tolist(), guarded) == ([False, True, True], 0)


def test_overlap_is_the_share_that_both_removed() -> None:
    one = {"a": torch.tensor([True, False, False]), "b": torch.tensor([False, False])}
    other = {"a": torch.tensor([True, True, False]), "b": torch.tensor([False, True])}
    assert overlap(one, other) == pytest.approx(2 / 4)
    assert overlap(one, one) == 1


@pytest.mark.parametrize("net", NETS)
def test_silent_units_put_out_zeros(net: str) -> None:
    model, (x, _) = tuned(NETS[net]()), references()
    units = units_of(model)
    kept = {each.layer: torch.rand(each.count) < 0.6 for each in units}
    outputs: dict[str, Tensor] = {}
    for each in units:
        module = model.get_submodule(each.norm or each.layer)
        module.register_forward_hook(
            lambda _m, _i, z, name=each.layer: outputs.__setitem__(name, z)
        )
    before = model(x)
    silence(model, units, {each.layer: torch.ones(each.count).bool() for each in units})
    assert torch.equal(model(x), before)
    silence(model, units, kept)
    model(x)
    for name, z in outputs.items():
        assert (z.transpose(0, 1).flatten(1).abs().sum(1) > 0).tolist() == kept[name].tolist()


@pytest.mark.parametrize("criterion", [ZPLUS, Taylor()], ids=["relevance", "taylor"])
def test_a_dead_unit_scores_nothing_and_goes_first(criterion: Criterion) -> None:
    model, batch = tuned(NETS["mlp"]()), references()
    dead = model.get_submodule("4")
    with torch.no_grad():
        dead.get_parameter("weight")[3] = 0
        dead.get_parameter("bias")[3] = -1
    pruning = FilterPruning(criterion)
    pruning.begin(model)
    scores = pruning.scores(model, [batch])
    assert float(scores["4"][3]) == 0
    lowest = torch.cat(list(scores.values()))
    pruning.remove(model, scores, int((lowest <= 0).sum()))
    assert not pruning.kept["4"][3]


@pytest.mark.parametrize("name", CRITERIA)
def test_each_step_removes_as_many_and_scores_anew(name: str) -> None:
    model, batch = tuned(NETS["vgg"]()), references()
    pruning = FilterPruning(CRITERIA[name], norm="l1")
    pruning.begin(model)
    assert pruning.total == 16
    whole = model(batch[0])
    pruning.prune(model, [batch], 0)
    assert torch.equal(model(batch[0]), whole)
    for step in range(1, 4):
        before = pruning.scores(model, [batch])
        gone = {k: ~mask for k, mask in pruning.kept.items()}
        pruning.prune(model, [batch], 3)
        after = pruning.scores(model, [batch])
        assert sum(int((~mask).sum()) for mask in pruning.kept.values()) == 3 * step
        assert all((~pruning.kept[k])[gone[k]].all() for k in gone)  # none comes back
        if name != "weight":
            assert any(
                not torch.allclose(before[k][mask], after[k][mask])
                for k, mask in pruning.kept.items()
            )


@pytest.mark.parametrize("net", NETS)
def test_the_smaller_network_computes_the_same(net: str) -> None:
    """Also after fine-tuning, in which nothing that was removed comes back."""
    model, (x, y) = tuned(NETS[net]()), references()
    pruning = FilterPruning(ZPLUS)
    pruning.begin(model)
    for _ in range(3):
        pruning.prune(model, [(x, y)], pruning.total // 5)
        tuned(model, pruning.silence)
    smaller = pruning.shrunk(model, trace(model, x[:2])).eval()
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-6, atol=1e-6)
    sizes = [sum(each.numel() for each in net.parameters()) for net in (smaller, model)]
    assert sizes[0] < sizes[1]
    if net != "resnet":  # whose streams keep what any of their layers puts out
        widths = {k: len(smaller.get_parameter(f"{k}.weight")) for k in pruning.kept}
        assert widths == {k: int(mask.sum()) for k, mask in pruning.kept.items()}


def test_pruning_is_no_training() -> None:
    with pytest.raises(UserError, match="trained already: use it with paper=lrp_pruning"):
        FilterPruning(ZPLUS).attach(MLP([4], 2))
    with pytest.raises(UserError, match="norm is none, l1, l2 or rank, not 'l3'"):
        FilterPruning(ZPLUS, norm="l3")  # type: ignore[arg-type]
