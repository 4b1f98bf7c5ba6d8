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
