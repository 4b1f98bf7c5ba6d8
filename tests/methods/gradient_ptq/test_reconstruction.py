"""Reconstruction as a whole: optimality, order of units, what flows, and deliberate mistakes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.methods.gradient_ptq import (
    Activations,
    Mixed,
    PostTrainingQuantization,
    Recipe,
)
from repro.models import PlainCNN, VisionTransformer
from repro.toolbox.reconstruction import (
    Unit,
    capture,
    output_gradients,
    units_of,
    variables,
    weight_layers,
)
from repro.toolbox.reconstruction.variables import Free, RoundSigmoid

QUICK: dict[str, Any] = {"iterations": 20, "lr": 1e-2, "batch_size": 16}


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return PlainCNN([1, 8, 8], 10, widths=[4, 4, 6, 6], hidden=8).eval()


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer([1, 8, 8], 10, patch=4, width=8, depth=2, heads=2).eval()


def pictures(n: int = 32) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def quantised(model: nn.Module, x: Tensor, **settings: object) -> PostTrainingQuantization:
    ptq = PostTrainingQuantization(copy.deepcopy(model), Recipe(**{**QUICK, **settings}), x)
    for _ in ptq:
        pass
    return ptq


def correlated(outputs: int = 1) -> tuple[nn.Linear, Tensor]:
    """A linear layer of ten inputs that are strongly correlated."""
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(10, 3, generator=generator)
    x = torch.randn(512, 3, generator=generator) @ mix.T
    layer = nn.Linear(10, outputs)
    layer.weight.data = torch.randn(outputs, 10, generator=generator)
    return layer, x + 0.1 * torch.randn(512, 10, generator=generator)


def quadratic(layer: nn.Module, weight: Tensor, x: Tensor) -> float:
    """Σ_rows (w - ŵ)ᵀ E[xxᵀ] (w - ŵ)."""
    delta = (layer.weight - weight).detach()
    return float((delta @ (x.T @ x / len(x)) * delta).sum())


def test_learned_rounding_comes_near_the_best_of_all() -> None:
    """All 2^10 ways to round each of sixteen rows up or down are enumerated."""
    generator = torch.Generator().manual_seed(5)
    covariance = 0.5 * torch.ones(10, 10) + 0.5 * torch.eye(10)
    x = torch.randn(512, 10, generator=generator) @ torch.linalg.cholesky(covariance).T
    layer = nn.Linear(10, 16)
    layer.weight.data = torch.randn(16, 10, generator=generator)
    ptq = quantised(
        nn.Sequential(layer), x, bits=4, iterations=1000, batch_size=64, regularisation=0.1
    )
    grid = ptq.grid("0")
    ups = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)))
    down = grid.position(layer.weight.detach()).floor()
    delta = grid.weight(grid.clip(down + ups[:, None])) - layer.weight.detach()
    best = float((delta @ (x.T @ x / len(x)) * delta).sum(-1).min(0).values.sum())
    ours = quadratic(layer, ptq.model[0].weight, x)
    assert best * (1 - 1e-5) <= ours <= 1.05 * best
    assert ours < 0.75 * quadratic(layer, grid.nearest(layer.weight), x)


def test_white_inputs_leave_nothing_to_gain() -> None:
    layer, _ = correlated(4)
    x = torch.linalg.qr(torch.randn(512, 10, generator=torch.Generator().manual_seed(1)))[0] * 22.6
    for settings in ({"variable": "free"}, {"variable": "round_sigmoid"}, {"rounding": "hessian"}):
        ptq = quantised(nn.Sequential(layer), x, bits=3, **settings)
        nearest = quadratic(layer, ptq.grid("0").nearest(layer.weight), x)
        assert quadratic(layer, ptq.model[0].weight, x) >= nearest * (1 - 1e-5)


@pytest.mark.parametrize("model", [small_cnn(), small_vit()])
@pytest.mark.parametrize(
    "settings",
    [
        {"rounding": "nearest"}, {"rounding": "hessian"}, {}, {"unit": "block"},
        {"variable": "free", "learn_scale": True, "learn_bias": True},
        {"quantizer": "power", "variable": "free"},
        {"unit": "block", "activations": Activations(8, together=True, keep=0.5)},
        {"unit": "block", "activations": Activations(8, iterations=5)},
    ],
)  # fmt: skip
def test_eight_bits_are_almost_the_float_network(model: nn.Module, settings: dict) -> None:
    x = pictures()
    ptq = quantised(model, x, bits=8, per_channel=True, **settings)
    p, q = model(x).log_softmax(1), ptq.model(x).log_softmax(1)
    assert float((p.exp() * (p - q)).sum(1).mean()) < 1e-3
    assert all(len(w.unique()) <= 256 for w in ptq.model.get_submodule(ptq.layers[0]).weight)


def test_sixteen_bits_give_the_float_outputs() -> None:
    ptq = quantised(small_cnn(), pictures(), bits=16, rounding="nearest")
    torch.testing.assert_close(ptq.model(pictures()), small_cnn()(pictures()), rtol=1e-3, atol=1e-3)


def test_weights_end_on_their_grids() -> None:
    ptq = quantised(small_cnn(), pictures(), bits=2, per_channel=False, symmetric=True)
    for layer in ptq.layers:
        assert len(ptq.model.get_submodule(layer).weight.unique()) <= 4


def test_units_and_their_order() -> None:
    cnn, vit = small_cnn(), small_vit()
    layers = weight_layers(cnn, pictures(1))
    assert layers == ["stages.0.0", "stages.0.2", "stages.1.0", "stages.1.2", "head.1", "head.3"]
    blocks = units_of(cnn, layers, "block")
    assert [unit.name for unit in blocks] == ["stages.0", "stages.1", "head.1", "head.3"]
    assert blocks[0] == Unit("stages.0", ["stages.0.0", "stages.0.2"])
    assert blocks[0].inside("stages.0.2") == "2"
    assert weight_layers(cnn, pictures(1), ["head.*"]) == layers[:4]
    tokens = units_of(vit, weight_layers(vit, pictures(1)), "block")
    assert [u.name for u in tokens] == ["patch_embed.proj", "blocks.0", "blocks.1", "head"]
    with pytest.raises(UserError, match=r"method\.unit=layer"):
        units_of(nn.Linear(2, 2), [""], "block")


def test_reconstruction_sees_the_quantised_prefix_and_the_float_target() -> None:
    model, x = small_cnn(), pictures()
    ptq = PostTrainingQuantization(copy.deepcopy(model), Recipe(bits=2, **QUICK), x)
    ptq.step(0)
    x_hat, flow = ptq.flows(ptq.units[1])
    prefix = ptq.model.stages[0]
    torch.testing.assert_close(x_hat, prefix[1](prefix[0](x)))
    float_input = model.stages[0][1](model.stages[0][0](x))
    torch.testing.assert_close(flow.x, float_input)
    torch.testing.assert_close(flow.output, model.stages[0][2](float_input))
    assert (x_hat - float_input).abs().max() > 0.01


def test_a_step_needs_only_the_model_as_it_was() -> None:
    """What resuming relies on: another object, given the model half-way, does the same."""
    x = pictures()
    settings = Recipe(**QUICK, bits=2, augment="drop", subset="random",
                      activations=Activations(4, iterations=10))  # fmt: skip
    whole = PostTrainingQuantization(small_cnn(), settings, x)
    steps = len(whole.passes)
    for number in range(3):
        whole.step(number)
    state = copy.deepcopy(whole.model.state_dict())
    other = PostTrainingQuantization(small_cnn(), settings, x)
    other.model.load_state_dict(state)
    for number in range(3, steps):
        whole.step(number)
        other.step(number)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        *({"augment": how, "augment_strength": 0.2} for how in ("noise", "mixup", "drop")),
        *({"subset": how} for how in ("near_half", "important", "random")),
        *({"loss": how} for how in ("l1", "lp", "normalised", "cosine", "kl")),
        *({"loss": how} for how in ("fisher", "fisher_full")),
        *({"optimizer": how} for how in ("adamax", "rmsprop", "sign_sgd")),
        {"optimizer": "sgd", "lr": 10.0},
        {"variable": "tanh", "schedule": "cosine"},
        {"mixed": Mixed(2, 4, 3.0, unit="channel", steps=1)},
        {"edge_bits": 8, "skip": ["stages.1.0"]},
    ],
)  # fmt: skip
def test_every_factor_runs_and_moves_the_weights(settings: dict) -> None:
    x = pictures()
    ptq = quantised(small_cnn(), x, bits=3, **{"variable": "free", **settings})
    nearest = quantised(small_cnn(), x, bits=3, rounding="nearest")
    layer = ptq.layers[1]
    ours, theirs = (p.model.get_parameter(f"{layer}.weight") for p in (ptq, nearest))
    assert not torch.equal(ours, theirs)
    assert ptq.model(x).isfinite().all()


@pytest.mark.parametrize("settings", [{}, {"rounding": "hessian"}, {"loss": "fisher"}])
def test_networks_in_half_precision(settings: dict) -> None:
    model, x = small_cnn().bfloat16(), pictures().bfloat16()
    ptq = quantised(model, x, bits=3, **settings)
    layer = ptq.model.get_submodule(ptq.layers[1])
    assert layer.weight.dtype == torch.bfloat16
    assert all(len(channel.unique()) <= 8 for channel in layer.weight)


def test_mixed_precision_with_equal_ends_is_uniform_and_keeps_its_budget() -> None:
    x = pictures()
    uniform = quantised(small_cnn(), x, bits=3, symmetric=True)
    same = quantised(small_cnn(), x, symmetric=True, mixed=Mixed(low=3, high=3, budget=3.0))
    for a, b in zip(uniform.model.parameters(), same.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert same.average_bits() == uniform.average_bits()
    for order in ("importance", "reversed", "random", "magnitude"):
        mixed = Mixed(low=2, high=4, budget=3.0, order=order)
        ptq = PostTrainingQuantization(small_cnn(), Recipe(mixed=mixed, symmetric=True), x)
        assert ptq.average_bits() <= uniform.average_bits()


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"symmetric": True}, 3 + 32 * 2 / 8),
        ({"symmetric": False}, 3 + 2 * 32 * 2 / 8),
        ({"symmetric": False, "per_channel": False}, 3 + 2 * 32 / 8),
    ],
)
def test_scales_and_zero_points_are_counted(settings: dict, bits: float) -> None:
    """Of two channels of four weights at 3 bits."""
    ptq = PostTrainingQuantization(nn.Linear(4, 2), Recipe(bits=3, **settings), torch.ones(1, 4))
    assert ptq.average_bits() == bits


@pytest.mark.parametrize(
    ("unit", "budget", "expected"),
    [("layer", 3.4, {"0": 4, "1": 2}), ("channel", 3.2, {"0": [2, 4], "1": [2]})],
)
def test_bits_go_to_layers_or_channels(unit: Any, budget: float, expected: dict) -> None:
    """There is room to raise the larger layer, or one of three channels of two weights each."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[2.0, 2.0], [4.0, 4.0]])
    model[1].weight.data = torch.ones(1, 2)
    mixed = Mixed(low=2, high=4, budget=budget, order="magnitude", unit=unit)
    ptq = PostTrainingQuantization(model, Recipe(mixed=mixed), torch.ones(1, 2))
    assert {layer: torch.as_tensor(bits).tolist() for layer, bits in ptq.bits.items()} == expected


