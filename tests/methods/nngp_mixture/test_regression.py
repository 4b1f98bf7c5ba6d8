"""Predictions and evidences against scipy, quadrature, identities and each other."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import repro.methods.nngp_mixture
from repro.errors import UserError
from repro.methods.nngp_mixture import (
    BurrXII,
    Fit,
    FixedScale,
    InverseGamma,
    LikeliestScale,
    MixturePredictive,
    NNGPKernel,
    Sampled,
    ScalePrior,
    StudentPredictive,
    TrainedProcess,
    burr_laws,
    condition,
    condition_all,
    condition_kernel,
    fixed_scales,
    sample_process,
)

N, M, NOISE = 12, 5, torch.tensor(0.3, dtype=torch.float64)


def problem() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N + M, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(N + M, generator=generator, dtype=torch.float64)
    return NNGPKernel(depth=2)(x).detach(), y


def fit() -> Fit:
    K, y = problem()
    return condition(K[:N, :N], K[:N, N:], K.diagonal()[N:], y[:N], NOISE)


def test_doctest() -> None:
    results = doctest.testmod(repro.methods.nngp_mixture)
    assert results.attempted > 10
    assert results.failed == 0


def test_one_eigendecomposition_equals_many_solves() -> None:
    K, y = problem()
    parts = (K[:N, :N], K[:N, N:], K.diagonal()[N:], y[:N])
    noises = torch.tensor([1e-3, 0.3, 10.0], dtype=torch.float64)
    together = condition_all(*parts, noises)
    for index, noise in enumerate(noises):
        alone, one = condition(*parts, noise), together[index]
        for name in ("mean", "variance", "quadratic", "logdet"):
            torch.testing.assert_close(getattr(one, name), getattr(alone, name))


def test_the_gaussian_case_is_the_textbook_and_scipy() -> None:
    K, y = problem()
    C = (K + NOISE * torch.eye(N + M)).numpy()
    inverse = np.linalg.inv(C[:N, :N])
    found = FixedScale().predict(fit())
    np.testing.assert_allclose(found.mean, C[N:, :N] @ inverse @ y[:N].numpy())
    cov = C[N:, N:] - C[N:, :N] @ inverse @ C[:N, N:]
    np.testing.assert_allclose(found.scale, np.sqrt(np.diag(cov)))
    expected = stats.multivariate_normal(cov=2.5 * C[:N, :N]).logpdf(y[:N])
    assert float(FixedScale(2.5).log_evidence(fit())) == pytest.approx(expected)
    np.testing.assert_allclose(
        FixedScale(2.5).predict(fit()).log_prob(y[N:]),
        stats.norm(found.mean, np.sqrt(2.5) * found.scale).logpdf(y[N:]),
    )


def test_student_evidence_equals_scipy_and_the_anchor() -> None:
    K, y = problem()
    C = K[:N, :N] + NOISE * torch.eye(N)
    for alpha, beta in ((2.0, 2.0), (0.5, 3.0)):
        expected = stats.multivariate_t(shape=beta / alpha * C.numpy(), df=2 * alpha).logpdf(y[:N])
        found = InverseGamma(alpha, beta).log_evidence(fit())
        assert float(found) == pytest.approx(expected)
    C = torch.tensor([[1.0, 0.3], [0.3, 2.0]], dtype=torch.float64)
    y = torch.tensor([0.5, -1.0], dtype=torch.float64)
    small = Fit(y, y, y @ torch.linalg.solve(C, y), torch.logdet(C), 2)
    assert float(InverseGamma(2.0, 3.0).log_evidence(small)) == pytest.approx(-3.004562, abs=1e-6)


def test_student_prediction_is_the_ratio_of_evidences() -> None:
    """log p(y, y_*) − log p(y) = log p(y_* | y): the mutations of ν, q and √ all break it."""
    K, y = problem()
    prior = InverseGamma(1.5, 0.7)
    for star in range(N, N + M):
        index = [*range(N), star]
        more = condition(K[index][:, index], K[:, :1][index], K[:1, 0], y[index], NOISE)
        joint = prior.log_evidence(more) - prior.log_evidence(fit())
        predicted = prior.predict(fit()).log_prob(y[N:])[star - N]
        assert float(joint) == pytest.approx(float(predicted))


def test_importance_sampling_converges_to_the_closed_form() -> None:
    _, y = problem()
    exact = InverseGamma(2.0, 2.0)
    sampled = Sampled(exact, samples=200_000)
    assert float(sampled.log_evidence(fit())) == pytest.approx(
        float(exact.log_evidence(fit())), abs=0.02
    )
    by_chance = sampled.predict(fit())
    torch.testing.assert_close(
        by_chance.log_prob(y[N:]), exact.predict(fit()).log_prob(y[N:]), atol=0.01, rtol=0
    )
    torch.testing.assert_close(
        by_chance.cdf(y[N:]), exact.predict(fit()).cdf(y[N:]), atol=0.01, rtol=0
    )
    assert isinstance(by_chance, MixturePredictive)
    assert 100 < float(by_chance.effective_samples) < sampled.samples


@pytest.mark.parametrize(
    ("prior", "law"),
    [
        (InverseGamma(2.0, 3.0), stats.invgamma(2.0, scale=3.0)),
        (BurrXII(1.5, 2.0, samples=100_000), stats.burr12(1.5, 2.0)),
    ],
)
def test_priors_follow_scipy_and_quadrature(prior: ScalePrior, law: stats.rv_continuous) -> None:
    draws = prior.sample((20_000,), torch.Generator().manual_seed(3))
    assert stats.kstest(draws.numpy(), law.cdf).statistic < 1.63 / math.sqrt(len(draws))
    done, K_y = fit(), problem()[1]

    def at(u: float) -> tuple[float, float]:
        s = torch.tensor(law.ppf(u))
        evidence = float(done.gaussian_evidence(s).exp())
        density = StudentPredictive(done.mean, (s * done.variance).sqrt()).log_prob(K_y[N:])
        return evidence, evidence * float(density[0].exp())

    grid = (np.arange(4000) + 0.5) / 4000
    evidence, joint = np.mean([at(u) for u in grid], axis=0)
    assert float(prior.log_evidence(done)) == pytest.approx(math.log(evidence), abs=0.02)
    predicted = prior.predict(done).log_prob(K_y[N:])[0]
    assert float(predicted) == pytest.approx(math.log(joint / evidence), abs=0.02)


def test_limits_of_the_mixture() -> None:
    _, y = problem()
    certain, gaussian = InverseGamma(1e7, 1e7), FixedScale()
    torch.testing.assert_close(
        certain.predict(fit()).log_prob(y[N:]), gaussian.predict(fit()).log_prob(y[N:]),
        atol=1e-5, rtol=0,
    )  # fmt: skip
    # β/α = c² is a readout of standard deviation c (kernel and noise alike).
    scaled = InverseGamma(1e7, 4e7).predict(fit()).scale
    torch.testing.assert_close(scaled, 2 * gaussian.predict(fit()).scale, rtol=1e-6, atol=0)
    best = LikeliestScale().log_evidence(fit())
    for scale in (0.5, 1.0, 2.0):
        assert best >= FixedScale(scale).log_evidence(fit())
    assert bool((InverseGamma(2, 2).predict(fit()).mean == gaussian.predict(fit()).mean).all())


def test_the_likeliest_scale_is_the_mean_square_of_whitened_targets() -> None:
    done, y = fit(), problem()[1]
    scale = np.sqrt(float(done.quadratic) / N * done.variance)
    nll = -stats.norm(done.mean, scale).logpdf(y[N:]).mean()
    assert float(LikeliestScale().predict(done).nll(y[N:])) == pytest.approx(nll)


def test_coverage_counts_central_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    y = InverseGamma(2.0, 2.0).sample((20_000,), generator).sqrt()
    y = y * torch.randn(len(y), generator=generator, dtype=torch.float64)
    law = StudentPredictive(torch.zeros(1), torch.ones(1), torch.tensor(4.0))
    assert float(law.coverage(y)) == pytest.approx(0.95, abs=0.006)
    assert float(law.coverage(y, 0.5)) == pytest.approx(0.5, abs=0.012)


def test_a_draw_of_the_process_shares_its_scale() -> None:
    prior, draws = InverseGamma(1.0, 1.0), 100_000
    generator = torch.Generator().manual_seed(0)

    def joint_excess(correlation: float, shared: bool) -> tuple[float, float]:
        K = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
        f = sample_process(K, prior, draws, generator, shared)
        far = f.abs() > 12  # about the last 1 % of t with 2 degrees of freedom
        return float((f[:, 0] - f[:, 1]).abs().median()), float(far[far[:, 0], 1].double().mean())

    difference, _ = joint_excess(0.9999, True)
    assert difference < 0.02
    _, dependent = joint_excess(0.0, True)
    _, independent = joint_excess(0.0, False)
    assert dependent > 0.2
    assert independent < 0.03
    K = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    f = sample_process(K, prior, draws, generator)
    statistic = stats.kstest(f[:, 0].numpy() / math.sqrt(2), stats.t(2).cdf).statistic
    assert statistic < 1.63 / math.sqrt(draws)


def test_evidence_has_gradients_for_every_parameter() -> None:
    K, y = problem()
    noise = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def evidence(noise: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        done = condition(K[:N, :N], K[:N, N:], K.diagonal()[N:], y[:N], noise)
        return InverseGamma(alpha, beta).log_evidence(done)

    assert torch.autograd.gradcheck(evidence, (noise, alpha, beta))


def test_bad_input_says_so() -> None:
    for make in (lambda: InverseGamma(-1.0), lambda: BurrXII(0.0), lambda: FixedScale(0.0)):
        with pytest.raises(UserError, match="is positive, not"):
            make()
    K = torch.ones(3, 3, dtype=torch.float64)
    with pytest.raises(UserError, match="raise the noise"):
        condition(K, K, K[0], K[0], torch.tensor(-1.0))
    with pytest.raises(UserError, match="no prior draw"):
        LikeliestScale().sample((1,))


@pytest.mark.parametrize("alpha", [None, 1.5])
def test_a_trained_process_descends_the_evidence_of_explicit_matrices(alpha: float | None) -> None:
    """Gaussian, or Student's t of 2α degrees of freedom and scale matrix (β/α) (K + ε)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N + M, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(N, generator=generator, dtype=torch.float64)
    process = TrainedProcess(NNGPKernel(depth=2), noise=0.3, alpha=alpha, beta=0.6).double()
    C = problem()[0][:N, :N].numpy() + 0.3 * np.eye(N)
    law = (
        stats.multivariate_normal(np.zeros(N), C)
        if alpha is None
        else stats.multivariate_t(np.zeros(N), 0.6 / alpha * C, df=2 * alpha)
    )
    loss = process.loss(x[:N], y)
    assert loss.item() == pytest.approx(-law.logpdf(y.numpy()) / N, rel=1e-5)
    loss.backward()
    trained = [p for p in process.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool((p.grad != 0).all()) for p in trained)
    predicted = process.fit(x[:N], y, x[N:])
    K = problem()[0]
    torch.testing.assert_close(
        predicted.mean, condition(K[:N, :N], K[:N, N:], K.diagonal()[N:], y, NOISE).mean
    )


def test_a_kernel_is_conditioned_at_one_noise_or_at_many() -> None:
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    parts = NNGPKernel(depth=2).requires_grad_(False), x[:6], y, x[6:]
    one, many = (condition_kernel(*parts, noise) for noise in (NOISE, NOISE[None]))
    torch.testing.assert_close(many.mean[0], one.mean)
    torch.testing.assert_close(many.variance[0], one.variance)


def test_lists_of_laws() -> None:
    assert fixed_scales([0.1, 3.0]) == [FixedScale(0.1), FixedScale(3.0)]
    pairs = [(1.0, 2.0), (1.0, 3.0), (2.0, 2.0), (2.0, 3.0)]
    assert burr_laws([1.0, 2.0], [2.0, 3.0]) == [BurrXII(c, d) for c, d in pairs]
