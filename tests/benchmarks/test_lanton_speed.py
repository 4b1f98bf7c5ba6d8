"""What LANTON's noise costs: against a whole step of its base, and against torch's Muon."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timing import faster
from torch import nn
from torch.nn import functional as F

from repro.methods.lanton import Lanton, layer_groups
from repro.models.language.llama import Llama
from repro.toolbox.lmo import RMS, NormBall, Sign, Spectral, lanczos_nuclear_norm

TOKENS = 4096  # a batch; the paper's is likely a hundred times as large


def balls(dual_method: str) -> dict[str, NormBall]:
    hidden = Spectral(dual_method=dual_method)  # type: ignore[arg-type]
    return {"hidden": hidden, "embedding": Sign(), "vector": RMS()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens_BT: torch.Tensor) -> None:
    """A whole step of training a language model."""
    optimizer.zero_grad()
    logits = model(tokens_BT[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    optimizer.step()


def test_a_step_of_a_decoder_of_25_million_parameters() -> None:
    """With Newton-Schulz for the directions: the paper reports 4 % more than its base."""
    model = Llama(8192, width=512, layers=6, heads=8, mlp_width=1408, tied=True)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(25e6, rel=0.08)
    tokens_BT = torch.randint(8192, (TOKENS // 256, 257))
    base = Lanton(layer_groups(model), 1e-4, balls("newton_schulz"), noise="off")
    ours = Lanton(layer_groups(model), 1e-4, balls("lanczos"))
    work = partial(step, model, ours, tokens_BT), partial(step, model, base, tokens_BT)
    faster("a step with noise, against one without", *work, 1 / 1.08, 2)


def test_an_optimizer_step_against_torchs_muon() -> None:
    """As fast for the same update of 48 matrices of a small decoder."""
    weights = [nn.Parameter(torch.randn(64, n)) for n in (64, 64, 64, 176) * 12]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    ball: dict[str, NormBall] = {"hidden": Spectral("muon", dtype="bfloat16")}
    group = [{"params": weights, "role": "hidden"}]
    ours = Lanton(group, 1e-4, ball, nesterov=True, noise="off", weight_decay=0.1)
    muon = torch.optim.Muon(weights, 1e-4)
    faster("48 matrices, against torch.optim.Muon", ours.step, muon.step, 0.9, 10)


@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 4096)])
def test_an_optimizer_step_against_its_base(shape: tuple[int, int]) -> None:
    """On one matrix of a large decoder, where Newton-Schulz is nearly all of a step."""
    weight = nn.Parameter(torch.randn(*shape))
    weight.grad = torch.randn_like(weight)
    group: list[dict[str, Any]] = [{"params": [weight], "role": "hidden"}]
    ours = Lanton(group, 1e-4, balls("lanczos"))
    base = Lanton([dict(group[0])], 1e-4, balls("lanczos"), noise="off")
    faster(f"a step of {shape} with noise, against one without", ours.step, base.step, 1 / 1.5, 3)


@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 4096)])
def test_the_nuclear_norm_against_newton_schulz(shape: tuple[int, int]) -> None:
    b_K = torch.randn(1, *shape)
    exact = Spectral("none", dual_method="newton_schulz")
    faster(
        f"nuclear norm of {shape} by Lanczos, against Newton-Schulz",
        lambda: lanczos_nuclear_norm(b_K), lambda: exact.dual(b_K), 3, 3,
    )  # fmt: skip
