"""Norm balls: duality, closed forms, and Newton-Schulz against the singular values."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from repro.toolbox.lmo import (
    RMS,
    ColumnNorm,
    NormBall,
    RowNorm,
    Sign,
    Spectral,
    iid_dual,
    lanczos_nuclear_norm,
    newton_schulz,
    polar_factor,
)

EXACT = {"method": "exact", "dual_method": "exact"}
BALLS = [
    *(Spectral(factor, **EXACT) for factor in ("operator", "muon", "rms_adamw", "none")),  # type: ignore[arg-type]
    Sign(),
    Sign(per_input=True),
    RMS(),
    ColumnNorm(),
    RowNorm(),
]
SHAPES = [(3, 6, 6), (3, 4, 9), (3, 9, 4)]


@pytest.mark.parametrize(("ball", "shape"), product(BALLS, SHAPES))
def test_duality(ball: NormBall, shape: tuple[int, ...]) -> None:
    b, x = torch.randn(2, *shape, dtype=torch.float64).float()
    d = ball.direction(b)
    torch.testing.assert_close((b * d).sum((1, 2)), ball.dual(b), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ball.norm(d), torch.ones(3), rtol=1e-4, atol=1e-5)
    # Hölder, and both norms are homogeneous.
    assert ((b * x).sum((1, 2)).abs() <= ball.dual(b) * ball.norm(x) * 1.0001).all()
    torch.testing.assert_close(ball.norm(-2 * x), 2 * ball.norm(x))
    torch.testing.assert_close(ball.dual(-2 * x), 2 * ball.dual(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ball", [*BALLS, Spectral()])
def test_no_direction_at_zero(ball: NormBall) -> None:
    zero = torch.zeros(1, 3, 5)
    if not isinstance(ball, Spectral) or ball.method == "newton_schulz":
        assert not ball.direction(zero).any()
    assert not ball.dual(zero).any()


def test_closed_forms() -> None:
    ball = Spectral("none", **EXACT)  # type: ignore[arg-type]
    u, v = torch.randn(5), torch.randn(7)
    torch.testing.assert_close(ball.dual(torch.outer(u, v)[None])[0], u.norm() * v.norm())
    q = torch.linalg.qr(torch.randn(6, 6))[0]
    torch.testing.assert_close(ball.dual(q[None]), torch.tensor([6.0]))
    x = torch.tensor([[[3.0, 0.0], [4.0, 1.0]]])
    assert Sign().dual(x).item() == 8
    assert Sign().norm(x).item() == 4
    assert Sign(per_input=True).dual(x).item() == 4
    assert ColumnNorm().norm(x).item() == 5
    assert ColumnNorm().dual(x).item() == 6
    assert RowNorm().dual(x).item() == pytest.approx(3 + math.sqrt(17))
    assert RMS().norm(x).item() == pytest.approx(math.sqrt(26 / 4))


def test_factors_of_shape() -> None:
    shape = (1, 8, 2)
    assert Spectral("operator").scale(shape) == 2
    assert Spectral("muon").scale((1, 2, 8)) == 1
    assert Spectral("rms_adamw").scale(shape) == pytest.approx(0.2 * math.sqrt(8))


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz(shape: tuple[int, ...]) -> None:
    b = polar_factor(torch.randn(shape)) + 0.3 * torch.randn(shape)
    x = newton_schulz(b)
    values = torch.linalg.svdvals(x)
    assert values.min() > 0.65
    assert values.max() < 1.25
    # The same singular vectors: the product with the polar factor is symmetric, positive definite.
    torch.testing.assert_close(newton_schulz(b.mT), x.mT)
    torch.testing.assert_close(newton_schulz(b, dtype=torch.bfloat16), x, atol=0.05, rtol=0.05)
    torch.testing.assert_close(newton_schulz(torch.stack([b[0]]))[0], x[0])


def test_newton_schulz_agrees_with_torch() -> None:
    weights = torch.nn.Parameter(torch.zeros(6, 10))
    weights.grad = torch.randn(6, 10)
    torch.optim.Muon([weights], lr=1.0, weight_decay=0, nesterov=False, momentum=0).step()
    ours = newton_schulz(weights.grad[None], dtype=torch.bfloat16)
    torch.testing.assert_close(ours[0], -weights.detach(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("shape", [(3, 48, 48), (3, 32, 80), (3, 80, 32)])
def test_estimates_of_the_nuclear_norm(shape: tuple[int, ...]) -> None:
    b = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = Spectral(**EXACT).dual(b)  # type: ignore[arg-type]
    torch.testing.assert_close(
        Spectral(dual_method="lanczos").dual(b) / exact, torch.ones(3), atol=0.1, rtol=0
    )
    assert ((Spectral().dual(b) / exact - 0.88).abs() < 0.13).all()


def test_lanczos_is_exact_where_its_steps_exhaust_the_matrix() -> None:
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    torch.testing.assert_close(lanczos_nuclear_norm(3 * q[None]).item(), 18.0)
    assert lanczos_nuclear_norm(torch.zeros(1, 4, 4)).item() == 0


def test_iid_constant() -> None:
    """Quarter circle: the nuclear norm of N(0, 1) entries is about 8 / (3 pi) n^(3/2)."""
    ball = Spectral(**EXACT)  # type: ignore[arg-type]
    assert iid_dual(ball, (64, 64)) == pytest.approx(8 / (3 * math.pi) * 64**1.5, rel=0.02)
    assert iid_dual(ball, (64, 64)) == iid_dual(ball, (64, 64))


def test_flops() -> None:
    moves, noise = Spectral().flops((64, 256))
    assert moves == noise == 5 * (4 * 64**2 * 256 + 2 * 64**3)
    assert (
        Spectral(dual_method="lanczos").flops((512, 512))[1]
        < 0.06 * Spectral().flops((512, 512))[1]
    )
    assert Sign().flops((3, 4)) == (0, 0)
