"""Scores by relevance against a training pass, and smaller networks against silent ones."""

from __future__ import annotations

import pytest
import torch
from timing import faster
from torch import nn
from torch.nn import functional as F

from repro.methods.lrp_pruning import FilterPruning, Relevance, Weight
from repro.models import VGG, ResNetCIFAR
from repro.toolbox.costs import PeakMemory
from repro.toolbox.dependency_graph import trace
from repro.toolbox.lrp import Epsilon, z_plus

COMPOSITE = Relevance(conv=z_plus(1e-12), linear=Epsilon())
STAGES = [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]]


def networks(name: str) -> nn.Module:
    if name == "vgg16":
        return VGG([3, 32, 32], 10, STAGES, hidden=[512, 512], batch_norm=True).eval()
    return ResNetCIFAR([3, 32, 32], 10, depth=20).eval()


@pytest.mark.parametrize("name", ["vgg16", "resnet20"])
def test_scores_cost_at_most_two_and_a_half_passes(name: str) -> None:
    """Batches of 32; the pass has the gradients of all weights, as in training."""
    model, x, y = networks(name), torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    pruning = FilterPruning(COMPOSITE)
    pruning.begin(model)

    def one_pass() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    faster(f"relevance of {name}", lambda: pruning.scores(model, [(x, y)]), one_pass, 0.4)


def test_scores_keep_little_more_than_a_pass() -> None:
    """Peak memory, at most twice that of a forward and backward pass."""
    model, x, y = networks("vgg16"), torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    pruning = FilterPruning(COMPOSITE)
    pruning.begin(model)
    with PeakMemory(x.device, model.parameters()) as ours:
        pruning.scores(model, [(x, y)])
    with PeakMemory(x.device, model.parameters()) as plain:
        F.cross_entropy(model(x), y).backward()
    print(f"\npeak: {ours.peak / 1e6:.0f} MB, a pass {plain.peak / 1e6:.0f} MB")
    assert ours.peak < 2 * plain.peak


def test_a_smaller_network_is_faster_than_a_silent_one() -> None:
    """VGG-16 without half of its filters, batches of 32."""
    model, x = networks("vgg16"), torch.randn(32, 3, 32, 32)
    pruning = FilterPruning(Weight(), norm="rank")
    pruning.begin(model)
    pruning.prune(model, [], pruning.total // 2)
    smaller = pruning.shrunk(model, trace(model, x[:2])).eval()
    with torch.no_grad():
        assert torch.allclose(smaller(x), model(x), atol=1e-5)
        faster("half of the filters", lambda: smaller(x), lambda: model(x), 2.0)
