"""Kernels against published anchors, autograd, finite networks and the naive recursion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.nngp_mixture import NNGPKernel
from repro.methods.nngp_mixture.kernels import ACTIVATIONS

X = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 2.0]], dtype=torch.float64)
ANCHORS = [  # K11, K12, K13, K33
    ("relu", 1, (0.535, 0.375297, 0.172890, 2.495)),
    ("relu", 2, (0.5693, 0.437772, 0.492371, 2.4901)),
    ("erf", 1, (0.477369, 0.284276, -0.196075, 0.726192)),
    ("erf", 2, (0.469361, 0.278891, -0.107413, 0.541489)),
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("act", "depth", "expected"), ANCHORS)
def test_anchors(act: str, depth: int, expected: tuple[float, ...]) -> None:
    K = NNGPKernel(depth=depth, act=act, w_std=1.4, b_std=0.3)(X).detach()
    found = [K[0, 0], K[0, 1], K[0, 2], K[2, 2]]
    torch.testing.assert_close(
        torch.stack(found), torch.tensor(expected).double(), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"act": "erf"}])
def test_is_symmetric_positive_and_agrees_with_itself(options: dict) -> None:
    kernel = NNGPKernel(depth=3, **options)
    x = random(30, 4)
    K = kernel(x).detach()
    torch.testing.assert_close(K, K.T)
    assert torch.linalg.eigvalsh(K).min() > -1e-10
    between, own = kernel.with_diagonals(x[:5], x)
    torch.testing.assert_close(between, K[:5], atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(own, K.diagonal()[:5])


def test_the_relu_diagonal_follows_its_recursion() -> None:
    k, w, b = float(1.4**2 * X[2].square().mean() + 0.3**2), 1.4, 0.3
    for _ in range(3):
        k = w**2 * k / 2 + b**2
    K = NNGPKernel(depth=4, w_std=w, b_std=b, last_w_std=0.7)(X).detach()
    assert float(K[2, 2]) == pytest.approx(0.7**2 * k / 2)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_expectations_against_quadrature_and_slope_against_autograd(name: str) -> None:
    act = ACTIVATIONS[name]
    k, kx, kz = (torch.tensor(v, dtype=torch.float64) for v in (0.6, 1.3, 0.9))
    # E[φ(u)φ(v)] on a grid of ±8 deviations; ReLU's corner costs the accuracy of the rule.
    t = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    weight = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi) * (t[1] - t[0])
    u = kx.sqrt() * t[:, None]
    v = k / kx.sqrt() * t[:, None] + (kz - k**2 / kx).sqrt() * t
    measured = weight @ (act.function(u) * act.function(v)) @ weight
    assert float(act.between(k, kx, kz)) == pytest.approx(float(measured), abs=2e-5)
    assert float(act.own(kx)) == pytest.approx(float(act.between(kx, kx, kx)), abs=1e-6)
    assert float(act.own_slope(kx)) == pytest.approx(float(act.slope(kx, kx, kx)), abs=1e-4)
    slope = torch.func.grad(act.between)(k, kx, kz)  # Price's theorem
    assert float(act.slope(k, kx, kz)) == pytest.approx(float(slope), rel=1e-6)


def test_tangent_kernel_against_the_gradients_of_a_wide_network() -> None:
    kernel = NNGPKernel(depth=2, act="erf", w_std=1.4, b_std=0.3, last_w_std=0.8)
    K, theta = (each.detach() for each in kernel.tangent(X))
    torch.testing.assert_close(K, kernel(X).detach())
    n, w, b, last = 1024, 1.4, 0.3, 0.8
    found = []
    for seed in range(4):
        parameters = [random(*shape, seed=10 * seed + i) for i, shape in enumerate(
            [(2, n), (n,), (n, n), (n,), (n,)])]  # fmt: skip

        def outputs(parameters: list[torch.Tensor]) -> torch.Tensor:
            h = torch.erf(w / math.sqrt(2) * X @ parameters[0] + b * parameters[1])
            h = torch.erf(w / math.sqrt(n) * h @ parameters[2] + b * parameters[3])
            return last / math.sqrt(n) * h @ parameters[4]

        jacobian = torch.cat([j.flatten(1) for j in torch.func.jacrev(outputs)(parameters)], 1)
        found.append(jacobian @ jacobian.T)
    torch.testing.assert_close(torch.stack(found).mean(0), theta, atol=0.05, rtol=0.04)


def test_dense_residual_blocks_have_one_layer() -> None:
    w, b, last, depth = 1.2, 0.2, 0.7, 3
    k = float(w**2 * X[2].square().mean() + b**2)
    for _ in range(depth):
        k += w**2 * k / 2 + b**2
    kernel = NNGPKernel(depth, w_std=w, b_std=b, last_w_std=last, residual=True)
    assert float(kernel(X).detach()[2, 2]) == pytest.approx(last**2 * k / 2)


@pytest.mark.parametrize("size", [(4, 5), (7, 8)])
def test_convolutional_residual_kernel_position_by_position(size: tuple[int, int]) -> None:
    w, b, last = 1.2, 0.2, 0.7
    x = random(2, 3, *size)
    K = torch.einsum("nchw,mchw->nmhw", x, x).numpy() / 3

    def conv(K: np.ndarray, stride: int = 1) -> np.ndarray:
        H, W = K.shape[-2:]
        out = np.zeros((2, 2, -(-H // stride), -(-W // stride)))
        for i, j in np.ndindex(*out.shape[-2:]):
            # An image of even size is padded behind its end alone where the stride is two.
            top, left = (stride * p - (stride == 1 or n % 2) for p, n in ((i, H), (j, W)))
            window = K[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]
            out[:, :, i, j] = w**2 * window.sum((2, 3)) / 9 + b**2
        return out

    def relu(K: np.ndarray) -> np.ndarray:
        norms = np.sqrt(K[[0, 1], [0, 1]][:, None] * K[[0, 1], [0, 1]][None])
        cosine = np.clip(K / norms, -1, 1)
        angle = np.arccos(cosine)
        return norms * (np.sin(angle) + (np.pi - angle) * cosine) / (2 * np.pi)

    K = conv(K)
    for stride in (1, 2, 2, 2):
        K = conv(K, stride) + conv(relu(conv(relu(K), stride)))
        K = K + conv(relu(conv(relu(K))))
    kernel = NNGPKernel(2, kind="conv", w_std=w, b_std=b, last_w_std=last, residual=True)
    expected = torch.as_tensor(last**2 * K.mean((2, 3)))
    torch.testing.assert_close(kernel(x).detach(), expected, atol=1e-6, rtol=1e-6)


def test_convolutional_kernel_against_wide_random_networks() -> None:
    x = random(3, 2, 4, 4)
    kernel = NNGPKernel(depth=2, kind="conv", w_std=1.2, b_std=0.2)
    generator = torch.Generator().manual_seed(1)
    n, networks = 100, 60

    def conv(h: torch.Tensor) -> torch.Tensor:
        weight = torch.randn(n, h.shape[1], 3, 3, generator=generator, dtype=h.dtype)
        bias = torch.randn(n, generator=generator, dtype=h.dtype)
        return F.conv2d(h, 1.2 / math.sqrt(9 * h.shape[1]) * weight, 0.2 * bias, padding=1)

    covariance = torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(networks):
        h = conv(x)
        features = conv(h.relu()).relu().flatten(1)
        covariance += features @ features.T / features.shape[1] / networks  # given the features
    expected = kernel(x).detach()
    torch.testing.assert_close(covariance, expected, atol=0.03 * float(expected.max()), rtol=0)
    assert torch.linalg.eigvalsh(expected).min() > 0


def test_gradients_reach_every_scale() -> None:
    kernel = NNGPKernel(depth=2)
    values = [value.detach() for value in kernel.scales()]
    torch.testing.assert_close(torch.stack(values), torch.tensor([1.4, 0.3, 1.0]).double())
    kernel(random(6, 2)).sum().backward()
    for parameter in kernel.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert (parameter.grad != 0).all()
    assert not NNGPKernel(train_last=False).raw_last.requires_grad


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"act": "rellu"}, "Did you mean 'relu'"),
        ({"depth": 0}, "depth is a whole number of at least 1"),
        ({"w_std": 0.0}, "w_std is positive"),
        ({"kind": "graph"}, "dense or conv"),
    ],
)
def test_bad_options_say_so_in_one_line(options: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        NNGPKernel(**options)
