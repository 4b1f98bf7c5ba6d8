"""Random-matrix formulas against random matrices, and rates against quadratics."""

from __future__ import annotations

import doctest
import math

import pytest
import torch

import repro.methods.rmt_lr
from repro.knobs import KnobError
from repro.methods.rmt_lr import (
    batch_top,
    carried_rate,
    critical_batch,
    effective_batch,
    heavy_ball_optimum,
    max_rate,
    minimal_damping,
    shifted,
    theory,
)


def test_docstrings_run() -> None:
    for module in (repro.methods.rmt_lr, theory):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("spike", [0.5, 1.5, 2.0, 4.0, -3.0])
def test_extreme_eigenvalues_of_a_spiked_matrix(spike: float) -> None:
    torch.manual_seed(0)
    P, s = 800, 0.5
    G = torch.randn(P, P, dtype=torch.float64)
    A = (G + G.mT) * s / math.sqrt(2 * P)
    A[0, 0] += spike
    values = torch.linalg.eigvalsh(A)
    extreme = float(values[-1] if spike > 0 else values[0])
    assert extreme == pytest.approx(shifted(spike, s), abs=0.1)


def test_the_formula_has_no_step_at_the_transition_and_no_shift_without_noise() -> None:
    assert shifted(1 + 1e-9, 1) == pytest.approx(shifted(1 - 1e-9, 1)) == pytest.approx(2)
    assert shifted(3, 0) == 3
    assert shifted(-0.5, 1) == -2


def test_a_batch_of_all_data_has_no_noise() -> None:
    assert effective_batch(64, 64) == math.inf
    assert effective_batch(32, math.inf) == pytest.approx(32)
    assert batch_top(2.0, 5.0, effective_batch(64, 64)) == 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_limit_of_heavy_ball_on_a_quadratic(momentum: float) -> None:
    def ends(rate: float) -> float:
        w, velocity = 1.0, 0.0
        for _ in range(3000):
            velocity = momentum * velocity + 4.0 * w
            w -= rate * velocity
        return abs(w)

    limit = max_rate(4.0, momentum)
    assert ends(0.995 * limit) < 1e-6
    assert ends(1.005 * limit) > 1e2


def test_the_optimum_beats_its_neighbours_on_a_quadratic() -> None:
    def worst(rate: float, momentum: float) -> float:
        found = []
        for curvature in (9.0, 1.0):
            matrix = torch.tensor([[1 + momentum - rate * curvature, -momentum], [1.0, 0.0]])
            found.append(float(torch.linalg.eigvals(matrix).abs().max()))
        return max(found)

    rate, momentum = heavy_ball_optimum(9.0, 1.0)
    best = worst(rate, momentum)
    assert best == pytest.approx(math.sqrt(momentum), abs=1e-3)
    others = [(1.2 * rate, momentum), (rate / 1.2, momentum), (rate, 0.15), (rate, 0.4)]
    assert all(worst(*other) > best for other in others)


def test_the_rmt_rule_is_linear_below_the_critical_batch_and_flat_above() -> None:
    small = [carried_rate(0.1, 1, batch, "rmt", critical=1e6) for batch in (1, 2, 4)]
    assert small == pytest.approx([0.1, 0.2, 0.4], rel=1e-4)
    large = [carried_rate(0.1, 1e5, batch, "rmt", critical=10) for batch in (1e5, 1e6)]
    assert large == pytest.approx([0.1, 0.1], rel=1e-3)
    assert carried_rate(0.1, 32, 64, "rmt", critical=32, examples=64) == pytest.approx(0.15)
    with pytest.raises(KnobError, match="constant, root, linear or rmt"):
        carried_rate(0.1, 32, 64, "cubic")  # type: ignore[arg-type]


def test_damping_falls_as_the_batch_grows_and_rises_with_the_rate() -> None:
    noise = 100.0
    deltas = [minimal_damping(2.0, 1.0, noise, b) for b in (1, 2, 4)]
    assert deltas == pytest.approx([100, 50, 25])
    assert critical_batch(2.0, noise) == 25
    # At that damping the step in the batch's curvature is just stable.
    delta = minimal_damping(3.0, 1.0, noise, 8)
    assert 3.0 * batch_top(1.0, noise, 8) / (1.0 + delta) == pytest.approx(2)
