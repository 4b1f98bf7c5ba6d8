"""Masks and statistics against their formulas, in float64 and by brute force."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.toolbox.method import Method
from repro.toolbox.pruning import (
    GradientNorms,
    InputMoments,
    Pattern,
    SparseGPT,
    column_structure,
    layers_of,
    lowest,
    patterns,
    structure,
)

OUT, IN, N, T = 6, 8, 5, 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(IN, OUT), nn.Tanh(), nn.Linear(OUT, 4)).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(N, T, IN, dtype=dtype), torch.randn(N, T, 4, dtype=dtype)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean((1, 2))


def one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradient of each sequence's loss, from a backward pass of its own: name -> (N, O, I)."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers_of(model)}
    for s in range(len(x)):
        model.zero_grad()
        losses(model, x[s : s + 1], y[s : s + 1]).sum().backward()
        for name, layer in layers_of(model).items():
            assert layer.weight.grad is not None
            found[name].append(layer.weight.grad.clone())
    model.zero_grad()
    return {name: torch.stack(each) for name, each in found.items()}


def collect(
    model: nn.Module, x: Tensor, y: Tensor, norm: Any = "l1", size: int = 2
) -> GradientNorms:
    with GradientNorms(model, layers_of(model), norm) as gradients:
        for a, b in zip(x.split(size), y.split(size), strict=True):
            losses(model, a, b).sum().backward()
    return gradients


def test_the_docstring_of_structure() -> None:
    assert doctest.testmod(structure).failed == 0


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("size", [1, 2, N])
def test_gradient_norms_are_those_of_single_backward_passes(
    norm: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repro.toolbox.pruning.statistics.CHUNK", 2 * OUT * IN)
    model, (x, y) = network(), batch()
    gradients = collect(model, x, y, norm, size)
    for name, g in one_by_one(model, x, y).items():
        expected = g.abs().sum(0) if norm == "l1" else g.square().sum(0).sqrt()
        torch.testing.assert_close(gradients.norm(name), expected, atol=1e-12, rtol=1e-10)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert gradients.count == N


def test_opposite_gradients_do_not_cancel() -> None:
    """What the signed mean over a batch would lose."""
    layer = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    with GradientNorms(layer, {"w": layer}) as gradients:
        layer(x).sum().backward()
    assert gradients.norm("w").tolist() == [[2.0, 4.0]]


def test_norms_bound_each_other_and_agree_for_one_sequence() -> None:
    model, (x, y) = network(), batch()
    l1, l2 = collect(model, x, y, "l1"), collect(model, x, y, "l2")
    first = [collect(model, x[:1], y[:1], norm) for norm in ("l1", "l2")]
    for name in layers_of(model):
        a, b = l1.norm(name), l2.norm(name)
        assert bool((b <= a + 1e-12).all())
        assert bool((a <= N**0.5 * b + 1e-12).all())
        torch.testing.assert_close(first[0].norm(name), first[1].norm(name))


def test_input_norms_are_means_over_sequences_of_sums_over_tokens() -> None:
    model, (x, _) = network(), batch()
    with InputMoments(layers_of(model)) as moments, torch.no_grad():
        for part in x.split(2):
            model(part)
    expected = (x.square().sum((0, 1)) / N).sqrt()
    torch.testing.assert_close(moments.of("0").input_norm, expected)
    with InputMoments(layers_of(model), products=True) as moments, torch.no_grad():
        model(x)
    rows = x.flatten(0, 1)
    hessian = moments.of("0").hessian
    assert hessian is not None
    torch.testing.assert_close(hessian, 2 / N * rows.T @ rows)
    torch.testing.assert_close(moments.of("0").input_norm, expected)


def test_layers_with_one_input_share_its_sums_unless_it_changed_in_place() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(IN, 2) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x) + self.b(x)
            return y + self.c(x.mul_(2))

    model, x = Twins(), torch.randn(N, IN)
    expected = x.square().sum(0)
    with InputMoments(layers_of(model)) as moments, torch.no_grad():
        model(x)
    assert moments.sums["a"] is moments.sums["b"]
    torch.testing.assert_close(moments.sums["a"], expected)
    torch.testing.assert_close(moments.sums["c"], 4 * expected)


def test_half_precision_is_summed_in_single() -> None:
    layer = nn.Linear(2, 2, bias=False).bfloat16()
    x = torch.full((300, 1, 2), 20.0, dtype=torch.bfloat16)
    with GradientNorms(layer, {"w": layer}) as gradients, InputMoments({"w": layer}) as moments:
        layer(x).float().sum().backward()
    assert gradients.norm("w").dtype == moments.sums["w"].dtype == torch.float32
    assert moments.sums["w"].tolist() == [300 * 400.0] * 2
    assert gradients.norm("w").tolist() == [[300 * 20.0] * 2] * 2


@pytest.mark.parametrize("text", [0.1, 0.3, 0.5, 0.62, 0.99])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_rows_lose_the_first_of_a_stable_order(text: float, levels: int) -> None:
    score = torch.randint(levels, (40, 33)).float()  # few levels: many ties
    goes = lowest(score, Pattern(text))
    count = int(33 * text)
    order = score.sort(dim=1, stable=True).indices[:, :count]
    assert torch.equal(goes, torch.zeros_like(goes).scatter_(1, order, True))
    assert goes.sum(1).unique().tolist() == [count]


@pytest.mark.parametrize("text", ["1:2", "2:4", "4:8", "3:4"])
@pytest.mark.parametrize("levels", [2, 10**6])
def test_groups_lose_exactly_n_the_first_of_a_stable_order(text: str, levels: int) -> None:
    score = torch.randint(levels, (20, 16)).float()
    pattern = Pattern(text)
    groups = score.unflatten(1, (-1, pattern.m))
    order = groups.sort(dim=2, stable=True).indices[..., : pattern.n]
    expected = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order, True).flatten(1)
    assert torch.equal(lowest(score, pattern, "matrix"), expected)


def test_the_matrix_rule_is_the_official_threshold() -> None:
    score = torch.rand(7, 9)
    for sparsity in (0.1, 0.5, 0.9):
        threshold = score.flatten().sort().values[int(score.numel() * sparsity)]
        assert torch.equal(lowest(score, Pattern(sparsity), "matrix"), score <= threshold)


def test_shares_of_a_row_reach_the_sparsity_and_let_rows_differ() -> None:
    score = torch.rand(64, 200) ** torch.linspace(0.2, 4, 64)[:, None]
    goes = lowest(score, Pattern(0.5), "row_share")
    assert abs(float(goes.float().mean()) - 0.5) < 0.01
    assert len(goes.sum(1).unique()) > 10
    for row, mask in zip(score, goes, strict=True):
        assert row[mask].max() <= row[~mask].min()


def test_nothing_goes_at_zero() -> None:
    for group in patterns.GROUPS:
        assert not lowest(torch.zeros(3, 4), Pattern(0), group).any()
    assert not lowest(torch.zeros(3, 4), Pattern(0.2)).any()  # floor(0.8) = 0


def test_structure_is_one_at_random_and_large_for_columns() -> None:
    random = torch.rand(200, 500) < 0.6
    assert abs(column_structure(random) - 1) < 0.1
    assert column_structure(torch.ones(3, 4, dtype=torch.bool)) == 1
    assert column_structure((torch.rand(500) < 0.6).expand(200, 500)) == pytest.approx(200**0.5)


@pytest.mark.parametrize("text", ["1", "-0.1", "4:4", "0:4", "half", "5:2", "nan", "1:0"])
def test_a_bad_pattern_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="A pattern is"):
        Pattern(text)


def test_names_of_patterns() -> None:
    assert [Pattern(p).name for p in (0, 0.5, "0.655", "2:4")] == ["0", "50", "65.5", "2of4"]


def test_what_cannot_be_done_is_one_line() -> None:
    model, x = network(), batch()[0]
    with pytest.raises(UserError, match="trained already"):
        SparseGPT().attach(model)
    assert isinstance(SparseGPT(), Method)
    with pytest.raises(UserError, match="groups of 4; a layer has 6"):
        lowest(torch.rand(2, 6), Pattern("2:4"))
    with pytest.raises(UserError, match=r"group is .*Did you mean 'row'"):
        lowest(torch.rand(2, 6), Pattern(0.5), "rows")
    with pytest.raises(UserError, match="norm is l1 or l2"):
        GradientNorms(model, {}, "l3")  # type: ignore[arg-type]
    with InputMoments(layers_of(model)) as moments, GradientNorms(model, layers_of(model)) as g:
        model[0](x)
    with pytest.raises(UserError, match="took no part"):
        moments.of("2")
    with pytest.raises(UserError, match="No gradient reached"):
        g.norm("0")


def test_a_layer_used_twice_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with GradientNorms(model, layers_of(model)) as gradients:
        model(model[0](torch.rand(3, 4))).sum().backward()
    with pytest.raises(UserError, match="more than once"):
        gradients.norm("0")
