"""Grids, variables, losses, activations, allocation, the Hessian baseline: against independents."""

from __future__ import annotations

import doctest
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repro.methods.gradient_ptq as package
from repro.errors import UserError
from repro.methods.gradient_ptq import (
    ActivationQuantizer,
    Recipe,
    allocate_bits,
    hessian_rounding,
    importance,
    integer_layer,
    layer_hessian,
)
from repro.methods.gradient_ptq.activations import MOST_ENTRIES
from repro.methods.gradient_ptq.allocation import order_scores
from repro.methods.gradient_ptq.recipe import SignSGD, scheduler
from repro.toolbox.reconstruction import Grid, PowerGrid, best_exponent, fit_grid
from repro.toolbox.reconstruction.losses import LOSSES, loss_for
from repro.toolbox.reconstruction.variables import Free, Offset, RoundSigmoid, TanhOffset


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wide_grid(step: float = 0.3) -> Grid:
    """A grid that clips nothing."""
    return Grid(torch.tensor(step), torch.tensor(-100.0), torch.tensor(100.0))


def test_the_docstrings_loop_runs() -> None:
    assert doctest.testmod(package).failed == 0


# -- Grids --


def test_the_asymmetric_grid_is_the_textbook_quantiser() -> None:
    w = seeded(5, 7) + 0.5
    grid = fit_grid(w, 3, search="minmax")
    step = (w.amax(1, True).clamp(min=0) - w.amin(1, True).clamp(max=0)) / 7
    z = -(w.amin(1, True).clamp(max=0) / step).round()
    expected = (((w / step).round() + z).clamp(0, 7) - z) * step
    torch.testing.assert_close(grid.nearest(w), expected)


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_search_finds_the_best_of_the_eighty_ranges(per_channel: bool) -> None:
    """Against a loop in float64 with NumPy, channel by channel."""
    w = seeded(4, 30).double()
    grid = fit_grid(w, 2, per_channel=per_channel, symmetric=True)
    for rows in [[0], [1], [2], [3]] if per_channel else [[0, 1, 2, 3]]:
        part = w[rows].numpy()
        errors = {}
        for i in range(80):
            step = 2 * (1 - 0.01 * i) * np.abs(part).max() / 3
            quantised = np.clip(np.round(part / step), -2, 1) * step
            errors[step] = (np.abs(part - quantised) ** 2.4).mean()
        best = min(errors, key=errors.__getitem__)
        assert float(grid.scale.expand(4, 1)[rows[0]]) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
def test_many_bits_give_the_weight_back(symmetric: bool) -> None:
    w = seeded(6, 20).double()
    errors = [(fit_grid(w, b, symmetric=symmetric).nearest(w) - w).abs().max() for b in (8, 16)]
    assert errors[0] < 0.05
    assert errors[1] < 2e-4


def test_bits_may_differ_between_channels() -> None:
    w = seeded(3, 50)
    mixed = fit_grid(w, torch.tensor([2, 8, 4])).nearest(w)
    for channel, bits in enumerate((2, 8, 4)):
        alone = fit_grid(w[channel : channel + 1], bits).nearest(w[channel : channel + 1])
        assert torch.equal(mixed[channel], alone[0])
        assert len(mixed[channel].unique()) <= 2**bits


def test_the_power_grid_of_exponent_one_is_uniform() -> None:
    w, top = seeded(4, 25), seeded(4, 25).abs().amax(1, True)
    power = PowerGrid(top, torch.tensor(7.0), 1.0)
    uniform = Grid(top / 7, torch.tensor(-7.0), torch.tensor(7.0))
    torch.testing.assert_close(power.nearest(w), uniform.nearest(w))


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
def test_the_power_grid(exponent: float) -> None:
    w = seeded(200)[None]
    grid = fit_grid(w, 4, quantizer="power", search="minmax", exponent=exponent)
    quantised = grid.nearest(w)
    assert len(quantised.unique()) <= 15
    assert torch.equal(grid.nearest(-w), -quantised)
    top = w.abs().argmax()
    torch.testing.assert_close(quantised.flatten()[top], w.flatten()[top])
    torch.testing.assert_close(grid.weight(grid.position(w)), w, rtol=1e-4, atol=1e-6)


