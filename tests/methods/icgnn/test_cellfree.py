"""The closed forms against simulated transmissions, hand calculations and an optimiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from repro.errors import UserError
from repro.methods.icgnn import CellFree, ClassicalPower, ascend_power, fractional_power


def network(beta, mask=None, antennas=1.0, pilots=None, limit=0.2, energy=1.0):
    beta = torch.as_tensor(beta, dtype=torch.float64)
    B, L, K = beta.shape
    return CellFree(
        beta,
        torch.ones(B, L, K, dtype=torch.bool) if mask is None else mask,
        torch.full((B, L), float(antennas), dtype=torch.float64),
        torch.full((B, L), limit, dtype=torch.float64),
        torch.full((B,), energy, dtype=torch.float64),
        torch.arange(K).expand(B, K) if pilots is None else torch.tensor([pilots]).expand(B, K),
    )


def test_one_access_point_and_one_user_by_hand():
    given = network([[[5.0]]], antennas=3)
    gamma = 5.0**2 / (5.0 + 1)
    sinr = 0.1 * 3 * gamma / (0.1 * 5.0 + 1)
    rate = given.rates(torch.tensor([[[0.1]]], dtype=torch.float64))
    assert rate.item() == pytest.approx(np.log2(1 + sinr))


def test_twice_the_antennas_double_the_power_of_the_signal():
    beta = torch.rand(1, 3, 2) * 10
    rho = torch.full((1, 3, 2), 0.1, dtype=torch.float64)
    few, many = (2 ** network(beta, antennas=n).rates(rho) - 1 for n in (2, 4))
    torch.testing.assert_close(many, 2 * few)


@pytest.mark.parametrize("pilots", [[0, 1, 2], [0, 1, 0]])
def test_the_closed_form_is_what_simulated_transmissions_reach(pilots):
    """The bound log2(1 + |E g_kk|² / (Σ E|g_ki|² − |E g_kk|² + 1)) with simulated estimates."""
    given = network([[[8.0, 2.0, 4.0], [1.0, 6.0, 3.0]]], antennas=2, pilots=pilots, energy=0.5)
    rho = torch.tensor([[[0.05, 0.1, 0.05], [0.02, 0.1, 0.08]]], dtype=torch.float64)
    draws, (L, K), N = 60_000, (2, 3), 2
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.complex128, generator=generator)  # noqa: E731
    beta, energy = given.beta[0], given.pilot_energy[0]
    h = beta.sqrt()[..., None] * normal(draws, L, K, N)
    shared = torch.tensor([[p == q for q in pilots] for p in pilots], dtype=torch.complex128)
    noise = normal(draws, L, 3, N)[:, :, torch.tensor(pilots)]
    heard = energy.sqrt() * torch.einsum("dlin,ik->dlkn", h, shared) + noise
    total = energy * beta @ shared.real + 1
    estimate = (energy.sqrt() * beta / total)[..., None] * heard
    gamma = energy * beta.square() / total
    torch.testing.assert_close(given.estimated()[0], gamma)
    W = (rho[0] / (N * gamma)).sqrt()[..., None] * estimate  # of power ρ on average
    reached = torch.einsum("dlkn,dlin->dki", h.conj(), W)
    signal = torch.diagonal(reached.mean(0)).abs().square()
    disturbance = reached.abs().square().mean(0).sum(1) - signal
    expected = torch.log2(1 + signal / (disturbance + 1))
    torch.testing.assert_close(given.rates(rho)[0], expected, rtol=0.02, atol=0)


def test_fractional_power_in_its_limits():
    beta = torch.tensor([[[1.0, 4.0, 9.0]]])
    mask = torch.tensor([[[True, True, False]]])
    equal = fractional_power(network(beta, mask), 0.0)
    torch.testing.assert_close(equal[0, 0], torch.tensor([0.1, 0.1, 0.0]).double())
    half = fractional_power(network(beta), 0.5)
    torch.testing.assert_close(half[0, 0], 0.2 * torch.tensor([1.0, 2.0, 3.0]).double() / 6)


def test_ascent_of_the_sum_gains_on_where_it_starts_and_matches_an_optimiser():
    generator = torch.Generator().manual_seed(0)
    given = network(20 * torch.rand(3, 4, 3, generator=generator) ** 2 + 0.1, antennas=2)
    reached = given.rates(ascend_power(given)).sum(1)
    assert (reached > given.rates(fractional_power(given, 0.5)).sum(1)).all()
    for b in range(2):
        single = CellFree(*(part[b : b + 1] for part in given))

        def loss(x, single=single):
            rho = torch.from_numpy(x).view(1, 4, 3).clamp(min=0).requires_grad_()
            rate = single.rates(rho).sum()
            rate.backward()
            assert rho.grad is not None
            return -rate.item(), -rho.grad.numpy().ravel()

        limits = {"type": "ineq", "fun": lambda x: 0.2 - x.reshape(4, 3).sum(1)}
        found = minimize(
            loss, np.full(12, 0.06), jac=True, bounds=[(1e-9, 0.2)] * 12, constraints=limits
        )
        assert reached[b].item() == pytest.approx(-found.fun, rel=0.01)


def test_max_min_of_one_access_point_is_the_closed_form():
    """With t as the common SINR, ρ_k = t (Pβ_k + 1) / (N γ_k), and the powers add up to P.

    More total power helps every user here, so P is the limit.
    """
    given = network([[[30.0, 10.0, 5.0]]], antennas=4)
    gamma = given.estimated()[0, 0]
    need = (0.2 * given.beta[0, 0] + 1) / (4 * gamma)
    common = torch.log2(1 + 0.2 / need.sum())
    rates = given.rates(ClassicalPower("max_min", steps=400, lr=0.1)(given))[0]
    torch.testing.assert_close(rates.amin(), common, rtol=0.01, atol=0)


def test_gradients_are_finite_where_links_are_missing():
    mask = torch.tensor([[[True, False], [False, False]]])
    rho = torch.zeros(1, 2, 2, dtype=torch.float64, requires_grad=True)
    network([[[1.0, 2.0], [3.0, 4.0]]], mask).rates(rho).sum().backward()
    assert rho.grad is not None
    assert rho.grad.isfinite().all()


def test_bad_knobs_are_refused():
    with pytest.raises(UserError, match="Did you mean 'fractional'"):
        ClassicalPower("fractionel")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="steps is a whole number"):
        ClassicalPower("ascent", steps=0)
