"""SparseGPT against optimal brain surgeon by brute force, on layers of a few weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from repro.errors import UserError
from repro.toolbox.pruning import LayerStatistics, Pattern, SparseGPT, lowest, sparsegpt

OUT, IN = 5, 12


@pytest.fixture
def layer() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, IN, generator=generator, dtype=torch.float64)
    x[:, 1] += 0.9 * x[:, 0]  # correlated inputs: what goes can be made up for
    x[:, 5] -= 0.8 * x[:, 3]
    w = torch.randn(OUT, IN, generator=generator, dtype=torch.float64)
    return w, x.T @ x


def damped(hessian: Tensor, damping: float = 0.01) -> Tensor:
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian))


def brute_force(w: Tensor, hessian: Tensor, pattern: Pattern, block: int) -> Tensor:
    """Column after column: what is pruned goes to zero, and the later columns solve for the best.

    Every step solves the normal equations of its own constrained problem; no factor is shared.
    """
    w = w.clone()
    columns = len(hessian)
    goes = torch.zeros_like(w, dtype=torch.bool)

    def worth(some: range) -> Tensor:
        curvature = [1 / hessian[j:, j:].inverse()[0, 0] for j in some]
        return w[:, list(some)].square() * torch.stack(curvature)  # twice what the loss rises by

    for j in range(columns):
        if not pattern.is_grouped and j % block == 0:
            some = range(j, min(j + block, columns))
            goes[:, some.start : some.stop] = lowest(worth(some).square(), pattern, "matrix")
        if pattern.is_grouped and j % pattern.m == 0:
            goes[:, j : j + pattern.m] = lowest(worth(range(j, j + pattern.m)), pattern)
        for row in range(len(w)):
            if not goes[row, j]:
                continue
            gone = -w[row, j]
            later = list(range(j + 1, columns))
            if later:
                w[row, later] += torch.linalg.solve(
                    hessian[later][:, later], -hessian[later, j] * gone
                )
            w[row, j] = 0
    return w


@pytest.mark.parametrize("block", [4, 128])
@pytest.mark.parametrize("text", [0.3, 0.5, 0.75, "2:4", "1:2"])
def test_equals_brute_force(layer: tuple[Tensor, Tensor], text: float | str, block: int) -> None:
    w, hessian = layer
    found = sparsegpt(w, hessian, Pattern(text), block)
    expected = brute_force(w, damped(hessian), Pattern(text), block)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    assert torch.equal(found == 0, expected == 0)


def test_for_leading_columns_it_is_the_joint_optimum(layer: tuple[Tensor, Tensor]) -> None:
    """Where the first columns go and all others stay, no order is left to matter."""
    w, hessian = layer
    # The first three columns of the inputs hardly matter, so they are what goes.
    small = torch.ones(IN, dtype=torch.float64)
    small[:3] = 1e-3
    hessian = small[:, None] * hessian * small
    found = sparsegpt(w, hessian, Pattern((OUT * 3 - 1) / (OUT * IN)), damping=1e-9)
    assert (found[:, :3] == 0).all()
    assert (found[:, 3:] != 0).all()
    h = damped(hessian, 1e-9)
    best = w[:, 3:] + torch.linalg.solve(h[3:, 3:], h[3:, :3] @ w[:, :3].T).T
    torch.testing.assert_close(found[:, 3:], best)


def test_it_beats_the_same_mask_without_update(layer: tuple[Tensor, Tensor]) -> None:
    w, hessian = layer
    found = sparsegpt(w, hessian, Pattern(0.5))
    errors = [torch.einsum("oi,ij,oj->", d, hessian, d) for d in (found - w, w * (found != 0) - w)]
    assert errors[0] < 0.9 * errors[1]


def test_nothing_goes_at_zero(layer: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(sparsegpt(*layer, Pattern(0)), layer[0])


@pytest.mark.parametrize("block", [4, 128])
def test_with_unrelated_inputs_it_is_magnitude_in_blocks(
    layer: tuple[Tensor, Tensor], block: int
) -> None:
    w = layer[0]
    found = sparsegpt(w, 3.0 * torch.eye(IN, dtype=torch.float64), Pattern(0.5), block)
    for part, original in zip(found.split(block, 1), w.split(block, 1), strict=True):
        kept = original.masked_fill(lowest(original.abs(), Pattern(0.5), "matrix"), 0)
        torch.testing.assert_close(part, kept)


def test_silent_inputs_lose_their_weights_and_types_stay(layer: tuple[Tensor, Tensor]) -> None:
    w, hessian = layer
    hessian[4] = hessian[:, 4] = 0
    found = sparsegpt(w.bfloat16(), hessian.float(), Pattern("2:4"))
    assert found.dtype == torch.bfloat16
    assert (found[:, 4] == 0).all()
    assert hessian[4, 4] == 0  # the caller's own stays


def test_n_of_m_has_n_zeros_in_every_group(layer: tuple[Tensor, Tensor]) -> None:
    found = SparseGPT()(layer[0], LayerStatistics(layer[1].diagonal(), layer[1]), Pattern("2:4"))
    assert ((found == 0).unflatten(1, (-1, 4)).sum(2) == 2).all()


def test_what_cannot_be_done_is_one_line(layer: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        sparsegpt(*layer, Pattern("2:4"), block=6)
    with pytest.raises(UserError, match="groups of 5; a layer has 12"):
        sparsegpt(*layer, Pattern("2:5"), block=5)
    with pytest.raises(UserError, match="block is a whole number of at least 1"):
        SparseGPT(block=0)
    with pytest.raises(UserError, match=r"raise method\.damping"):
        sparsegpt(layer[0], -layer[1], Pattern(0.5))
