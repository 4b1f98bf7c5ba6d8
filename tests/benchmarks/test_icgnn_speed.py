"""The learned precoder against WMMSE in a batch, and messages against a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timing import faster

from repro.methods.icgnn import (
    CompleteGraph,
    Downlink,
    InformationCarryingGNN,
    LearnedPrecoder,
    wmmse,
)


@torch.no_grad()
@pytest.mark.parametrize(("K", "M"), [(8, 8), (6, 32), (16, 64)])
def test_precoding_a_batch_against_sixty_iterations(K: int, M: int) -> None:
    """200 channels; WMMSE in batched form, with matrices of the size of users."""
    H = torch.randn(200, K, M, dtype=torch.complex64)
    cell, model = Downlink.of(H, 10.0), LearnedPrecoder(cg_steps=8)
    faster(
        f"200 channels of {K}x{M}, against reduced WMMSE",
        lambda: model(cell),
        lambda: wmmse(cell.H, cell.snr),
    )


@torch.no_grad()
def test_messages_of_all_pairs_at_once_against_a_loop_over_users() -> None:
    """One layer of width 32 on 64 graphs of 8 users: first layers split, nodes computed once."""
    net = InformationCarryingGNN(nodes=2, outputs=2, edges=3, layers=1)
    x0, edges = torch.randn(64, 8, 2), torch.randn(64, 8, 8, 3)
    layer: Any = net.layers[0]

    def loop() -> None:
        for k in range(8):
            others = [j for j in range(8) if j != k]
            sent = [layer.from_node(x0[:, j]) + layer.from_edge(edges[:, k, j]) for j in others]
            heard = torch.stack([layer.message(each.relu()).relu() for each in sent])
            collected = torch.cat([heard.mean(0), heard.amax(0)], -1)
            net.head(layer.update((layer.keep(x0[:, k]) + layer.hear[0](collected)).relu()))

    faster("messages of a layer", lambda: net(x0, CompleteGraph(edges)), loop)