def test_the_exponent_of_power_grids_is_given_or_searched() -> None:
    """Heavy tails ask for less than one."""
    model = nn.Linear(200, 1)
    model.weight.data = torch.randn(1, 200, generator=torch.Generator().manual_seed(0)) ** 3

    def exponent(**settings: Any) -> float:
        recipe = Recipe(quantizer="power", **settings)
        return PostTrainingQuantization(model, recipe, torch.ones(1, 200)).exponent

    assert exponent(exponent=0.7) == 0.7
    assert exponent() < 1


def test_edges_have_their_own_bits() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    recipe = Recipe(bits=3, edge_bits=8, activations=Activations(4))
    ptq = PostTrainingQuantization(model, recipe, torch.ones(1, 2))
    assert ptq.bits == {"0": 8, "1": 3, "2": 8}
    assert {name: q.levels for name, q in ptq.quantizers.items()} == {"1": 15, "2": 255}


def test_importance_is_that_of_the_mean_loss_of_all_parts() -> None:
    """Of 100 examples, which come 64 at a time."""
    model, x = nn.Linear(3, 4), torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(100) % 4
    found = PostTrainingQuantization(model, Recipe(), x, targets).importance()[""]
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(model.requires_grad_()(x), targets), [model.weight]
    )
    torch.testing.assert_close(found, (model.weight * gradient).abs().detach())


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("all", None),
        ("near_half", [False, False, True, True]),
        ("important", [False, True, True, False]),
    ],
)
def test_which_weights_may_move(subset: Any, expected: list[bool] | None) -> None:
    """Half of them, or those at 1/4 to 3/4 of a step of one."""
    model = nn.Linear(4, 1)
    model.weight.data = torch.tensor([[0.0, 7.0, 2.5, 3.3]])
    recipe = Recipe(bits=3, scale_search="minmax", subset=subset)
    ptq: Any = PostTrainingQuantization(model, recipe, torch.ones(1, 4))
    ptq.importance = lambda: {"": torch.tensor([[1.0, 4.0, 3.0, 2.0]])}
    selected = ptq._selected("", torch.Generator())
    assert (selected if selected is None else selected[0].tolist()) == expected
    ptq.recipe.subset = "random"
    drawn = [ptq._selected("", torch.Generator().manual_seed(seed)) for seed in range(9)]
    assert {int(each.sum()) for each in drawn} == {2}
    assert len({tuple(each[0].tolist()) for each in drawn}) > 1


