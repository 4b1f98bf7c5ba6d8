"""Gradients through a sampler against closed forms, backpropagation and torchdiffeq."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.methods import adjoint_dpm
from repro.methods.adjoint_dpm import (
    WAYS,
    Pulled,
    RhoFlow,
    Sampling,
    TimeFlow,
    adams_bashforth,
    sample,
    solve,
    time_grid,
    walk,
)
from repro.toolbox.diffusion import ScaledLinear, VPProcess
from repro.toolbox.exact_scores import PointMixture, noise_in

PROCESS = ScaledLinear()
END = 1e-3
SPREAD = torch.tensor([0.05, 0.5, 1.5], dtype=torch.float64)  # variances of Gaussian data
MEAN = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)


def noise(size: int, dim: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=generator, dtype=torch.float64).requires_grad_()


def gaussian(x: Tensor, time_B: Tensor) -> Tensor:
    """The noise in x_t where x_0 is from N(MEAN, diag SPREAD)."""
    alpha_bar = PROCESS.alpha_bar(time_B)[:, None]
    centred = x - alpha_bar.sqrt() * MEAN
    return (1 - alpha_bar).sqrt() * centred / (alpha_bar * SPREAD + 1 - alpha_bar)


def transported() -> Tensor:
    """∂x_0/∂x_T of Gaussian data, coordinate by coordinate."""
    (first, last) = ((a**2 * SPREAD + s**2) for a, s in map(PROCESS.signal, (1.0, END)))
    return (last / first).sqrt()


class Net(nn.Module):
    """A noise predictor with a condition, in double precision."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(dim + 3, 16), nn.Tanh(), nn.Linear(16, dim)).double()
        self.condition = nn.Parameter(torch.tensor([0.2, -0.4], dtype=torch.float64))

    def forward(self, x: Tensor, time_B: Tensor) -> Tensor:
        condition = self.condition.expand(len(x), 2)
        out: Tensor = self.layers(torch.cat([x, time_B[:, None], condition], dim=1))
        return out


def gradients(net: Net, x_T: Tensor, steps: int, **how: Any) -> list[Tensor]:
    """Of a loss, for noise, condition and weights."""
    wanted = list(net.parameters())
    x_0 = sample(net, x_T, time_grid(PROCESS, steps), PROCESS, inputs=wanted, **how)
    return list(torch.autograd.grad((x_0 - 1).square().sum(), [x_T, *wanted]))


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def test_the_plain_loop_of_the_docstring() -> None:
    assert doctest.testmod(adjoint_dpm).failed == 0


@pytest.mark.parametrize("form", ["rho", "t"])
@pytest.mark.parametrize("gradient", ["naive", "checkpoint", "adjoint"])
def test_gaussian_data_has_its_closed_form(form: Any, gradient: Any) -> None:
    x_T = noise(4)
    times = time_grid(PROCESS, 60, "logsnr", END)
    x_0 = sample(gaussian, x_T, times, PROCESS, form, "rk4", gradient)
    (alpha_T, _), (alpha_e, _) = map(PROCESS.signal, (1.0, END))
    exact = alpha_e * MEAN + (x_T - alpha_T * MEAN) * transported()
    torch.testing.assert_close(x_0, exact, rtol=1e-5, atol=1e-5)
    (got,) = torch.autograd.grad(x_0.sum(), x_T)
    torch.testing.assert_close(got, transported().expand(4, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["rho", "t"])
@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("midpoint", 2), ("ab2", 2), ("rk4", 4), ("ab3", 3)]
)
def test_errors_fall_by_the_order_of_the_solver(form: Any, solver: Any, order: int) -> None:
    def errors(steps: int) -> list[float]:
        x_T = noise(4)
        times = time_grid(PROCESS, steps, "logsnr", 0.05)
        x_0 = sample(gaussian, x_T, times, PROCESS, form, solver, backward=None)
        (got,) = torch.autograd.grad(x_0.sum(), x_T)
        ends = [a**2 * SPREAD + s**2 for a, s in map(PROCESS.signal, (1.0, 0.05))]
        slope = (ends[1] / ends[0]).sqrt()
        exact = PROCESS.signal(0.05)[0] * MEAN + (x_T - PROCESS.signal(1.0)[0] * MEAN) * slope
        return [float((x_0 - exact).detach().norm()), float((got - slope).norm())]

    coarse, fine = errors(30), errors(60)
    assert coarse[0] / fine[0] > 0.7 * 2**order
    # An Adams-Bashforth solver's adjoint takes RK4 steps; its error is of order four.
    assert coarse[1] / fine[1] > 0.7 * 2 ** (4 if solver.startswith("ab") else order)


