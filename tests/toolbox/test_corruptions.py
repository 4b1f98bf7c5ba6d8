"""Gaussian blur against SciPy, and its limits."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from repro.errors import UserError
from repro.toolbox import corruptions
from repro.toolbox.corruptions import GaussianBlur, gaussian_kernel, shifted


def test_the_docstring_holds() -> None:
    assert doctest.testmod(corruptions).failed == 0


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5, 9.0])
def test_it_is_scipys_filter(sigma: float) -> None:
    """Also where the kernel is wider than the picture."""
    x = torch.rand(2, 3, 12, 20, dtype=torch.float64)
    got = GaussianBlur(sigma, radius=3.0)(None, x, None)
    radius = int(np.ceil(3 * sigma))
    expected = gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="reflect", radius=radius)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


def test_its_limits() -> None:
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(GaussianBlur(0)(None, x, None), x)
    constant = torch.full_like(x, 0.3)
    torch.testing.assert_close(GaussianBlur(3)(None, constant, None), constant)
    assert float(gaussian_kernel(1.7, 7).sum()) == pytest.approx(1)


def test_one_after_the_other_adds_variances() -> None:
    """In the interior, where nothing is mirrored."""
    x = torch.zeros(1, 1, 81, 81, dtype=torch.float64)
    x[..., 40, 40] = 1
    twice = GaussianBlur(4, radius=6)(None, GaussianBlur(3, radius=6)(None, x, None), None)
    torch.testing.assert_close(twice, GaussianBlur(5, radius=6)(None, x, None), atol=1e-6, rtol=0)


def test_sigma_goes_with_the_side() -> None:
    x = torch.rand(1, 1, 64, 64)
    assert torch.equal(GaussianBlur(2, side=32)(None, x, None), GaussianBlur(4)(None, x, None))


def test_bad_knobs_are_one_line() -> None:
    with pytest.raises(UserError, match="sigma is at least 0"):
        GaussianBlur(-1.0)
    with pytest.raises(UserError, match="side is a whole number of at least 1 or null"):
        GaussianBlur(1.0, side=0)


def test_shifts_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(32.0).view(2, 1, 4, 4)
    assert torch.equal(
        shifted(x, "roll", 1, generator)[0, 0, 0], torch.tensor([3.0, 0.0, 1.0, 2.0])
    )
    struck = shifted(x.expand(500, 2, 1, 4, 4).flatten(0, 1), "impulse", 0.2, generator)
    changed = (struck != x.repeat(500, 1, 1, 1)).double().mean()
    assert float(changed) == pytest.approx(0.2, abs=0.02)
    assert set(struck[struck != x.repeat(500, 1, 1, 1)].tolist()) <= {0.0, 31.0}
    assert float(shifted(x, "blur", 3, generator)[0, 0, 1, 1]) == pytest.approx(5.0)
