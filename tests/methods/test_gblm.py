"""GBLM's scores against their formulas and limits, in float64."""

from __future__ import annotations

import doctest
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.methods import gblm
from repro.methods.gblm import SCORES, ScorePruner
from repro.toolbox.pruning import GradientNorms, InputMoments, LayerStatistics, Pattern

OUT, IN, N = 6, 8, 5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_the_docstring_shows_what_it_says() -> None:
    assert doctest.testmod(gblm).failed == 0


def some_layer(dtype: torch.dtype = torch.float64) -> tuple[Tensor, LayerStatistics]:
    w = torch.randn(OUT, IN, dtype=dtype)
    a, g = torch.rand(IN, dtype=dtype) + 0.1, torch.rand(OUT, IN, dtype=dtype) + 0.1
    return w, LayerStatistics(input_norm=a, gradient=g, sequences=N)


def test_each_score_is_its_formula() -> None:
    w, statistics = some_layer()
    a, g = statistics.input_norm, statistics.gradient
    assert g is not None
    formulas = {
        "magnitude": lambda i, j: abs(w[i, j]),
        "wanda": lambda i, j: abs(w[i, j]) * a[j],
        "gradient": lambda i, j: abs(w[i, j]) * 100 * g[i, j],
        "gblm": lambda i, j: abs(w[i, j]) * a[j] + abs(w[i, j]) * 100 * g[i, j],
        "gblm_inverse": lambda i, j: abs(w[i, j]) * a[j] / (100 * g[i, j] + 1e-8),
        "gradient_inverse": lambda i, j: abs(w[i, j]) / (100 * g[i, j] + 1e-8),
    }
    assert set(formulas) == set(SCORES)
    for name, formula in formulas.items():
        expected = [[float(formula(i, j)) for j in range(IN)] for i in range(OUT)]
        found = ScorePruner(name).scores(w, statistics)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_inverse_scores_without_a_gradient_are_large_and_positive() -> None:
    """1e8 times what they would be with a gradient of 1."""
    w, statistics = some_layer()
    for name, factor in (("gblm_inverse", statistics.input_norm), ("gradient_inverse", 1.0)):
        nothing = LayerStatistics(statistics.input_norm, gradient=torch.zeros_like(w))
        torch.testing.assert_close(ScorePruner(name).scores(w, nothing), 1e8 * w.abs() * factor)


@pytest.mark.parametrize(("norm", "factor"), [("l1", N), ("l2", N**0.5)])
def test_the_mean_over_sequences_divides_alpha(norm: Any, factor: float) -> None:
    w, statistics = some_layer()
    mean = ScorePruner(alpha=100.0, grad_norm=norm, grad_reduce="mean")
    total = ScorePruner(alpha=100.0 / factor, grad_norm=norm)
    torch.testing.assert_close(mean.scores(w, statistics), total.scores(w, statistics))


def test_limits_of_alpha_are_wanda_and_gradient() -> None:
    w, statistics = some_layer(torch.float32)
    for pattern in (Pattern(0.5), Pattern(0.7), Pattern("2:4")):
        masks = {
            name: pruner(w, statistics, pattern) == 0
            for name, pruner in {
                "wanda": ScorePruner("wanda"),
                "zero": ScorePruner("gblm", alpha=0.0),
                "gradient": ScorePruner("gradient"),
                "large": ScorePruner("gblm", alpha=1e9),
            }.items()
        }
        assert torch.equal(masks["zero"], masks["wanda"])
        assert torch.equal(masks["large"], masks["gradient"])


def test_equal_inputs_make_wanda_magnitude_by_rows() -> None:
    w, statistics = some_layer()
    statistics.input_norm[:] = 0.25  # a power of two: products are exact
    wanda = ScorePruner("wanda")(w, statistics, Pattern(0.5))
    assert torch.equal(wanda, ScorePruner("magnitude")(w, statistics, Pattern(0.5)))