def test_the_best_exponent_is_the_one_of_least_squares() -> None:
    heavy = seeded(2000) ** 3
    found = best_exponent([heavy[None]], [4], quantizer="power")
    errors = {
        a / 10: float((fit_grid(heavy[None], 4, quantizer="power", exponent=a / 10)
                       .nearest(heavy[None]) - heavy).square().sum())
        for a in range(1, 11)
    }  # fmt: skip
    assert found == pytest.approx(min(errors, key=errors.__getitem__))
    assert found < 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"bits": 1}, "at least 2 bits"),
        ({"quantizer": "cubic"}, "uniform or power"),
        ({"search": "max"}, "mse or minmax"),
        ({"bits": torch.tensor([2, 3]), "per_channel": False}, "per_channel=true"),
    ],
)
def test_grids_refuse(how: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_grid(seeded(2, 3), **{"bits": 3, **how})


# -- Variables --


def test_adaround_starts_as_the_float_weight_and_hardens_to_nearest() -> None:
    w = seeded(20, 30)
    variable = RoundSigmoid(w, wide_grid())
    torch.testing.assert_close(variable.soft(), w, rtol=1e-5, atol=1e-5)
    assert torch.equal(variable.hard(), wide_grid().nearest(w))
    assert torch.equal(variable.h() >= 0.5, variable.moved >= 0)


def test_adaround_moves_by_less_than_a_step_and_free_goes_further() -> None:
    w, grid = seeded(20, 30), wide_grid()
    for kind in (RoundSigmoid, Offset, TanhOffset, Free):
        variable = kind(w, grid)
        variable.moved.data += 50 * seeded(20, 30, seed=1)
        variable.project()
        moved = (variable.hard() - w).abs().max()
        assert (moved < grid.scale * 1.0001) == (kind is not Free)


def test_the_regulariser() -> None:
    variable = RoundSigmoid(seeded(4), wide_grid())
    values = []
    for h in torch.linspace(0.5, 1, 11):
        variable.moved.data = (-torch.log(1.2 / (h + 0.1) - 1)).expand(4)
        values.append(float(variable.regulariser(3.0).detach()) / 4)
    assert values[0] == pytest.approx(1)
    assert values[-1] == pytest.approx(0, abs=1e-5)
    assert all(a >= b for a, b in itertools.pairwise(values))


def test_beta_falls_after_a_warmup() -> None:
    recipe = Recipe()
    betas = [recipe.beta_at(p) for p in (0, 0.1, 0.2, 0.6, 1.0)]
    assert betas == [None, None, 20, pytest.approx(11), pytest.approx(2)]


@pytest.mark.parametrize("kind", [Free, Offset, TanhOffset])
def test_straight_through(kind: type) -> None:
    """The gradient of Σ c·ŵ is c·Δ (times the tanh's slope) inside the range, 0 beyond it."""
    w = torch.tensor([0.1, -0.4, 5.0])
    grid = Grid(torch.tensor(0.3), torch.tensor(-2.0), torch.tensor(1.0))
    variable = kind(w, grid)
    c = torch.tensor([1.0, 2.0, 3.0])
    (variable.soft() * c).sum().backward()
    slope = 0.5 if kind is TanhOffset else 1.0
    expected = c * 0.3 * slope * torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(variable.moved.grad, expected)
    torch.testing.assert_close(variable.soft().detach(), variable.hard())
    assert torch.equal(variable.hard(), grid.nearest(w))


def test_a_learned_scale_has_the_gradient_of_the_level() -> None:
    w = seeded(10)
    grid = wide_grid()
    grid.scale = nn.Parameter(grid.scale)
    variable = Free(w, grid)
    variable.soft().sum().backward()
    torch.testing.assert_close(grid.scale.grad, (w / 0.3).round().sum())


def test_weights_that_are_not_selected_stay_nearest() -> None:
    w, selected = seeded(50), torch.arange(50) < 10
    for kind in (RoundSigmoid, Free):
        variable = kind(w, wide_grid(), selected)
        variable.moved.data += 40 * seeded(50, seed=2)
        assert torch.equal(variable.hard()[~selected], wide_grid().nearest(w)[~selected])
        variable.soft().sum().backward()
        assert variable.moved.grad is not None
        assert not variable.moved.grad[~selected].any()


# -- Losses --


def test_losses_against_their_formulas() -> None:
    o, t, g = seeded(3, 4, 2, 2), seeded(3, 4, 2, 2, seed=1), seeded(3, 4, 2, 2, seed=2)
    out, T, G = (np.asarray(x, dtype=np.float64).reshape(3, -1) for x in (o, t, g))
    E = np.abs(out - T)
    expected = {
        "l2": (E**2).sum() / 12, "l1": E.sum() / 12, "lp": (E**2.4).sum() / 12,
        "normalised": ((E**2).sum(1) / (T**2).sum(1)).mean(),
        "cosine": (1 - (out * T).sum(1) / np.sqrt((out**2).sum(1) * (T**2).sum(1))).mean(),
        "fisher": (E**2 * G**2).sum() / 12,
        "fisher_full": ((E * np.abs(G)).sum(1, keepdims=True) * E * np.abs(G)).mean() / 100,
    }  # fmt: skip
    for name, value in expected.items():
        assert float(LOSSES[name](o, t, g)) == pytest.approx(value, rel=1e-5), name
    logits, target = o.flatten(1), t.flatten(1)
    torch.testing.assert_close(
        LOSSES["kl"](logits, target),  # type: ignore[call-arg]
        F.kl_div(logits.log_softmax(-1), target.softmax(-1), reduction="batchmean"),
    )
    with pytest.raises(UserError, match="Did you mean 'cosine'"):
        loss_for("cosin")


# -- Activations and integers --


def quantizer_for(x: Tensor, bits: int = 4) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(bits)
    quantizer.seen = []
    quantizer(x)
    quantizer.find_range()
    return quantizer


def test_lsq_gradient_of_the_step() -> None:
    x = seeded(1000)
    quantizer = quantizer_for(x)
    s, z = quantizer.step.item(), quantizer.zero.item()
    quantizer(x).sum().backward()
    ratio = x / s
    inside = ((ratio.round() + z) >= 0) & ((ratio.round() + z) <= 15)
    bound = torch.where(ratio > 0, 15 - z, -z)
    each = torch.where(inside, ratio.round() - ratio, bound)
    expected = each.sum() / np.sqrt(1000 * 15)
    torch.testing.assert_close(quantizer.step.grad, expected, rtol=1e-3, atol=1e-3)


def test_dropping_keeps_a_share_of_the_elements_quantised() -> None:
    x = seeded(20000)
    quantizer = quantizer_for(x)
    full = quantizer(x)
    quantizer.keep = 0.25
    out = quantizer(x)
    assert (((out == x) | (out == full)).all())  # fmt: skip
    assert 0.22 < (out == full).float().mean() < 0.28
    assert len(full.unique()) <= 16


def test_the_range_is_the_best_of_eighty() -> None:
    """Against a loop in float64 with NumPy, on activations around -1/2."""
    x = seeded(300).double() - 0.5
    quantizer, part = quantizer_for(x, bits=2), x.numpy()
    errors: dict[float, float] = {}
    zero = np.round(-3 * part.min() / np.ptp(part))  # shrinks with the step
    for i in range(80):
        step = (1 - 0.01 * i) * np.ptp(part) / 3
        quantised = (np.clip(np.round(part / step) + zero, 0, 3) - zero) * step
        errors[step] = (np.abs(part - quantised) ** 2.4).mean()
    best = min(errors, key=errors.__getitem__)
    assert (quantizer.step.item(), quantizer.zero.item()) == pytest.approx((best, zero))


def test_ranges_of_long_activations_are_found_in_a_sample() -> None:
    quantizer = quantizer_for(seeded(5 * MOST_ENTRIES), bits=8)
    assert (quantizer(seeded(100)) - seeded(100)).abs().max() < 0.1


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 5), nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Conv2d(3, 4, 2, bias=False)],
)
def test_fake_quantisation_is_integer_arithmetic(layer: Any, symmetric: bool) -> None:
    layer = layer.double()
    x = torch.relu(seeded(4, 6) if isinstance(layer, nn.Linear) else seeded(4, 3, 7, 7)).double()
    grid = fit_grid(layer.weight, 3, symmetric=symmetric)
    layer.weight.data.copy_(grid.nearest(layer.weight))
    quantizer = quantizer_for(x).double()
    fake = layer(quantizer(x))
    integer, accumulators = integer_layer(layer, grid, quantizer, x)
    assert accumulators.dtype == torch.int64
    torch.testing.assert_close(fake, integer, rtol=1e-12, atol=1e-12)


