"""ScaleLong's coefficients against hand-expanded networks, absorption, and the paper's theorems."""

from __future__ import annotations

import copy
import doctest
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repro.methods.scalelong
from repro.errors import UserError
from repro.methods.scalelong import (
    SkipGate,
    SkipScaler,
    SkipScaling,
    coefficients,
    forward_gain,
    robustness_bound,
)
from repro.models.diffusion.ddpm_unet import DDPMUNet
from repro.models.diffusion.uvit import UViT
from repro.models.toys.skip_mlp import SkipMLP

IMAGE = [1, 8, 8]
SMALL: dict[str, Callable[[], nn.Module]] = {
    "skip_mlp": lambda: SkipMLP(IMAGE, n_skips=3, width=16),
    "uvit": lambda: UViT(IMAGE, n_skips=3, width=16, heads=2),
    "unet": lambda: DDPMUNet(IMAGE, width=8, multipliers=(1, 2), blocks=1, groups=4, dropout=0),
}


def build(name: str, **knobs: object) -> nn.Module:
    torch.manual_seed(0)
    model = SMALL[name]()
    SkipScaling(**knobs).attach(model)  # type: ignore[arg-type]
    return model


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(size, *IMAGE, generator=generator),
        999 * torch.rand(size, generator=generator),
    )


def weight(block: nn.Module, layer: int) -> Tensor:
    assert isinstance(block, nn.Sequential)
    linear = block[layer]
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach()


def test_the_docstrings_loop_runs() -> None:
    assert doctest.testmod(repro.methods.scalelong).failed == 0


