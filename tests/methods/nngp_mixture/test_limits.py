"""Finite networks: drawn cheaply and in full, trained on weights and in function space."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from repro.errors import UserError
from repro.methods.nngp_mixture import (
    FixedScale,
    InverseGamma,
    LastLayerDescent,
    NNGPKernel,
    WideNetworks,
    draw_features,
    heavy_tailed_readout,
    mixture_limit,
    trained_limit,
)

X = torch.linspace(-2, 2, 4, dtype=torch.float64)[:, None]
Y = torch.sin(X[:3, 0])
PRIOR = InverseGamma(2.0, 2.0)


def erf(depth: int = 2) -> NNGPKernel:
    return NNGPKernel(depth=depth, act="erf", w_std=1.5, b_std=0.3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawn_features_have_the_law_of_drawn_weights() -> None:
    """Also far from the limit: two units a layer."""
    cheap = draw_features(X, erf(), 2, 20_000, seeded())
    networks = WideNetworks(erf(), 1, 2, 20_000, FixedScale(), seeded(1))
    with torch.no_grad():
        outputs = networks(X)
    v = torch.randn(20_000, 2, 1, generator=seeded(2), dtype=torch.float64)
    drawn = (cheap @ v)[..., 0] / math.sqrt(2)
    for point in range(len(X)):
        assert stats.ks_2samp(drawn[:, point], outputs[:, point]).pvalue > 1e-3
    torch.testing.assert_close(np.cov(drawn.T), np.cov(outputs.T), atol=0.02, rtol=0)


def test_finite_networks_are_what_their_weights_say() -> None:
    kernel = NNGPKernel(depth=2, act="relu", w_std=3.0, b_std=0.5)
    networks = WideNetworks(kernel, 4, 2, 1, FixedScale(8.0), seeded())
    values = (1.0, 2.0, 4.0, 6.0, 0.25)  # of all weights or biases, layer by layer
    with torch.no_grad():
        for parameter, value in zip(
            [*networks.weights, *networks.biases, networks.readout], values, strict=True
        ):
            parameter.fill_(value)
        first = 3 / math.sqrt(4) * (1 + 2 + 3 + 4) * 1 + 0.5 * 4
        second = 3 / math.sqrt(2) * 2 * first * 2 + 0.5 * 6
        out = float(networks(torch.tensor([[1.0, 2, 3, 4]]).double()))
    assert out == pytest.approx(math.sqrt(8 / 2) * 2 * second * 0.25)


def test_wide_features_have_the_kernel() -> None:
    two = torch.cat([X, X.cos()], 1)
    phi = draw_features(two, erf(depth=3), 4096, 4, seeded())
    measured = (phi @ phi.mT).mean(0) / 4096
    torch.testing.assert_close(measured, erf(depth=3)(two).detach(), atol=0.02, rtol=0)


def test_the_prior_of_wide_networks_is_students() -> None:
    networks = WideNetworks(erf(), 1, 64, 4000, PRIOR, seeded())
    with torch.no_grad():
        f = networks(X)[:, 3]
    limit = mixture_limit(torch.zeros(()), erf()(X).detach()[3, 3], PRIOR)
    statistic = stats.kstest(f.numpy(), lambda z: limit.cdf(torch.from_numpy(z)).numpy()).statistic
    assert statistic < 1.63 / math.sqrt(4000)
    assert limit.df == 4


def test_descent_in_function_space_is_descent_on_the_weights() -> None:
    phi = draw_features(X, erf(), 8, 5, seeded())
    scale = PRIOR.sample((5,), seeded(1))
    descent = LastLayerDescent(phi, Y, scale, 1.0, seeded(2))
    v = torch.randn(5, 8, 1, generator=seeded(2), dtype=torch.float64)
    v.requires_grad_()

    def outputs() -> torch.Tensor:
        return (scale / 8).sqrt()[:, None] * (phi @ v)[..., 0]

    torch.testing.assert_close(descent.outputs, outputs().detach())
    for _ in range(3):
        loss = 0.5 * (outputs()[:, :3] - Y).square().sum()
        (gradient,) = torch.autograd.grad(loss, v)
        with torch.no_grad():
            v -= (descent.step_size / scale[:, None])[..., None] * gradient
        descent.step()
        torch.testing.assert_close(descent.outputs, outputs().detach())


def test_trained_last_layers_tend_to_students_of_the_prior_not_the_posterior() -> None:
    kernel = NNGPKernel(depth=2, act="erf", w_std=3.0, b_std=0.3)
    phi = draw_features(X, kernel, 256, 3000, seeded())
    descent = LastLayerDescent(phi, Y, PRIOR.sample((3000,), seeded(1)), 1.0, seeded(2))
    assert float(descent.step(400)) < 1e-6
    f = descent.outputs[:, 3].numpy()
    mean, cov = trained_limit(kernel(X).detach(), Y)
    limit = mixture_limit(mean[0], cov[0, 0], PRIOR)
    law = stats.t(limit.df, limit.mean, limit.scale)
    assert stats.kstest(f, law.cdf).statistic < 0.04
    posterior = stats.t(limit.df + 3, limit.mean, limit.scale / 2)
    assert stats.kstest(f, posterior.cdf).statistic > 0.08


def test_trained_limits_in_the_cases_that_are_known() -> None:
    K, theta = (each.detach() for each in erf().tangent(X))
    mean, cov = trained_limit(K, Y)
    inverse = torch.linalg.inv(K[:3, :3])
    torch.testing.assert_close(mean, K[3:, :3] @ inverse @ Y)
    torch.testing.assert_close(cov, K[3:, 3:] - K[3:, :3] @ inverse @ K[:3, 3:])
    torch.testing.assert_close(trained_limit(K, Y, 3 * K)[1], cov)
    damped = K[3:, :3] @ torch.linalg.solve(K[:3, :3] + 0.3 * torch.eye(3), Y)
    torch.testing.assert_close(trained_limit(K, Y, noise=0.3)[0], damped)
    _, lazy = trained_limit(K, Y, theta)
    assert float(lazy) >= float(cov) - 1e-12  # the posterior's is the least of all
    # The limit of f_*(∞) = f_* + Θ_*ᵀΘ⁻¹(y − f) over draws of f ~ GP(0, K).
    f = torch.linalg.cholesky(K) @ torch.randn(4, 50_000, generator=seeded(), dtype=K.dtype)
    T = theta[3, :3] @ torch.linalg.inv(theta[:3, :3])
    ends = f[3] + T @ (Y[:, None] - f[:3])
    assert float(ends.mean()) == pytest.approx(float(T @ Y), abs=0.01)
    assert float(ends.var()) == pytest.approx(float(lazy), rel=0.02)


def test_readout_is_scaled_by_a_draw_of_the_prior() -> None:
    layer = torch.nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    sigma = heavy_tailed_readout(layer, PRIOR, seeded())
    torch.testing.assert_close(layer.weight.detach(), sigma * before)
    assert heavy_tailed_readout(layer, FixedScale(4.0)) == 2.0


def test_bad_options_say_so() -> None:
    with pytest.raises(UserError, match="plain dense"):
        draw_features(X, NNGPKernel(residual=True), 4, 2, seeded())
    with pytest.raises(UserError, match="width is a whole number of at least 1"):
        draw_features(X, erf(), 0, 2, seeded())
    with pytest.raises(UserError, match="plain dense"):
        WideNetworks(NNGPKernel(kind="conv"), 1, 4, 2, PRIOR, seeded())
    with pytest.raises(UserError, match="plain dense"):
        NNGPKernel(kind="conv").tangent(X)
    with pytest.raises(UserError, match=r"rate lies in \(0, 2\)"):
        LastLayerDescent(draw_features(X, erf(), 2, 2, seeded()), Y, torch.ones(2), 2.0, seeded())
