"""What scores and pruning cost, next to a training pass."""

from __future__ import annotations

import torch
from timing import faster

from repro.methods.gblm import ScorePruner
from repro.models import Llama
from repro.toolbox.pruning import (
    InputMoments,
    Pattern,
    block_layers,
    decoder_gradients,
    next_token_losses,
    prune_blocks,
)


def test_scores_and_pruning_against_a_training_pass() -> None:
    """A decoder of 26 million parameters, 128 sequences of 128 tokens, forward and backward once.

    Both the scores alone (activations and gradients from the dense model) and the whole of the
    sequential pruning; only the scores have a stated limit.
    """
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

    faster("scores, against a training pass", score, train, 0.5, repeats=1)
    faster("sequential pruning, against a training pass", prune, train, 0, repeats=1)
