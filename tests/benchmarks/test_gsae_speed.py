"""Speed of g-SAE's two products: attributions of all latents, and the decoder's sparse sum."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from repro.methods.gsae import GradientAugmented, TopKAutoencoder, attribution

pytestmark = pytest.mark.benchmark
TOKENS, WIDTH, LATENTS, K = (
    256,
    384,
    8192,
    32,
)  # half the width of GPT-2 small, a third of the latents


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def test_sparse_step_against_dense_matrices(capsys: pytest.CaptureFixture[str]) -> None:
    """One update's forward and backward pass; naive: f as a dense matrix times the decoder."""
    x_BD = torch.randn(TOKENS, WIDTH)
    sae = TopKAutoencoder(WIDTH, LATENTS, K)

    def dense() -> None:
        sae.zero_grad()
        (sae.decode(sae.encode(x_BD)) - x_BD).square().sum(1).mean().backward()

    def sparse() -> None:
        sae.zero_grad()
        sae.loss(x_BD).backward()

    ratio = seconds(dense) / seconds(sparse)
    with capsys.disabled():
        print(f"\ndense over sparse decoding, forward and backward: {ratio:.2f}")
    assert ratio > 1.3


def test_the_gradient_costs_one_product(capsys: pytest.CaptureFixture[str]) -> None:
    """A step of g-SAE over one of TopK, the model's own backward pass aside."""
    x_BD, g_BD = torch.randn(2, TOKENS, WIDTH)
    plain = TopKAutoencoder(WIDTH, LATENTS, K)
    ours = TopKAutoencoder(WIDTH, LATENTS, K, GradientAugmented())

    def step(sae: TopKAutoencoder) -> Callable[[], None]:
        def work() -> None:
            sae.zero_grad()
            sae.loss(x_BD, g_BD).backward()

        return work

    ratio = seconds(step(ours)) / seconds(step(plain))
    with capsys.disabled():
        print(f"\na step of g-SAE over one of TopK: {ratio:.2f}")
    assert ratio < 2


def test_attribution_against_a_loop_over_latents(capsys: pytest.CaptureFixture[str]) -> None:
    """All |w·g| in one product; naive: a directional derivative for each latent in turn."""
    W_ND = F.normalize(torch.randn(LATENTS, WIDTH), dim=1)
    g_BD = torch.randn(TOKENS, WIDTH)

    def loop() -> Tensor:
        return torch.stack([(g_BD * w_D).sum(1).abs() for w_D in W_ND], dim=1)

    torch.testing.assert_close(attribution(W_ND, g_BD), loop(), atol=1e-4, rtol=1e-3)
    ratio = seconds(loop, 1) / seconds(lambda: attribution(W_ND, g_BD))
    with capsys.disabled():
        print(f"\na loop over latents over one product: {ratio:.1f}")
    assert ratio > 5
