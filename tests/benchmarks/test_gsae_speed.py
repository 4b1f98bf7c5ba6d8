"""Speed of g-SAE's two products: attributions of all latents, and the decoder's sparse sum."""

from __future__ import annotations

import torch
from timing import faster
from torch.nn import functional as F

from repro.methods.gsae import GradientAugmented, TopKAutoencoder, attribution

# Half the width of GPT-2 small, a third of the latents.
TOKENS, WIDTH, LATENTS, K = 256, 384, 8192, 32


def update(sae: TopKAutoencoder, *inputs: torch.Tensor) -> None:
    """One update's forward and backward pass."""
    sae.zero_grad()
    sae.loss(*inputs).backward()


def test_sparse_step_against_dense_matrices() -> None:
    x_BD, sae = torch.randn(TOKENS, WIDTH), TopKAutoencoder(WIDTH, LATENTS, K)

    def dense() -> None:
        sae.zero_grad()
        (sae.decode(sae.encode(x_BD)) - x_BD).square().sum(1).mean().backward()

    faster("a sparse step, against dense decoding", lambda: update(sae, x_BD), dense, 1.3)


def test_the_gradient_costs_one_product() -> None:
    """A step of g-SAE may take twice one of TopK, the model's own backward pass aside."""
    inputs = torch.randn(2, TOKENS, WIDTH)
    plain = TopKAutoencoder(WIDTH, LATENTS, K)
    ours = TopKAutoencoder(WIDTH, LATENTS, K, GradientAugmented())
    work = (lambda: update(ours, *inputs)), (lambda: update(plain, *inputs))
    faster("a step of g-SAE, against one of TopK", *work, 0.5)


def test_attribution_against_a_loop_over_latents() -> None:
    """All |w·g| in one product; naive: a directional derivative for each latent in turn."""
    W_ND, g_BD = F.normalize(torch.randn(LATENTS, WIDTH), dim=1), torch.randn(TOKENS, WIDTH)

    def loop() -> torch.Tensor:
        return torch.stack([(g_BD * w_D).sum(1).abs() for w_D in W_ND], dim=1)

    torch.testing.assert_close(attribution(W_ND, g_BD), loop(), atol=1e-4, rtol=1e-3)
    faster("attributions, against a loop", lambda: attribution(W_ND, g_BD), loop, 5, 1)