def test_a_step_of_euler_in_rho_is_one_of_ddim() -> None:
    times, predict, x = time_grid(PROCESS, 10), Net(), noise(5)
    ours = sample(predict, x, times, PROCESS)
    for now, then in pairwise(times):
        (alpha, sigma), (alpha_next, sigma_next) = map(PROCESS.signal, (now, then))
        guess = predict(x, torch.full((5,), now, dtype=torch.float64))
        x = alpha_next * (x - sigma * guess) / alpha + sigma_next * guess
    torch.testing.assert_close(ours, x)


def test_rho_is_zero_at_the_noise_and_finds_its_time_again() -> None:
    for process in (PROCESS, VPProcess()):
        flow = RhoFlow(process)
        assert flow.coordinate(1.0) == pytest.approx(0, abs=1e-12)
        assert flow.scale(1.0) == 1
        (alpha_T, sigma_T), (alpha, sigma) = map(process.signal, (1.0, END))
        assert flow.coordinate(END) == pytest.approx(alpha_T * sigma / alpha - sigma_T)
        for time in (1.0, 0.7, 0.1, END):
            assert flow.time(flow.coordinate(time)) == pytest.approx(time, abs=1e-9)


def test_a_constant_or_linear_predictor_is_exact_in_one_step() -> None:
    """ε = B c: ∂L/∂c = Bᵀ v (α_e / α_T) (ρ_e - ρ_T), and ∂L/∂x_T = v α_e / α_T."""
    B, c, x_T = noise(3, 2), noise(1, 2)[0].detach().requires_grad_(), noise(1)
    times, flow = [1.0, END], RhoFlow(PROCESS)
    x_0 = sample(lambda x, _: 0 * x + B.detach() @ c, x_T, times, PROCESS, inputs=[c])
    v = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    at_x, at_c = torch.autograd.grad(x_0, (x_T, c), v)
    torch.testing.assert_close(at_x, v * flow.scale(END))
    torch.testing.assert_close(at_c, B.mT @ v[0] * flow.scale(END) * flow.coordinate(END))


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("form", ["rho", "t"])
def test_repeated_steps_have_the_gradient_of_kept_ones(form: Any, solver: Any) -> None:
    net, x_T = Net(), noise(4)
    naive, repeated = (
        gradients(net, x_T, 7, form=form, solver=solver, gradient=way)
        for way in ("naive", "checkpoint")
    )
    assert distance(repeated, naive) < 1e-12


@pytest.mark.parametrize("states", ["saved", "recomputed"])
@pytest.mark.parametrize("form", ["rho", "t"])
def test_the_adjoint_nears_backpropagation_by_half_at_twice_the_steps(
    form: Any, states: Any
) -> None:
    net, x_T = Net(), noise(4)
    errors = [
        distance(
            gradients(net, x_T, steps, form=form, states=states),
            gradients(net, x_T, steps, form=form, gradient="naive"),
        )
        for steps in (50, 100)
    ]
    assert errors[1] < 0.2
    assert 1.6 < errors[0] / errors[1] < 2.6


