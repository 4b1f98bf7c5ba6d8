"""One-shot pruning of trained networks, whatever the score; `repro.methods.gblm` shows a loop.

`prune_blocks` goes block by block, so that each block sees the inputs that the pruned ones before
it produce, and only one block at a time need be on the device; `decoder_gradients` fills
`GradientNorms` in the same way.

Modules: `scores` (magnitude, Wanda), `patterns` (which weights a score takes away), `statistics`,
`sparsegpt` (pruning with a weight update), `pruners` (what configs choose), `blocks`.
"""

from repro.toolbox.pruning.blocks import (
    Decoder,
    block_layers,
    decoder_gradients,
    mean_loss,
    next_token_losses,
    prune_blocks,
    run_blocks,
    zero_fraction,
)
from repro.toolbox.pruning.patterns import GROUPS, Pattern, lowest
from repro.toolbox.pruning.pruners import Pruner, SparseGPT
from repro.toolbox.pruning.scores import magnitude, wanda
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
    "Decoder",
    "GradientNorms",
    "InputMoments",
    "LayerStatistics",
    "Pattern",
    "Pruner",
    "SparseGPT",
    "block_layers",
    "column_structure",
    "decoder_gradients",
    "layers_of",
    "lowest",
    "magnitude",
    "mean_loss",
    "next_token_losses",
    "prune_blocks",
    "run_blocks",
    "sparsegpt",
    "wanda",
    "zero_fraction",
]