@pytest.mark.parametrize("augment", ["none", "noise", "mixup", "drop"])
def test_features_are_augmented_and_their_targets_with_them(augment: Any) -> None:
    """At a strength of 1/4; the quantised prefix is off by 10 everywhere."""
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 1), 3 * torch.randn(400, 40)
    ptq = PostTrainingQuantization(layer, Recipe(augment=augment, augment_strength=0.25), x)
    index = torch.arange(300)
    flow = capture(layer, "", x, 100, output=True)
    changed, target = ptq._augmented(ptq.units[0], x + 10, flow, index, torch.Generator())
    moved = changed - 10 - x[:300]
    assert moved.shape == (300, 40)
    if augment == "drop":
        assert set(moved.round().unique().tolist()) == {-10, 0}
        assert -moved.mean() == pytest.approx(2.5, abs=0.2)
        moved = torch.zeros(())  # the target is that of the float input
    elif augment == "noise":
        assert moved.std() == pytest.approx(3 / 4, abs=0.02)
    elif augment == "mixup":  # shares up to 1/4, of differences
        assert moved.std() == pytest.approx(3 * (2 / 48) ** 0.5, rel=0.1)
    else:
        assert moved.abs().max() < 1e-5
    torch.testing.assert_close(target, layer(x[:300] + moved), rtol=1e-3, atol=1e-4)