def test_weights_have_the_gradient_that_differences_show() -> None:
    net, x_T = Net(), noise(4)
    got = gradients(net, x_T, 20, solver="rk4")[2]  # of the first layer's weights
    weight: Any = net.layers[0].weight

    def loss() -> float:
        x_0 = sample(net, x_T, time_grid(PROCESS, 20), PROCESS, solver="rk4")
        return float((x_0 - 1).square().sum())

    for row, column in [(0, 0), (3, 1), (7, 2), (11, 3), (15, 5)]:
        with torch.no_grad():
            weight[row, column] += 1e-5
            above = loss()
            weight[row, column] -= 2e-5
            below = loss()
            weight[row, column] += 1e-5
        assert float(got[row, column]) == pytest.approx((above - below) / 2e-5, rel=0.01, abs=1e-4)


@pytest.mark.parametrize(("ours", "theirs"), [("euler", "euler"), ("midpoint", "midpoint")])
def test_torchdiffeq_has_the_same_adjoint(ours: Any, theirs: str) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    net, x_T = Net(), noise(6)
    times, flow = time_grid(PROCESS, 20), RhoFlow(PROCESS)
    field, wanted = flow.field(net), tuple(net.parameters())
    rho = torch.tensor([flow.coordinate(t) for t in times], dtype=torch.float64)
    solution = torchdiffeq.odeint_adjoint(
        lambda u, y: field(u.item(), y), x_T, rho, method=theirs, adjoint_params=wanted
    )[-1] * flow.scale(END)
    reference = torch.autograd.grad((solution - 1).square().sum(), [x_T, *wanted])
    assert distance(gradients(net, x_T, 20, solver=ours), list(reference)) < 1e-6


def test_adams_bashforth_on_even_and_uneven_steps() -> None:
    assert adams_bashforth([0.0, 1.0, 2.0], 3.0) == pytest.approx([5 / 12, -16 / 12, 23 / 12])
    nodes, end = [0.0, 0.7, 0.9], 1.6
    weights = adams_bashforth(nodes, end)
    for power in range(3):  # ∫ u^p over the last step
        exact = (end ** (power + 1) - nodes[-1] ** (power + 1)) / (power + 1)
        assert sum(w * u**power for w, u in zip(weights, nodes, strict=True)) == pytest.approx(
            exact
        )
    field, grid = (lambda u, y: y + u), [0.0, 0.4, 0.5]
    first, second = walk(field, noise(2), grid, "ab2")
    (once, _) = walk(field, noise(2), grid, "rk4")
    torch.testing.assert_close(first, once)
    w0, w1 = adams_bashforth(grid[:2], grid[2])
    torch.testing.assert_close(second, first + w0 * noise(2) + w1 * (first + 0.4))


