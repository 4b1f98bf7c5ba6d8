"""Pruning by explaining: units that explanations do not need can go (Yeom et al. 2021).

A trained network is asked why it is right on a few references: layer-wise relevance propagation
(`repro.toolbox.lrp`) gives every unit its relevance for the true class, and the lowest of all
layers together are removed. Any other criterion takes the place of relevance: weights, gradients,
Taylor's first term, chance. In a plain loop:

>>> import torch
>>> from torch import nn
>>> from repro.methods.lrp_pruning import FilterPruning, Relevance
>>> from repro.toolbox.dependency_graph import trace
>>> from repro.toolbox.lrp import z_plus
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(
...     nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
...     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
... )
>>> x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 3
>>> pruning = FilterPruning(Relevance(conv=z_plus(), linear=z_plus()))
>>> pruning.begin(model)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
>>> for step in range(3):
...     pruning.prune(model, [(x, y)], count=2)
...     for update in range(5):  # successive fine-tuning
...         optimizer.zero_grad()
...         nn.functional.cross_entropy(model(x), y).backward()
...         optimizer.step()
...         pruning.silence(model)
>>> sum(int(left.sum()) for left in pruning.kept.values()), pruning.total
(10, 16)
>>> smaller = pruning.shrunk(model, trace(model, x))
>>> bool(torch.allclose(smaller.eval()(x), model.eval()(x), atol=1e-6))
True
>>> sum(w.numel() for w in smaller.parameters()) < sum(w.numel() for w in model.parameters())
True
"""

from repro.methods.lrp_pruning.criteria import (
    Activation,
    Batches,
    Criterion,
    Gradient,
    Random,
    Relevance,
    Scores,
    Taylor,
    Weight,
    normalised,
)
from repro.methods.lrp_pruning.pruning import (
    FilterPruning,
    Units,
    overlap,
    scoring_cost,
    silence,
    units_of,
    without_lowest,
)
from repro.methods.lrp_pruning.removal import shrunk

__all__ = [
    "Activation",
    "Batches",
    "Criterion",
    "FilterPruning",
    "Gradient",
    "Random",
    "Relevance",
    "Scores",
    "Taylor",
    "Units",
    "Weight",
    "normalised",
    "overlap",
    "scoring_cost",
    "shrunk",
    "silence",
    "units_of",
    "without_lowest",
]