def test_fisher_gradients_are_those_of_the_output() -> None:
    model, x = small_cnn(), pictures(8)
    ptq = PostTrainingQuantization(copy.deepcopy(model), Recipe(), x, torch.arange(8))
    found = output_gradients(ptq.reference, "stages.1", x, ptq.task_loss, batch=3)
    middle = model.stages[0](x)
    out = model.stages[1](middle).detach().requires_grad_()
    loss = nn.functional.cross_entropy(model.head(out), torch.arange(8), reduction="sum")
    torch.testing.assert_close(found, torch.autograd.grad(loss, out)[0])


def test_fisher_gradients_behind_an_activation_are_those_of_its_output() -> None:
    """Also where the model uses one activation in all places."""
    model, x = small_cnn(), pictures(8)
    shared = nn.ReLU()
    first, second = (nn.Sequential(stage[0], shared, stage[2], shared) for stage in model.stages)
    model.stages = nn.Sequential(first, second)
    ptq = PostTrainingQuantization(copy.deepcopy(model), Recipe(), x, torch.arange(8))
    copied = ptq.reference.stages[0][1]
    name = "stages.1.0"
    found = output_gradients(ptq.reference, name, x, ptq.task_loss, batch=3, activation=copied)
    out = shared(second[0](first(x))).detach().requires_grad_()
    loss = nn.functional.cross_entropy(
        model.head(shared(second[2](out))), torch.arange(8), reduction="sum"
    )
    torch.testing.assert_close(found, torch.autograd.grad(loss, out)[0])