# -- Allocation and importance --


@pytest.mark.parametrize(
    ("order", "expected"),
    [("importance", [1, 3]), ("reversed", [-1, -3]), ("magnitude", [5, 4]), ("random", None)],
)
def test_orders_and_their_controls(order: Any, expected: list[float] | None) -> None:
    scores, magnitude = {"a": torch.tensor([1.0, 3.0])}, {"a": torch.tensor([5.0, 4.0])}
    found = order_scores(order, scores, magnitude, seed=0)["a"].tolist()
    assert found == expected if expected else 0 <= min(found) < max(found) < 1


def units(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor([value]) for name, value in values.items()}


def test_bits_go_to_the_most_important_while_the_budget_lasts() -> None:
    scores, sizes = units(a=1.0, b=3.0, c=2.0), units(a=100, b=10, c=90)
    bits = allocate_bits(scores, sizes, low=2, high=4, budget=3.0)
    assert {k: int(v) for k, v in bits.items()} == {"a": 2, "b": 4, "c": 4}
    average = sum(float(bits[k] * sizes[k]) for k in sizes) / 200
    assert average <= 3.0
    none = allocate_bits(scores, sizes, low=2, high=4, budget=2.05)
    assert {int(v) for v in none.values()} == {2}
    with pytest.raises(UserError, match=r"below method\.mixed\.low"):
        allocate_bits(scores, sizes, low=2, high=4, budget=1)


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_holds_for_random_units(seed: int) -> None:
    sizes = {str(i): torch.randint(1, 1000, (5,)) for i in range(4)}
    scores = {name: torch.rand(5) for name in sizes}
    budget = 2 + 6 * float(torch.rand(()))
    bits = allocate_bits(scores, sizes, low=2, high=8, budget=budget)
    total = sum(float((bits[k] * sizes[k]).sum()) for k in sizes)
    assert total <= budget * float(sum(v.sum() for v in sizes.values())) * (1 + 1e-9)


