"""What pruning costs: next to a training pass, and next to the loops that it replaces."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from timing import fastest
from torch import Tensor

from repro.methods.gblm import ScorePruner
from repro.models import Llama
from repro.toolbox.pruning import (
    InputMoments,
    Pattern,
    block_layers,
    decoder_gradients,
    lowest,
    next_token_losses,
    prune_blocks,
    sparsegpt,
)

pytestmark = pytest.mark.benchmark
Record = Callable[[str, object], None]


def test_scores_cost_less_than_two_training_passes(record_property: Record) -> None:
    """A decoder of 26 million parameters, 128 sequences of 128 tokens.

    Against one forward and backward pass over them, both the scores alone (activations and
    gradients from the dense model) and the whole of the sequential pruning are measured.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Llama(98, width=512, layers=8, heads=8, mlp_width=1408)
    assert 25e6 < sum(p.numel() for p in model.parameters()) < 27e6
    tokens_NT = torch.randint(98, (128, 128))
    layers, pruner = block_layers(model), ScorePruner("gblm")

    def train() -> None:
        for tokens_BT in tokens_NT.split(8):
            model.zero_grad()
            next_token_losses(model(tokens_BT), tokens_BT).mean().backward()
        model.zero_grad()

    def score() -> None:
        with InputMoments(layers) as moments:
            gradients = decoder_gradients(model, tokens_NT, batch_size=8)
        for name, layer in layers.items():
            statistics = moments.of(name, gradients.norm(name))
            pruner.scores(layer.weight.detach(), statistics)

    def prune() -> None:
        gradients = decoder_gradients(model, tokens_NT, batch_size=8)
        x_NTD = model.embed(tokens_NT).detach()
        prune_blocks(model.blocks, x_NTD, pruner, Pattern(0.5), gradients, 8)

    train_s, score_s, prune_s = (fastest(work, 1) for work in (train, score, prune))
    record_property("scores_over_training_pass", round(score_s / train_s, 2))
    record_property("pruning_over_training_pass", round(prune_s / train_s, 2))
    print(
        f"training pass {train_s:.1f} s; scores {score_s / train_s:.2f} times that, "
        f"sequential pruning {prune_s / train_s:.2f} times"
    )
    assert score_s < 2 * train_s


def one_by_one(w: Tensor, hessian: Tensor, sparsity: float, block: int) -> Tensor:
    """The same pruning with a loop over single weights."""
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


def test_sparsegpt_against_a_loop_over_weights(record_property: Record) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, w = torch.randn(2000, 256), torch.randn(128, 256)
    hessian = x.T @ x / 1000
    naive: list[Tensor] = []
    slow = fastest(lambda: naive.append(one_by_one(w, hessian, 0.5, 128)), 1)
    fast = fastest(lambda: sparsegpt(w, hessian, Pattern(0.5)), 5)
    torch.testing.assert_close(sparsegpt(w, hessian, Pattern(0.5)), naive[0], atol=1e-3, rtol=1e-3)
    record_property("sparsegpt_over_loop", round(slow / fast, 1))
    print(f"sparsegpt: {slow / fast:.0f} times as fast as a loop over weights")
    assert slow > 3 * fast


def test_gradient_norms_against_single_backward_passes(record_property: Record) -> None:
    """The decoder of scale=mini: 64 sequences of 64 tokens."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, tokens_NT = Llama(98), torch.randint(98, (64, 64))

    def naive() -> None:
        sums = {name: torch.zeros_like(la.weight) for name, la in block_layers(model).items()}
        for tokens_BT in tokens_NT.split(1):
            model.zero_grad()
            next_token_losses(model(tokens_BT), tokens_BT).sum().backward()
            for name, layer in block_layers(model).items():
                assert layer.weight.grad is not None
                sums[name] += layer.weight.grad.abs()

    fast = fastest(lambda: decoder_gradients(model, tokens_NT, batch_size=16), 5)
    ratio = fastest(naive, 3) / fast
    record_property("gradients_over_single_passes", round(ratio, 1))
    print(f"gradient norms: {ratio:.1f} times as fast as one backward pass a sequence")
    assert ratio > 1.3


def test_choosing_weights_against_sorting(record_property: Record) -> None:
    """A layer of LLaMA 7B, pruned by rows and by groups."""
    torch.set_num_threads(1)
    score = torch.rand(1024, 4096)

    def rows() -> None:
        order = score.sort(dim=1, stable=True).indices[:, :2048]
        torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True)

    def groups() -> None:
        parts = score.unflatten(1, (-1, 4))
        order = parts.sort(dim=2, stable=True).indices[..., :2]
        torch.zeros_like(parts, dtype=torch.bool).scatter_(2, order, True)

    for name, naive, pattern in (
        ("rows", rows, Pattern(0.5)),
        ("groups", groups, Pattern("2:4")),
    ):
        ours = fastest(functools.partial(lowest, score, pattern), 3)
        ratio = fastest(naive, 2) / ours
        record_property(f"{name}_over_sorting", round(ratio, 1))
        print(f"lowest scores of {name}: {ratio:.1f} times as fast as sorting")
        assert ratio > 1.3