@pytest.mark.parametrize("loss", ["l2", "fisher"])
def test_a_layer_is_compared_behind_its_activation(loss: str) -> None:
    """Outputs that the activation sets to zero do not matter, however far they are off."""
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    ptq = PostTrainingQuantization(model, Recipe(loss=loss), x)
    first, last = ptq.units
    loss_of = ptq._loss(first, ptq._following(first))
    index = torch.arange(64)
    target = model[0](x)
    off = torch.where(target < 0, target - 5, target)
    assert float(loss_of(off, target, index)) == 0.0
    assert float(loss_of(target + 1, target, index)) > 0.0
    assert ptq._following(last) is None
    before = PostTrainingQuantization(model, Recipe(loss=loss, include_activation=False), x)
    in_front = float(before._loss(first, before._following(first))(off, target, index))
    assert (in_front > 0) == (loss == "l2")  # Fisher weights are zero there, too


def test_learned_rounding_minimises_what_the_activation_lets_pass() -> None:
    """Where the two targets differ, each way of comparing wins by its own measure."""
    torch.manual_seed(1)
    x = torch.randn(256, 6) @ torch.randn(6, 6)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].bias -= 3  # most outputs are negative

    def error(behind: bool) -> float:
        ptq = PostTrainingQuantization(
            copy.deepcopy(model),
            Recipe(bits=2, variable="free", lr=1e-2, iterations=150, include_activation=behind),
            x,
        )
        ptq.step(0)
        with torch.no_grad():
            return float((ptq.model[0](x).relu() - model[0](x).relu()).square().mean())

    assert error(True) < error(False)


def test_activation_steps_are_learned_only_when_asked() -> None:
    x = pictures()
    ptq = PostTrainingQuantization(
        small_vit(), Recipe(**QUICK, unit="block", activations=Activations(4, iterations=10)), x
    )
    for number in range(len(ptq.units)):
        ptq.step(number)
        assert not any(q.is_ready for q in ptq.quantizers.values())
    ptq.step(len(ptq.units) + 1)
    ready = {name for name, q in ptq.quantizers.items() if q.is_ready}
    assert ready == {n for n in ptq.quantizers if n.startswith("blocks.0.")}
    assert "blocks.0.attn.softmax" in ready


def test_capture_passes_what_else_a_module_takes() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, by: Tensor, *, plus: float) -> Tensor:
            return x * by + plus

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scaled = Scaled()

        def forward(self, x: Tensor) -> Tensor:
            return self.scaled(x, torch.tensor(2.0), plus=1.0)

    flow = capture(Model(), "scaled", torch.arange(5.0), batch=2, output=True)
    assert torch.equal(flow.x, torch.arange(5.0))
    assert flow.output is not None
    assert torch.equal(flow.output, 2 * torch.arange(5.0) + 1)
    assert flow.rest == (torch.tensor(2.0),)
    assert flow.named == {"plus": 1.0}


# -- Mistakes that must show: the checks above, turned against planted errors --


def gain(**settings: object) -> float:
    """Error of learned rounding over error of rounding to nearest, on correlated inputs."""
    layer, x = correlated(8)
    how = {"bits": 3, "iterations": 300, "lr": 1e-2, "batch_size": 64, **settings}
    ptq = quantised(nn.Sequential(layer), x, **how)
    nearest = quadratic(layer, ptq.grid("0").nearest(layer.weight), x)
    return quadratic(layer, ptq.model[0].weight, x) / nearest


def test_forgetting_the_straight_through_estimator_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gain(variable="free") < 0.7
    monkeypatch.setattr(
        Free, "soft", lambda self: self.grid.weight(self.grid.clip(self.moved.round()))
    )
    assert gain(variable="free") == pytest.approx(1)


def test_skipping_the_clip_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables.Grid, "clip", lambda self, position: position)
    ptq = quantised(small_cnn(), pictures(), bits=2, per_channel=False, symmetric=True)
    assert any(len(ptq.model.get_submodule(k).weight.unique()) > 4 for k in ptq.layers)


def test_hardening_ends_the_optimisation() -> None:
    """The weight in the model is the hard one, whatever happens to α afterwards."""
    w = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    grid = variables.Grid(torch.tensor(0.4), torch.tensor(-8.0), torch.tensor(7.0))
    variable = RoundSigmoid(w, grid)
    hard = variable.hard()
    variable.moved.data += 3
    assert torch.equal(hard, grid.nearest(w))
    assert not hard.requires_grad
