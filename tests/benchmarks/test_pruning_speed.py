"""The parts of `repro.toolbox.pruning` against the loops and the sorting that they replace."""

from __future__ import annotations

import functools

import torch
from timing import faster
from torch import Tensor

from repro.models import Llama
from repro.toolbox.pruning import (
    Pattern,
    block_layers,
    decoder_gradients,
    lowest,
    next_token_losses,
    sparsegpt,
)


def one_by_one(w: Tensor, hessian: Tensor, sparsity: float, block: int) -> Tensor:
    """SparseGPT with a loop over single weights."""
    w = w.clone()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    upper = torch.linalg.cholesky(damped.inverse(), upper=True)
    for start in range(0, len(upper), block):
        end = min(start + block, len(upper))
        worth = w[:, start:end].square() / upper.diagonal()[start:end].square()
        goes = lowest(worth, Pattern(sparsity), "matrix")
        for row in range(len(w)):
            for j in range(start, end):
                if goes[row, j - start]:
                    w[row, j:] -= w[row, j] / upper[j, j] * upper[j, j:]
                    w[row, j] = 0
    return w


def test_sparsegpt_against_a_loop_over_weights() -> None:
    x, w = torch.randn(2000, 256), torch.randn(128, 256)
    hessian = x.T @ x / 1000
    ours = functools.partial(sparsegpt, w, hessian, Pattern(0.5))
    naive = functools.partial(one_by_one, w, hessian, 0.5, 128)
    torch.testing.assert_close(ours(), naive(), atol=1e-3, rtol=1e-3)
    faster("SparseGPT, against a loop over weights", ours, naive, 3, repeats=1)


def test_choosing_weights_against_sorting() -> None:
    """A layer of LLaMA 7B, pruned by rows and by groups."""
    score = torch.rand(1024, 4096)

    def sorting(size: int, kept: int) -> None:
        parts = score.unflatten(1, (-1, size))
        order = parts.sort(dim=2, stable=True).indices[..., :kept]
        torch.zeros_like(parts, dtype=torch.bool).scatter_(2, order, True)

    for pattern, size, kept in ((Pattern(0.5), 4096, 2048), (Pattern("2:4"), 4, 2)):
        ours = functools.partial(lowest, score, pattern)
        reference = functools.partial(sorting, size, kept)
        faster(f"lowest {kept} of {size}, against sorting", ours, reference, 1.3, repeats=3)


def test_gradient_norms_against_single_backward_passes() -> None:
    """The decoder of paper=gblm at mini: 64 sequences of 64 tokens."""
    model, tokens_NT = Llama(98), torch.randint(98, (64, 64))

    def naive() -> None:
        sums = {name: torch.zeros_like(la.weight) for name, la in block_layers(model).items()}
        for tokens_BT in tokens_NT.split(1):
            model.zero_grad()
            next_token_losses(model(tokens_BT), tokens_BT).sum().backward()
            for name, layer in block_layers(model).items():
                assert layer.weight.grad is not None
                sums[name] += layer.weight.grad.abs()

    ours = functools.partial(decoder_gradients, model, tokens_NT, batch_size=16)
    faster("gradient norms, against a backward pass a sequence", ours, naive, 1.3, repeats=3)