def test_the_deepest_skip_has_the_smallest_coefficient() -> None:
    expected = [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    assert coefficients("cs", 6, kappa=0.5) == expected
    assert coefficients("cs", 6, kappa=0.5, reverse=True) == expected[::-1]
    assert coefficients("none", 3) == [1, 1, 1]
    assert coefficients("const", 2) == pytest.approx([0.70710678, 0.70710678])


@pytest.mark.parametrize("name", SMALL)
def test_limits_that_equal_the_plain_network(name: str) -> None:
    plain = build(name, kind="none")(*batch())
    assert torch.equal(build(name, kind="cs", kappa=1.0)(*batch()), plain)
    assert torch.equal(build(name, kind="const", const=1.0)(*batch()), plain)
    opened = build(name, kind="ls")
    assert isinstance(opened.scaler, SkipScaler)
    for gate in opened.scaler.networks.values():
        assert isinstance(gate, SkipGate)
        nn.init.zeros_(gate.excite.weight)
        nn.init.constant_(gate.excite.bias, math.inf)
    assert torch.equal(opened(*batch()), plain)
    assert not torch.allclose(build(name, kind="const")(*batch()), plain)


@pytest.mark.parametrize("name", SMALL)
def test_all_arms_start_from_the_same_weights(name: str) -> None:
    plain, gated = build(name, kind="none"), build(name, kind="ls")
    weights = gated.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize("name", SMALL)
def test_every_skip_is_consumed_once_by_its_mirror(name: str) -> None:
    model = build(name, kind="none")
    seen: list[tuple[int, tuple[int, ...]]] = []

    class Spy(nn.Module):
        def forward(self, skip: Tensor, j: int) -> Tensor:
            seen.append((j, tuple(skip.shape)))
            return skip

    model.scaler = Spy()
    model(*batch())
    assert [j for j, _ in seen] == list(range(len(model.skip_features)))  # type: ignore[arg-type]
    assert [shape[1] for _, shape in seen] == model.skip_features


def test_each_coefficient_scales_exactly_one_linear_path() -> None:
    """For N = 2 and linear blocks the network is a sum of three products, expanded by hand."""
    model = SkipMLP([4], n_skips=2, width=5)
    for index, block in enumerate([*model.encoder, model.middle, *model.decoder]):
        torch.manual_seed(index)
        assert isinstance(block, nn.Sequential)
        block[1] = nn.Identity()
    SkipScaling("cs", kappa=0.3).attach(model)

    def matrix(block: nn.Module) -> Tensor:
        return weight(block, 2) @ weight(block, 0)

    a1, a2 = map(matrix, model.encoder)
    b2, b1 = map(matrix, model.decoder)  # in decoder order
    middle = matrix(model.middle)
    z = torch.randn(3, 5)
    kappa_1, kappa_2 = 1.0, 0.3
    expanded = b1 @ b2 @ middle @ a2 @ a1 + kappa_2 * b1 @ b2 @ a2 @ a1 + kappa_1 * b1 @ a1
    torch.testing.assert_close(model.body(z), z @ expanded.T)


def test_a_constant_can_be_absorbed_by_the_merges() -> None:
    """[W_a W_b][x; k s] = [W_a k W_b][x; s], and the gradient of those columns carries k."""
    scaled = build("uvit", kind="cs", kappa=0.5)
    kappas = coefficients("cs", 3, kappa=0.5)
    absorbed = build("uvit", kind="none")
    for merge, kappa in zip(absorbed.merges, kappas, strict=True):  # type: ignore[arg-type]
        merge.linear.weight.data[:, 16:] *= kappa
    outputs = [model(*batch()) for model in (scaled, absorbed)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for left, right, kappa in zip(scaled.merges, absorbed.merges, kappas, strict=True):  # type: ignore[arg-type]
        left, right = left.linear.weight.grad, right.linear.weight.grad
        torch.testing.assert_close(left[:, 16:], kappa * right[:, 16:])
        torch.testing.assert_close(left[:, :16], right[:, :16])


@pytest.mark.parametrize("shape", [(2, 257, 8), (2, 257, 4, 4), (2, 257)])
def test_gates_weigh_the_second_dimension(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate = SkipGate(257)
    skip = torch.randn(shape)
    weights = gate(skip)
    assert weights.shape == (*shape[:2], *[1] * (len(shape) - 2))
    assert ((weights > 0) & (weights < 1)).all()
    assert abs(weights.mean() - 0.5) < 0.05
    # Against the official formula, written out.
    pooled = skip if len(shape) == 2 else skip.mean(dim=tuple(range(2, len(shape))))
    hidden = torch.relu(pooled @ gate.squeeze.weight.T + gate.squeeze.bias)
    expected = torch.sigmoid(hidden @ gate.excite.weight.T + gate.excite.bias)
    torch.testing.assert_close(weights.flatten(1), expected)


def test_a_shared_gate_is_one_set_of_parameters() -> None:
    shared, separate = (SkipScaler("ls", [257] * 6, shared=each) for each in (True, False))
    assert sum(p.numel() for p in shared.parameters()) == 8_497
    assert sum(p.numel() for p in separate.parameters()) == 6 * 8_497
    # Sizes that differ cannot share: one gate each size.
    assert set(SkipScaler("ls", [16, 16, 8]).networks) == {"16", "8"}


def test_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        uvit, unet = UViT([3, 32, 32]), DDPMUNet([3, 32, 32])
    assert sum(p.numel() for p in uvit.parameters()) == 44_255_328  # "44 M"
    assert sum(p.numel() for p in unet.parameters()) == 35_746_307  # "35.7 M"
    assert len(unet.skip_features) == 12


@pytest.mark.parametrize(("kind", "kappa"), [("none", 1.0), ("const", 1.0), ("cs", 0.7)])
def test_theorem_3_1_at_initialisation(kind: Any, kappa: float) -> None:
    gains = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = SkipMLP([8], n_skips=8, width=256)
        SkipScaling(kind, kappa=kappa).attach(model)
        z = torch.randn(64, 256)
        with torch.no_grad():
            gains.append(float(model.body(z).square().sum() / z.square().sum()))
    expected = forward_gain(coefficients(kind, 8, kappa=kappa))
    assert sum(gains) / 5 == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("kind", ["none", "const", "cs"])
def test_theorem_3_4_bounds_the_measured_sensitivity(kind: Any) -> None:
    torch.manual_seed(0)
    model = SkipMLP([8], n_skips=2, width=16)
    SkipScaling(kind, kappa=0.5).attach(model)

    def lipschitz(block: nn.Module) -> float:
        norms = (torch.linalg.matrix_norm(weight(block, layer), 2) for layer in (0, 2))
        return math.prod(map(float, norms))

    decoder = list(model.decoder)[::-1]
    pairs = [lipschitz(a) * lipschitz(b) for a, b in zip(model.encoder, decoder, strict=True)]
    bound = robustness_bound(
        coefficients(kind, 2, kappa=0.5), lipschitz=max(pairs), middle=lipschitz(model.middle)
    )
    z, d = torch.randn(100, 16), torch.randn(100, 16)
    with torch.no_grad():
        change = (model.body(z + d) - model.body(z)).norm(dim=1) / d.norm(dim=1)
    assert change.max() <= bound


def test_the_bound_weighs_the_deepest_skip_most() -> None:
    assert robustness_bound([0.25, 1.0], lipschitz=3.0, middle=2.0) == 1 * 3 + 0.25 * 9 + 2 * 9


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"kind": "css"}, "Did you mean 'cs'"),
        ({"kappa": 1.5}, r"kappa lies in \(0, 1\]"),
        ({"const": 0}, "const is positive"),
        ({"reduction": 0}, "reduction is a whole number"),
    ],
)
def test_wrong_knobs_say_so_in_one_line(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        SkipScaling(**knobs)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 1


def test_networks_without_long_skips_are_refused_and_scalers_stay() -> None:
    with pytest.raises(UserError, match="Linear has no long skip connections"):
        SkipScaling().attach(nn.Linear(2, 2))
    model = build("uvit", kind="ls")
    scaler = model.scaler
    SkipScaling("ls").attach(model)
    assert model.scaler is scaler
    assert copy.deepcopy(model).scaler is not scaler
