"""Measured fluctuations of batch Hessians against all batches of a small problem."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.methods.rmt_lr import HessianNoise, batch_top, effective_batch, hessian_noise
from repro.toolbox.linear_algebra.curvature import Curvature, Kind
from repro.toolbox.linear_algebra.lanczos import lanczos


def measured(B: int, seed: int = 0, kind: Kind = "hessian") -> tuple[HessianNoise, torch.Tensor]:
    """Noise at one batch size, and the batches' top eigenvalues less those of all data."""
    torch.manual_seed(seed)
    N, M = 512, 512 // B
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(N, 6, dtype=torch.float64), torch.randint(3, (N,))
    full = Curvature(net, [(x, y)], kind)
    P = full.size
    batches = Curvature(net, [(x.view(M, B, 6), y.view(M, B))], kind, theta=full.theta.expand(M, P))
    start = torch.randn(P, dtype=torch.float64)
    ritz = lanczos(full, start, 40)
    probes = torch.randn(4, P, dtype=torch.float64)
    noise = hessian_noise(full, batches, ritz.vectors(1)[0], probes, M, effective_batch(B, N))
    return noise, lanczos(batches, start.expand(M, P), 40).top - ritz.top


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_extremes_of_batches_lie_beyond_those_of_all_data(kind: Kind) -> None:
    """Jensen's inequality: of a mean over batches, whatever the network."""
    shifts = [measured(B, kind=kind)[1].mean() for B in (8, 32, 128)]
    assert shifts[0] > shifts[1] > shifts[2] > 0


def test_variances_times_the_effective_size_do_not_depend_on_the_batch() -> None:
    """With the finite-population factor: without it B = 128 of 512 would be a quarter short."""
    found = [sum(measured(B, seed)[0].total for seed in range(8)) / 8 for B in (8, 32, 128)]
    assert found[1:] == pytest.approx([found[0]] * 2, rel=0.12)


def test_first_order_terms_of_a_partition_cancel() -> None:
    noise, _ = measured(16)
    assert float(noise.first_order.mean()) == pytest.approx(0, abs=1e-12)
    along = effective_batch(16, 512) * float(noise.first_order.square().mean())
    assert noise.total == pytest.approx(noise.across + along)
    assert 0 < noise.isotropic < noise.total


def test_the_shift_is_of_the_size_that_the_spiked_model_says() -> None:
    """One outlier far from the rest: a quadratic whose curvature is known."""
    torch.manual_seed(0)
    M, B, P = 64, 16, 40
    v = torch.zeros(P, dtype=torch.float64)
    v[0] = 1.0
    H = torch.diag(10 * v)
    each = torch.randn(M * B, P, P, dtype=torch.float64)
    each = (each + each.mT) / 2
    each -= each.mean(0)
    eps = each.view(M, B, P, P).mean(1)
    noise = hessian_noise(
        H.mv,
        lambda q: ((H + eps) @ q.unsqueeze(-1)).squeeze(-1),
        v,
        torch.randn(8, P, dtype=torch.float64),
        M,
        b := effective_batch(B, M * B),
    )
    tops = torch.linalg.eigvalsh(H + eps)[:, -1]
    shift = float((tops - 10 - noise.first_order).mean())
    assert batch_top(10.0, noise.across, b) - 10 == pytest.approx(shift, rel=0.1)
    assert noise.isotropic == pytest.approx(noise.total, rel=0.15)  # entries alike: the model holds


def test_white_inputs_have_the_edge_of_marchenko_and_pastur() -> None:
    """Linear regression on few examples: the batch's curvature is a Wishart matrix.

    Its edge, (1 + sqrt(P/B))^2, is where the spiked Wigner model must not be expected to hold: as
    fluctuations around the identity it would have it at 1 + 2 sqrt(P/B).
    """
    torch.manual_seed(0)
    P, B = 400, 100
    batch = torch.randn(B, P, dtype=torch.float64), torch.randn(B, 1, dtype=torch.float64)
    net = nn.Linear(P, 1, bias=False).double()
    ggn = Curvature(net, [batch], "ggn", lambda z, y: F.mse_loss(z, y) / 2)
    top = float(lanczos(ggn, torch.randn(P, dtype=torch.float64), 60).top)
    assert top == pytest.approx((1 + math.sqrt(P / B)) ** 2, rel=0.05)
    assert top > 1.5 * (1 + 2 * math.sqrt(P / B))
