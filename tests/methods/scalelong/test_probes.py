"""Gain, gradient and sensitivity of fresh networks, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from repro.methods.scalelong import SkipScaling, probes
from repro.models.toys.skip_mlp import SkipMLP


@pytest.mark.parametrize(
    ("knobs", "theory"),
    [
        ({"kind": "none"}, {4: 5, 8: 9, 16: 17}),  # one, and as many as there are skips
        ({"kind": "const"}, {4: 3, 8: 5, 16: 9}),  # half of each
        ({"kind": "cs", "kappa": 0.5**0.5}, {4: 2.875, 8: 3 - 2**-7, 16: 3 - 2**-15}),  # 1 + ½ + …
    ],
)
def test_probes_of_fresh_networks_by_hand(
    knobs: dict[str, Any], theory: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gain, gradient norm and sensitivity of two networks, and the norm without scaling."""
    found = iter([[10.0, 2.0, 0.3, 9.0], [26.0, 4.0, 0.5, 15.0]] * 3)
    monkeypatch.setattr(probes, "_quantities", lambda *_: next(found))
    model = SkipMLP([1, 8, 8], n_skips=2, width=4)
    zeros = torch.zeros(1)
    settings = {"depths": [4, 8, 16], "networks": 2}
    measured = probes.at_initialisation(
        model, SkipScaling(**knobs), zeros, zeros, zeros, settings, 0
    )
    expected = {
        "init/n4/gain_over_theory": 18 / theory[4],
        "init/n8/gain_over_theory": 18 / theory[8],
        "init/n16/gain_over_theory": 18 / theory[16],
        **dict.fromkeys(("init/n4/grad_norm", "init/n8/grad_norm", "init/n16/grad_norm"), 3),
        **dict.fromkeys(("init/n4/grad_ratio", "init/n8/grad_ratio", "init/n16/grad_ratio"), 4),
        **dict.fromkeys(("init/n4/sensitivity", "init/n8/sensitivity"), 0.4),
        "init/n16/sensitivity": 0.4,
    }
    assert {name: measured[name] for name in expected} == pytest.approx(expected)


def test_gradients_are_those_of_the_squared_error() -> None:
    """Of (3 · 2 - 1)² by the 3: twice 5 times 2."""

    class Triple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(3.0))

        def forward(self, x: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
            return self.weight * x

    x, noise = torch.tensor([2.0]), torch.tensor([1.0])
    assert probes._gradient(Triple(), x, torch.zeros(1), noise) == pytest.approx(20)


def test_the_reference_is_the_same_network_without_scaling() -> None:
    torch.manual_seed(0)
    x, time_B, noise = torch.randn(3, 1, 8, 8), torch.rand(3), torch.randn(3, 1, 8, 8)
    model, settings = SkipMLP([1, 8, 8], n_skips=2, width=8), {"depths": [4], "networks": 1}
    plain, scaled = (
        probes.at_initialisation(model, SkipScaling(kind=kind), x, time_B, noise, settings, 0)
        for kind in ("none", "const")
    )
    assert plain["init/n4/grad_ratio"] == 1
    assert scaled["init/n4/grad_norm"] != pytest.approx(plain["init/n4/grad_norm"])
    reference = scaled["init/n4/grad_ratio"] * scaled["init/n4/grad_norm"]
    assert reference == pytest.approx(plain["init/n4/grad_norm"])
