"""The mapping's gradients: against autograd, against their formulas, and where they lead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from repro.methods.jlcm import kernel_table, mapped, start_logits
from repro.methods.jlcm.mapping import Kernel

KERNELS: list[Kernel] = ["inv", "exp", "near", "sign", "lin", "random"]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(kernel: Kernel) -> tuple[Tensor, ...]:
    """Logits, tables, groups, the loss's gradient, and both gradients of the mapping."""
    logits = seeded(6, 5, 4).requires_grad_()
    tables = seeded(3, 4, seed=1).sort(1).values.requires_grad_()
    groups, g = torch.tensor([0, 1, 2, 0, 1, 2]), seeded(6, 5, seed=2)
    out = mapped(logits, tables, groups, kernel)
    to_logits, to_tables = torch.autograd.grad(out, (logits, tables), g)
    return logits.detach(), tables.detach(), groups, g, to_logits, to_tables


def test_the_codebooks_gradient_is_autograds() -> None:
    logits, tables, groups, g, _, found = gradients("inv")
    tables.requires_grad_()
    values = tables[groups].gather(1, logits.argmax(-1))
    torch.testing.assert_close(mapped(logits, tables, groups), values)
    torch.testing.assert_close(found, torch.autograd.grad(values, tables, g)[0])


def test_the_soft_kernel_is_autograd_through_the_relaxed_weight() -> None:
    logits, tables, groups, g, found, _ = gradients("soft")
    logits.requires_grad_()
    relaxed = (logits.softmax(-1) * tables[groups][:, None]).sum(-1)
    torch.testing.assert_close(found, torch.autograd.grad(relaxed, logits, g)[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_against_their_formulas(kernel: Kernel) -> None:
    logits, tables, groups, g, found, _ = gradients(kernel)
    codes = logits.argmax(-1)
    for i in range(6):
        book = tables[groups[i]]
        gap = float(book[-1] - book[0]) / 3
        for j in range(5):
            for level in range(4):
                d = float(book[level] - book[codes[i, j]])
                steps = abs(level - int(codes[i, j]))
                sign = (d > 0) - (d < 0)
                if kernel == "random":
                    assert float(found[i, j, level]) * sign * float(g[i, j].sign()) >= 0
                    assert abs(found[i, j, level]) <= 2 * gap * abs(g[i, j]) * (d != 0)
                    continue
                size = {
                    "inv": gap**2 / abs(d) if d else 0.0,
                    "exp": gap * torch.tensor(-abs(d) / gap).exp().item(),
                    "near": gap * (steps == 1),
                    "sign": gap,
                    "lin": abs(d),
                }[kernel]
                expected = float(g[i, j]) * sign * size
                assert float(found[i, j, level]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kernel", ["inv", "exp"])
def test_proximal_kernels_decrease_and_the_natural_one_grows(kernel: Kernel) -> None:
    tables = torch.tensor([[-2.0, -0.5, 0.0, 0.3, 1.0, 4.0]])
    for found, rises in (
        (kernel_table(tables, kernel), False),
        (kernel_table(tables, "lin"), True),
    ):
        for m in range(6):
            above, below = found[0, m, m + 1 :], -found[0, m, :m].flip(0)
            for pull in (above, below):
                assert (pull > 0).all()
                assert (pull.diff() > 0).all() if rises else (pull.diff() < 0).all()
            assert found[0, m, m] == 0
    uniform = torch.arange(5.0)[None]
    inverse, linear = kernel_table(uniform, "inv"), kernel_table(uniform, "lin")
    assert torch.equal(inverse[0].diagonal(1), linear[0].diagonal(1))  # alike at the mean gap


def test_random_pulls_are_a_mean_gap_on_average_and_two_at_most() -> None:
    size = kernel_table(torch.arange(0.0, 192, 3)[None], "random", torch.Generator().manual_seed(0))
    drawn = size.abs()[size != 0]
    assert float(drawn.mean()) == pytest.approx(3, rel=0.05)
    assert float(drawn.max()) == pytest.approx(2 * 3, rel=0.01)


def test_equal_values_pull_nothing() -> None:
    tables = torch.tensor([[0.0, 1.0, 1.0, 3.0]])
    for kernel in KERNELS:
        found = kernel_table(tables, kernel)
        assert found.isfinite().all()
        assert found[0, 1, 2] == 0


def visited(kernel: Kernel, values: Tensor, lr: float = 0.05, steps: int = 100) -> list[int]:
    """The codes that one weight passes whose loss wants it larger, from code 0."""
    logits = start_logits(torch.zeros(1, 1), torch.zeros(1, 1).long(), values[None], "onehot", 1.0)
    logits.requires_grad_()
    optimizer = torch.optim.SGD([logits], lr)
    codes = [0]
    for _ in range(steps):
        optimizer.zero_grad()
        mapped(logits, values[None], torch.tensor([0]), kernel).backward(-torch.ones(1, 1))
        optimizer.step()
        code = int(logits.argmax())
        if code != codes[-1]:
            codes.append(code)
    return codes


def test_an_index_climbs_to_its_neighbour_or_jumps_to_the_end() -> None:
    values = torch.arange(6.0)
    assert visited("inv", values)[:2] == [0, 1]
    assert visited("exp", values)[:2] == [0, 1]
    assert visited("near", values)[:3] == [0, 1, 2]
    assert visited("lin", values)[:2] == [0, 5]


def test_with_two_values_the_kernels_differ_by_a_rate() -> None:
    """One other value: ``inv`` and ``lin`` pull alike once rates make up for ``δ̄²/d`` and d."""
    values = torch.tensor([[0.0, 0.5], [1.0, 4.0]])
    torch.testing.assert_close(kernel_table(values, "inv"), kernel_table(values, "lin"))


@pytest.mark.parametrize("start", ["onehot", "distance"])
def test_first_logits_have_the_codes_at_their_largest(start: str) -> None:
    tables = seeded(3, 4).sort(1).values
    weight = seeded(3, 9, seed=1)
    codes = (weight[..., None] - tables[:, None]).abs().argmin(-1)
    logits = start_logits(weight, codes, tables, start, 0.5)  # type: ignore[arg-type]
    assert torch.equal(logits.argmax(-1), codes)
    if start == "onehot":
        assert logits.amax() == 0.5
    else:
        gap = (tables[:, -1] - tables[:, 0]) / 3
        expected = -(weight[0, 0] - tables[0, 2]).abs() / (0.5 * gap[0])
        torch.testing.assert_close(logits[0, 0, 2], expected)
