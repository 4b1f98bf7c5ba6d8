"""Curvature products, Lanczos and stacked ensembles against the usual ways."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from timing import faster
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F

from repro.toolbox.ensembles import Ensemble, Layout
from repro.toolbox.linear_algebra.curvature import Curvature
from repro.toolbox.linear_algebra.lanczos import lanczos


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def forward_over_reverse(net: nn.Module, x: Tensor, y: Tensor) -> Any:
    """v ↦ H v as `torch.func` has it, forwards through the gradient, anew for every product."""
    layout = Layout.of(net)
    theta = layout.vector(net)
    slope = grad(lambda t: F.cross_entropy(functional_call(net, layout.split(t), (x,)), y))
    return lambda v: jvp(slope, (theta,), (v,))[1]


def test_hessian_products_against_forward_over_reverse() -> None:
    """64-256-256-10 (85,002 parameters), 1,000 examples."""
    net, x, y = mlp(64, 256, 256, 10), torch.randn(1000, 64), torch.randint(10, (1000,))
    curvature, reference = Curvature(net, [(x, y)]), forward_over_reverse(net, x, y)
    v = torch.randn(curvature.size)
    assert torch.allclose(curvature(v), reference(v), atol=1e-5)
    faster("a Hessian product", lambda: curvature(v), lambda: reference(v), 1.2)


def torch_func(net: nn.Module, x: Tensor, y: Tensor) -> LinearOperator:
    """The Hessian as an operator of SciPy's."""
    reference, P = forward_over_reverse(net, x, y), Layout.of(net).vector(net).numel()
    return LinearOperator(
        (P, P), matvec=lambda v: reference(torch.from_numpy(v)).numpy(), dtype="float32"
    )


def curvlinops(net: nn.Module, x: Tensor, y: Tensor) -> LinearOperator:
    """The same by the library of that name."""
    library = pytest.importorskip("curvlinops")
    operator = library.HessianLinearOperator(
        net, nn.CrossEntropyLoss(), list(net.parameters()), [(x, y)], check_deterministic=False
    )
    return operator.to_scipy("float32")


@pytest.mark.parametrize("operator_of", [torch_func, curvlinops])
def test_the_top_eigenvalue_of_a_million_parameters_against_eigsh(operator_of: Any) -> None:
    """64-768-768-768-10 (1.2 million parameters), within 1e-4 of each other."""
    net, x, y = mlp(64, 768, 768, 768, 10), torch.randn(256, 64), torch.randint(10, (256,))
    operator = operator_of(net, x, y)
    start, found = torch.randn(operator.shape[0]), {}

    def ours() -> None:
        found["ours"] = float(lanczos(Curvature(net, [(x, y)]), start, 100, tolerance=1e-3).top)

    def theirs() -> None:
        values = eigsh(
            operator, 1, which="LA", v0=start.numpy(), tol=1e-3, return_eigenvectors=False
        )
        found["theirs"] = float(values[0])

    name = f"top eigenvalue of 1.2M parameters, eigsh on {operator_of.__name__}"
    faster(name, ours, theirs, repeats=2)
    assert abs(found["ours"] / found["theirs"] - 1) < 1e-4


def test_a_sweep_at_once_against_runs_one_after_the_other() -> None:
    """36 rates, 64-32-32-10, batches of 32, 20 steps.

    Measured 7 to 8 times; 2.7 for batches of 512, where the products take most of the time.
    """
    net, rates = mlp(64, 32, 32, 10), 0.02 * 2 ** (torch.arange(36) / 4)
    batches = [(torch.randn(32, 64), torch.randint(10, (32,))) for _ in range(20)]

    def together() -> Tensor:
        ensemble = Ensemble(net, rates)
        return torch.stack([ensemble.step(batch) for batch in batches], 1)

    def one_by_one() -> Tensor:
        return torch.stack([alone(rate) for rate in rates.tolist()])

    def alone(rate: float) -> Tensor:
        copied, losses = copy.deepcopy(net), []
        optimizer = torch.optim.SGD(copied.parameters(), lr=rate)
        for x, y in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(copied(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    stable = 24  # rates; beyond, rounding grows from step to step
    torch.testing.assert_close(together()[:stable], one_by_one()[:stable])
    faster("36 learning rates", together, one_by_one, 5.0)