def test_importance_is_weight_times_gradient_and_a_path() -> None:
    """By finite differences on a two-layer ReLU network in float64, at S = 0 and S = 2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model.requires_grad_(False)
    x, y = torch.randn(30, 4).double(), torch.randn(30, 2).double()

    def loss() -> Tensor:
        return F.mse_loss(model(x), y)

    def by_differences(layer: str, mu: float) -> Tensor:
        weight = model.get_parameter(f"{layer}.weight")
        start = weight.clone()
        gradient = torch.zeros_like(start)
        for index in np.ndindex(*start.shape):
            ends = []
            for sign in (1, -1):
                weight.copy_(mu * start)
                weight[index] += sign * 1e-6
                ends.append(float(loss()))
            gradient[index] = (ends[0] - ends[1]) / 2e-6
        weight.copy_(start)
        return (mu * start * gradient).abs()

    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = importance(model, ["0", "2"], loss)
    longer = importance(model, ["0", "2"], loss, steps=2)
    for layer in ("0", "2"):
        torch.testing.assert_close(found[layer], by_differences(layer, 1.0), atol=1e-7, rtol=1e-5)
        path = sum(by_differences(layer, mu) for mu in (1.0, 0.9, 0.81))
        torch.testing.assert_close(longer[layer], path, atol=1e-7, rtol=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


# -- The Hessian-based baseline --


def test_hessian_rounding_takes_the_optimal_update_at_every_column() -> None:
    """Against brute force: after each column, least squares over the columns still free."""
    torch.manual_seed(1)
    X = (torch.randn(60, 6) @ torch.randn(6, 6)).double()
    w = torch.randn(3, 6).double()
    grid = fit_grid(w, 2)
    H = 2 * X.T @ X / len(X)
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(6).double()
    fixed, current = torch.zeros_like(w), w.clone()
    for j in range(6):
        fixed[:, j] = grid.nearest(current[:, j : j + 1])[:, 0]
        done, free = list(range(j + 1)), list(range(j + 1, 6))
        if free:  # argmin over the free columns of (ŵ - w) H (ŵ - w)ᵀ
            error = (fixed[:, done] - w[:, done]) @ damped[done][:, free]
            current[:, free] = w[:, free] - torch.linalg.solve(damped[free][:, free], error.T).T
    for block in (1, 2, 128):
        torch.testing.assert_close(hessian_rounding(w, H, grid, block=block), fixed)


def test_hessian_of_a_convolution() -> None:
    conv, x = nn.Conv2d(2, 3, 3, padding=1, bias=False).double(), seeded(5, 2, 4, 4).double()
    H = layer_hessian(conv, x)
    delta = seeded(3, 2, 3, 3, seed=4).double()
    out = F.conv2d(x, delta, padding=1)
    direct = 2 * out.square().sum() / (5 * 16)
    flat = delta.flatten(1)
    torch.testing.assert_close((flat @ H * flat).sum(), direct)
    with pytest.raises(UserError, match="groups"):
        layer_hessian(nn.Conv2d(2, 2, 3, groups=2), x)


# -- Recipe --


@pytest.mark.parametrize(
    ("schedule", "second"), [("constant", 1), ("linear", 3 / 4), ("cosine", (2 + 2**0.5) / 4)]
)
def test_sign_sgd_and_schedules(schedule: Any, second: float) -> None:
    """The second of four steps; a quarter of a cosine's half wave is 45 degrees."""
    p = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    optimizer = SignSGD([p], lr=0.1)
    rate = scheduler(optimizer, schedule, 4)
    for far in (0.1, 0.1 + 0.1 * second):
        p.grad = torch.tensor([5.0, -1e-9, 0.0])
        optimizer.step()
        rate.step()
        torch.testing.assert_close(p.detach(), torch.tensor([1 - far, 2 + far, 3.0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variable": "fre"}, "Did you mean 'free'"),
        ({"optimizer": "adm"}, "Did you mean 'adam'"),
        ({"rounding": "hessian", "unit": "block"}, "layer by layer"),
        ({"iterations": 0}, "iterations is a whole number"),
        ({"lr": 0}, "lr is positive"),
        ({"subset_share": 2}, "subset_share"),
    ],
)
def test_recipes_refuse(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(**settings)