def counted(calls: list[bool]) -> Callable[[float, Tensor], Tensor]:
    def field(u: float, y: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return torch.sin(y + u)

    return field


@pytest.mark.parametrize(
    ("solver", "gradient", "backward", "forwards", "products"),
    [
        ("euler", "naive", None, 0, 5),
        ("euler", "checkpoint", None, 5, 5),
        ("euler", "adjoint", None, 5, 5),
        ("rk4", "adjoint", None, 20, 20),
        ("ab3", "adjoint", None, 11, 20),
        ("ab3", "adjoint", "euler", 11, 5),
    ],
)
def test_what_each_way_costs(
    solver: Any, gradient: Any, backward: Any, forwards: int, products: int
) -> None:
    calls: list[bool] = []
    grid = [i / 5 for i in range(6)]
    solve(counted(calls), noise(2), grid, solver, gradient, backward=backward).sum().backward()
    assert calls.count(False) == forwards
    assert calls.count(True) == products


def test_recomputed_states_keep_one_state() -> None:
    kept: dict[str, int] = {}
    for states in ("saved", "recomputed"):
        end: Any = solve(lambda _, y: y.sin(), noise(2), [0, 0.5, 1], states=states)
        kept[states] = len(end.grad_fn.saved_tensors)
    assert kept == {"saved": 3, "recomputed": 1}


def test_grids_run_from_the_noise_to_the_data() -> None:
    even = time_grid(PROCESS, 4, "uniform", END)
    assert even == pytest.approx([1.0, 0.75025, 0.5005, 0.25075, END])
    log = time_grid(PROCESS, 4, "logsnr", END)
    ratios = [math.log(a / s) for a, s in map(PROCESS.signal, log)]
    gaps = [b - a for a, b in pairwise(ratios)]
    assert gaps == pytest.approx([gaps[0]] * 4)
    assert (log[0], log[-1]) == (1.0, END)


def test_the_time_form_is_stiff_where_the_other_is_not() -> None:
    """Narrow data: with few steps even in the time, the plain adjoint turns the gradient around."""
    law = PointMixture.uniform(torch.tensor([[0.5, -0.5]], dtype=torch.float64), variance=0.01)
    predict, cosines = noise_in(law, PROCESS), {}
    for form in (TimeFlow, RhoFlow):
        x_T = noise(8, 2)
        name: Any = "t" if form is TimeFlow else "rho"
        x_0 = sample(predict, x_T, time_grid(PROCESS, 20), PROCESS, name)
        (got,) = torch.autograd.grad(x_0.sum(), x_T)
        cosines[name] = float(torch.cosine_similarity(got, torch.ones_like(got)).median())
    assert cosines["rho"] > 0.99
    assert cosines["t"] < -0.99


def test_a_solver_with_memory_cannot_repeat_steps() -> None:
    with pytest.raises(UserError, match="gradient=checkpoint repeats single steps"):
        solve(lambda _, y: y, noise(2), [0.0, 1.0], "ab3", "checkpoint")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_a_gradient_of_the_same_loss(way: str) -> None:
    """Against backpropagation on the way's own form, by its cosine; null ways by what they are."""
    net = Net()
    condition = net.condition
    x_T = noise(4).detach()
    sampling = Sampling(PROCESS, 100, "logsnr")

    def pull(name: str) -> Pulled:
        def loss(x: Tensor) -> Tensor:
            return (x - 1).square().sum()

        return sampling.gradients(name, net, x_T, loss, [condition])

    ours, exact = pull(way), pull("naive")
    cosine, at_condition = (
        torch.cosine_similarity(a.flatten(), b.flatten(), 0)
        for a, b in [(ours.at_noise, exact.at_noise), (ours.at_inputs[0], exact.at_inputs[0])]
    )
    assert float(ours.loss) == pytest.approx(float(exact.loss), rel=0.1)
    assert x_T.requires_grad is False
    if way in ("rho", "t", "checkpoint", "naive", "naive_t", "t_rho"):
        assert cosine > 0.999
        assert at_condition > 0.99
    elif way == "identity":
        v = 2 * (ours.x_0 - 1)
        (alpha_T, _), (alpha_e, _) = map(PROCESS.signal, (1.0, 1e-3))
        torch.testing.assert_close(ours.at_noise, v * alpha_e / alpha_T)
        assert ours.at_inputs[0].abs().max() == 0
    elif way == "last_step":
        assert ours.at_noise.abs().max() == 0
        assert 0 < ours.at_inputs[0].norm() < exact.at_inputs[0].norm()
    elif way == "one_step":
        start, flow = x_T.clone().requires_grad_(), RhoFlow(PROCESS)
        first = net(start, torch.ones(4, dtype=torch.float64))
        end = flow.scale(END) * (start + flow.coordinate(END) * first)
        (by_hand,) = torch.autograd.grad(end, start, 2 * (ours.x_0 - 1))
        torch.testing.assert_close(ours.at_noise, by_hand)
        assert ours.at_inputs[0].abs().min() > 0
    else:
        torch.testing.assert_close(ours.at_noise, pull(way).at_noise)  # one direction for ever
        assert abs(cosine) < 0.7
