"""Precoders against formulas written out, limits, and conditions of optimality."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from repro.errors import UserError
from repro.methods.icgnn import (
    ClassicalPrecoder,
    Downlink,
    mrt,
    regularised_zero_forcing,
    structured_precoder,
    water_filling,
    wmmse,
    wmmse_path,
    zero_forcing,
)


def draw(*shape, seed=0, dtype=torch.complex128):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def snrs(B, value=10.0):
    return torch.full((B,), value, dtype=torch.float64)


def directions(W):
    """Columns of unit norm, whose first entry is positive."""
    return W / W.norm(dim=-2, keepdim=True) * (W[..., :1, :].abs() / W[..., :1, :])


@pytest.mark.parametrize(("N", "d"), [(1, 1), (2, 2), (3, 2)])
def test_rates_are_the_formula_user_by_user(N, d):
    B, K, M = 2, 3, 8
    cell = Downlink.of(draw(B, K, N, M), torch.tensor([3.0, 30.0]))
    W = draw(B, M, K * d, seed=1)
    rates = cell.rates(W)
    H, W = cell.H.numpy(), W.numpy()
    for b, k in itertools.product(range(B), range(K)):
        parts = [H[b, k] @ W[b, :, j * d : (j + 1) * d] for j in range(K)]
        noise = np.eye(N) / cell.snr[b].item()
        disturbed = noise + sum(parts[j] @ parts[j].conj().T for j in range(K) if j != k)
        gain = np.eye(d) + parts[k].conj().T @ np.linalg.inv(disturbed) @ parts[k]
        expected = np.log2(np.linalg.det(gain).real)
        assert rates[b, k].item() == pytest.approx(expected, rel=1e-9)


def test_equal_priorities_are_regularised_zero_forcing():
    H, K, snr = draw(4, 5, 7), 5, snrs(4)
    expected = H.mH @ torch.linalg.inv(H @ H.mH + K / snr[0] * torch.eye(K))
    W = regularised_zero_forcing(H, snr)
    torch.testing.assert_close(directions(W), directions(expected))
    torch.testing.assert_close(W.abs().square().sum(1), torch.full((4, K), 1 / K).double())


def test_no_noise_is_zero_forcing_and_much_noise_is_maximum_ratio():
    H = draw(3, 4, 6)
    quiet = regularised_zero_forcing(H, snrs(3, 1e12))
    reached = H @ quiet
    others = reached - torch.diag_embed(torch.diagonal(reached, dim1=1, dim2=2))
    assert others.abs().max() < 1e-9
    torch.testing.assert_close(directions(quiet), directions(zero_forcing(H, snrs(3))))
    loud = regularised_zero_forcing(H, snrs(3, 1e-12))
    torch.testing.assert_close(loud, mrt(H, snrs(3)), rtol=1e-6, atol=1e-9)


def test_push_through_gives_the_columns_of_the_large_inverse():
    B, K, M = 3, 4, 9
    H, snr = draw(B, K, M), snrs(B)
    priority = torch.rand(B, K, dtype=torch.float64).softmax(-1)
    power = torch.rand(B, K, dtype=torch.float64).softmax(-1)
    W = structured_precoder(H, snr, priority, power)
    large = torch.eye(M) / snr[0] + H.mH @ (priority[..., None] * H)
    torch.testing.assert_close(directions(W), directions(torch.linalg.solve(large, H.mH)))
    torch.testing.assert_close(W.abs().square().sum(-2), power)
    by_steps = structured_precoder(H, snr, priority, power, cg_steps=K + 2)
    torch.testing.assert_close(by_steps, W, rtol=1e-7, atol=1e-8)


def test_zero_forcing_nulls_and_water_filling_beats_equal_powers():
    H, snr = draw(50, 4, 5), snrs(50, 3.0)
    cell = Downlink.of(H, snr)
    W = zero_forcing(H, snr)
    reached = H @ W
    others = reached - torch.diag_embed(torch.diagonal(reached, dim1=1, dim2=2))
    assert others.abs().max() < 1e-12
    equal = cell.rates(zero_forcing(H, snr, waterfilling=False)).sum(1)
    assert (cell.rates(W).sum(1) >= equal - 1e-9).all()
    with pytest.raises(UserError, match="an antenna for every stream"):
        zero_forcing(draw(1, 5, 4), snrs(1))


def test_water_filling_is_what_an_optimiser_finds():
    gains = torch.tensor([[3.0, 1.0, 0.2], [0.5, 0.4, 0.1]], dtype=torch.float64)
    for g, power in zip(gains.numpy(), water_filling(gains), strict=True):
        found = minimize(
            lambda p, g=g: -np.log1p(g * p).sum(),
            np.full(3, 1 / 3),
            bounds=[(0, 1)] * 3,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        )
        np.testing.assert_allclose(power.numpy(), found.x, atol=1e-3)
        assert power.sum() == pytest.approx(1)


def test_a_single_user_gets_the_channel_capacity():
    H, snr = draw(5, 1, 4), snrs(5, 7.0)
    cell = Downlink.of(H, snr)
    capacity = torch.log2(1 + 7.0 * H.abs().square().sum((1, 2)))
    for W in (mrt(H, snr), regularised_zero_forcing(H, snr), wmmse(cell.H, snr, 3)):
        torch.testing.assert_close(cell.rates(W)[:, 0], capacity)


def test_wmmse_of_a_single_user_with_antennas_is_water_filling_over_singular_values():
    H, snr = draw(4, 1, 3, 5), snrs(4, 2.0)
    gain = snr[:, None] * torch.linalg.svdvals(H[:, 0]).square()
    capacity = torch.log2(1 + gain * water_filling(gain)).sum(1)
    cell = Downlink.of(H, snr)
    torch.testing.assert_close(cell.rates(wmmse(H, snr, 500))[:, 0], capacity, rtol=1e-3, atol=0)


@pytest.mark.parametrize("start", ["mrt", "rzf"])
@pytest.mark.parametrize("N", [1, 2])
def test_wmmse_never_loses(N, start):
    cell = Downlink.of(draw(20, 3, N, 6), snrs(20, 30.0))
    path = itertools.islice(wmmse_path(cell.H, cell.snr, start=start), 40)
    rates = torch.stack([cell.rates(W).sum(1) for W in path])
    assert (rates.diff(dim=0) > -1e-9).all()


def test_the_end_of_wmmse_is_stationary():
    """Where the gradient of the sum rate is parallel to W, no step along the sphere gains."""
    cell = Downlink.of(draw(4, 3, 4), snrs(4, 10.0))
    W = wmmse(cell.H, cell.snr, 3000).requires_grad_()
    cell.rates(W).sum().backward()
    assert W.grad is not None
    scale = torch.view_as_real(W.grad.conj() * W).sum((1, 2))[..., 0]
    along = scale[:, None, None] * W.detach()
    assert ((W.grad - along).abs().amax((1, 2)) < 1e-3 * W.grad.abs().amax((1, 2))).all()


@pytest.mark.parametrize("N", [1, 2])
def test_reduced_wmmse_has_the_same_iterates(N):
    H, snr = draw(3, 2, N, 7), snrs(3)
    torch.testing.assert_close(wmmse(H, snr, 9), wmmse(H, snr, 9, reduced=False))


def test_wmmse_makes_as_many_iterations_as_it_says():
    H, snr = draw(3, 2, 1, 7), snrs(3)
    third = next(itertools.islice(wmmse_path(H, snr), 2, None))
    torch.testing.assert_close(wmmse(H, snr, 3), third)


def test_antennas_that_hear_nothing_change_nothing():
    H, snr = draw(2, 3, 5), snrs(2)
    padded = torch.cat([H, torch.zeros(2, 3, 2, dtype=H.dtype)], dim=-1)
    for precoder in (mrt, zero_forcing, regularised_zero_forcing):
        W = precoder(padded, snr)
        torch.testing.assert_close(W[:, :5], precoder(H, snr))
        assert W[:, 5:].abs().max() == 0


def test_streams_keep_the_gram_matrix_of_each_user():
    cell = Downlink.of(draw(2, 3, 2, 8), snrs(2))
    streams = cell.streams().unflatten(1, (3, 2))
    torch.testing.assert_close(streams.mH @ streams, cell.H.mH @ cell.H)
    norms = streams.norm(dim=-1)
    assert (norms[..., 0] >= norms[..., 1]).all()


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"kind": "wmse"}, "Did you mean 'wmmse'"),
        ({"kind": "rzf", "cg_steps": 0}, "cg_steps is a whole number"),
        ({"kind": "wmmse", "iterations": 0}, "iterations is a whole number"),
        ({"kind": "rzf", "factor": 0}, "factor is positive"),
    ],
)
def test_bad_knobs_are_refused(knobs, complaint):
    with pytest.raises(UserError, match=complaint):
        ClassicalPrecoder(**knobs)
    with pytest.raises(UserError, match="start is mrt or rzf"):
        wmmse(draw(1, 2, 1, 3), snrs(1), start="zero")  # type: ignore[arg-type]
