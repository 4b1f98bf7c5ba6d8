"""Intervals and scores by hand and by brute force; diagnostics against arviz's numbers."""

from __future__ import annotations

import pytest
import torch

from repro.methods.nn_potential_uq import (
    Interval,
    crps,
    effective_size,
    recalibration,
    rhat,
    within_between,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_interval_by_hand() -> None:
    interval = Interval.of(torch.tensor([[0.0, 1.0, 4.0], [2.0, 1.0, 8.0]]))
    assert interval.mean.tolist() == [1.0, 1.0, 6.0]
    assert interval.std.tolist() == [1.0, 0.0, 2.0]
    truth = torch.tensor([2.9, 1.5, 1.0])
    assert interval.coverage(truth) == pytest.approx(1 / 3)
    assert interval.error(truth) == pytest.approx((1.9 + 0.5 + 5) / 3)
    assert interval.width == pytest.approx(1.0)
    widths, overshoots = 2 * 1.959964 * 3, 0.5 + (5 - 2 * 1.959964)
    assert interval.score(truth) == pytest.approx((widths + 40 * overshoots) / 3, rel=1e-5)


def test_the_interval_score_is_least_for_the_right_width() -> None:
    """It is proper: wider and narrower intervals both lose."""
    truth = torch.randn(20000, generator=generator())
    scores = [
        Interval(torch.zeros(20000), torch.full((20000,), s)).score(truth) for s in (0.7, 1, 1.4)
    ]
    assert scores[1] < min(scores[0], scores[2])


def test_crps_by_brute_force() -> None:
    samples, truth = (
        torch.randn(9, 4, generator=generator()),
        torch.randn(4, generator=generator(1)),
    )
    pairs = (samples[:, None] - samples).abs().mean((0, 1))
    expected = (samples - truth).abs().mean(0) - pairs / 2
    assert crps(samples, truth) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert crps(truth.expand(5, 4), truth) == pytest.approx(0, abs=1e-6)


def test_variances_within_and_between_add_up() -> None:
    samples = (
        torch.randn(3, 8, 2, generator=generator()) + torch.tensor([0.0, 1.0, 5.0])[:, None, None]
    )
    within, between = within_between(samples)
    assert torch.allclose(within + between, samples.flatten(0, 1).var(0, correction=0), rtol=1e-5)
    assert (between > within).all()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_recalibration_undoes_a_wrong_width(factor: float) -> None:
    target = torch.randn(20000, generator=generator())
    variance = torch.full((20000,), factor**2)
    alpha = recalibration(torch.zeros(20000), variance, target, members=10000)
    assert alpha == pytest.approx(1 / factor, rel=0.02)


def test_diagnostics_are_those_of_arviz() -> None:
    """arviz-stats 0.8 on the same three chains of sixty draws."""
    t = torch.arange(60.0, dtype=torch.float64)
    chains = [
        torch.sin(0.9 * t) + t / 40,
        torch.cos(1.7 * t) - 0.3 * torch.sin(t * t),
        2 * torch.sin(2.3 * t),
    ]
    draws = torch.stack(chains)[..., None]
    assert float(rhat(draws)) == pytest.approx(1.0898015165145196, rel=1e-9)
    assert float(effective_size(draws)) == pytest.approx(104.51980650652236, rel=1e-9)


def test_diagnostics_of_chains_that_mix_and_of_chains_that_do_not() -> None:
    mixed = torch.randn(6, 100, 2, generator=generator())
    apart = mixed + torch.arange(6.0)[:, None, None]
    assert (rhat(mixed) < 1.03).all()
    assert (rhat(apart) > 1.5).all()
    assert (effective_size(mixed) > 400).all()
    assert (effective_size(apart) < 30).all()