def test_scaling_a_row_leaves_the_mask() -> None:
    w, statistics = some_layer()
    before = ScorePruner("gblm")(w, statistics, Pattern(0.5)) == 0
    scaled = w * torch.tensor([2.0, 4.0, 0.5, 8.0, 1.0, 0.25], dtype=w.dtype)[:, None]
    assert statistics.gradient is not None
    # The loss does not change if what comes after undoes the scale: gradients shrink in turn.
    shrunk = LayerStatistics(statistics.input_norm, gradient=statistics.gradient * w / scaled)
    gradient = ScorePruner("gradient")
    torch.testing.assert_close(gradient.scores(scaled, shrunk), gradient.scores(w, statistics))
    assert torch.equal(ScorePruner("gblm")(scaled, statistics, Pattern(0.5)) == 0, before)


def test_a_regression_has_the_gradient_of_the_textbook_and_a_silent_input_goes_first() -> None:
    layer = nn.Linear(IN, 1, bias=False).double()
    x, y = torch.randn(N, IN, dtype=torch.float64), torch.randn(N, 1, dtype=torch.float64)
    x[:, 3] = 0
    with GradientNorms(layer, {"w": layer}) as gradients, InputMoments({"w": layer}) as moments:
        (layer(x) - y).square().sum().backward()
    with torch.no_grad():
        expected = (2 * (layer(x) - y) * x).abs().sum(0)
    torch.testing.assert_close(gradients.norm("w")[0], expected)
    statistics = moments.of("w", gradients.norm("w"))
    assert statistics.input_norm[3] == 0
    pruned = ScorePruner("gblm")(layer.weight.data, statistics, Pattern(1 / IN))
    assert torch.nonzero(pruned == 0)[:, 1].tolist() == [3]


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"score": "wnda"}, "Did you mean 'wanda'"),
        ({"grad_norm": "l3"}, "grad_norm is l1 or l2, not 'l3'"),
        ({"grad_reduce": "max"}, "grad_reduce is sum or mean"),
        ({"group": "column"}, "group is row, matrix or row_share"),
        ({"alpha": -1.0}, "alpha is at least 0"),
    ],
)
def test_a_bad_knob_is_one_line(knobs: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ScorePruner(**knobs)  # type: ignore[arg-type]


def test_a_score_of_gradients_needs_them() -> None:
    with pytest.raises(UserError, match="needs gradients"):
        ScorePruner().scores(torch.rand(2, 2), LayerStatistics(torch.rand(2)))


def test_the_saliency_with_a_first_order_term_orders_removals() -> None:
    """Of the theory behind the score: δ = -H⁻¹(g + λ e_m) is the best change that removes w_m."""
    size = 5
    root = torch.randn(size, size, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(size, dtype=torch.float64)
    g, w = torch.randn(size, dtype=torch.float64), torch.randn(size, dtype=torch.float64)
    inverse = hessian.inverse()
    saliency = (w - inverse @ g) ** 2 / (2 * inverse.diagonal()) - 0.5 * g @ inverse @ g
    for m in range(size):
        free = [i for i in range(size) if i != m]
        fixed = torch.zeros(size, dtype=torch.float64)
        fixed[m] = -w[m]
        delta = fixed.clone()
        delta[free] = -torch.linalg.solve(hessian[free][:, free], g[free] + (hessian @ fixed)[free])
        cost = g @ delta + 0.5 * delta @ hessian @ delta
        torch.testing.assert_close(saliency[m], cost)
    # With a diagonal H: ½ H (w - g/H)² - Σ g²/(2H), i.e. Wanda's term, and a first-order one.
    diagonal = hessian.diagonal()
    expected = 0.5 * diagonal * w**2 - g * w + 0.5 * g**2 / diagonal
    torch.testing.assert_close((w - g / diagonal) ** 2 * diagonal / 2, expected)
    assert all(a <= b for a, b in pairwise(saliency[saliency.argsort()]))
