"""One-shot pruning of trained networks: GBLM-Pruner and what it is compared with.

GBLM-Pruner (Das, Sun, Ma, Shen; arXiv 2311.04902) scores each weight of a linear layer by

    S_ij = |W_ij| A_j + |W_ij| G_ij,    A_j = sqrt(Σ_s Σ_t X_stj² / N),    G_ij = α Σ_s |∂L_s/∂W_ij|

over N calibration sequences s of tokens t, and sets the lowest scores of each row to zero. Nothing
is trained. The first term alone is Wanda. Any module with linear layers will do:

>>> import torch
>>> from torch import nn
>>> from repro.toolbox.pruning import GradientNorms, InputMoments, Pattern, ScorePruner, layers_of
>>> _ = torch.manual_seed(0)
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
>>> x, y = torch.randn(32, 4), torch.randn(32, 1)
>>> layers = layers_of(model)
>>> with InputMoments(layers) as moments, GradientNorms(model, layers) as gradients:
...     for part in range(0, 32, 8):  # losses of examples are summed: each keeps its own gradient
...         (model(x[part : part + 8]) - y[part : part + 8]).square().sum().backward()
>>> pruner = ScorePruner("gblm", alpha=100.0)
>>> for name, layer in layers.items():
...     statistics = moments.of(name, gradient=gradients.norm(name))
...     layer.weight.data = pruner(layer.weight.data, statistics, Pattern("2:4"))
>>> [int((layer.weight == 0).sum()) for layer in layers.values()]
[16, 4]

For deep models `prune_blocks` goes block by block, so that each block sees the inputs that the
pruned ones before it produce, and only one block at a time need be on the device;
`decoder_gradients` fills `GradientNorms` in the same way.

Modules: `scores` (the formulas), `patterns` (which weights a score takes away), `statistics`,
`sparsegpt` (pruning with a weight update), `pruners` (what configs choose), `blocks`.
"""

from repro.toolbox.pruning.blocks import (
    Decoder,
    block_layers,
    decoder_gradients,
    next_token_losses,
    prune_blocks,
    run_blocks,
)
from repro.toolbox.pruning.patterns import GROUPS, Pattern, lowest
from repro.toolbox.pruning.pruners import Pruner, ScorePruner, SparseGPT
from repro.toolbox.pruning.scores import SCORES
from repro.toolbox.pruning.sparsegpt import sparsegpt
from repro.toolbox.pruning.statistics import (
    GradientNorms,
    InputMoments,
    LayerStatistics,
    layers_of,
)
from repro.toolbox.pruning.structure import column_structure

__all__ = [
    "GROUPS",
    "SCORES",
    "Decoder",
    "GradientNorms",
    "InputMoments",
    "LayerStatistics",
    "Pattern",
    "Pruner",
    "ScorePruner",
    "SparseGPT",
    "block_layers",
    "column_structure",
    "decoder_gradients",
    "layers_of",
    "lowest",
    "next_token_losses",
    "prune_blocks",
    "run_blocks",
    "sparsegpt",
]
