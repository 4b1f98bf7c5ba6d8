"""JLCM: codebooks and mappings of a trained network, learned jointly on a few examples.

Yvinec, Dapogny, Bailly 2023, "Network Memory Footprint Compression Through Jointly Learnable
Codebooks and Mappings", ICLR 2024, arXiv 2309.17361. A weight is an index into a small codebook:
``Ŵ_ij = C^γ(i)_{m_ij}``. Rows are grouped by how their weights are spread, and renumbered so that
groups are contiguous and need no table; codebook and mapping start from k-means and descend, layer
after layer,

    L = E ‖ a(W X) - a(Ŵ X̂) ‖² / E ‖ a(W X) ‖²,

with the compressed prefix's outputs X̂ and the activation a. The mapping is the argmax of logits I,
whose gradient is replaced by one that *decreases* with the distance between values,

    ∂ŵ/∂I_l := sign(C_l - C_m) φ(|C_l - C_m|).

What varies is a `Recipe`: kernel φ, optimizer, start, groups, codebooks or scales, and the rivals
k-means (also weighted by squared gradients), alternating descent, a soft mapping, uniform grids and
product quantisation. In a plain loop:

>>> import copy, torch
>>> from repro.methods.jlcm import CodebookCompression, Recipe
>>> _ = torch.manual_seed(0)
>>> x = torch.randn(256, 8) @ torch.randn(8, 8)  # correlated inputs
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> def last_error(**settings):
...     work = CodebookCompression(copy.deepcopy(model), Recipe(k=4, **settings), x)
...     return [report.error for report in work][-1]  # layer after layer
>>> kmeans = last_error(learner="start")
>>> learned = last_error(mapping_lr=0.5, iterations=200)
>>> learned < kmeans
True
"""

from repro.methods.jlcm.compression import CodebookCompression, Mapped, compress_blocks
from repro.methods.jlcm.mapping import kernel_table, mapped, start_logits
from repro.methods.jlcm.neurons import (
    Link,
    find_links,
    neuron_groups,
    permute_neurons,
    scale_neurons,
)
from repro.methods.jlcm.recipe import Recipe

__all__ = [
    "CodebookCompression",
    "Link",
    "Mapped",
    "Recipe",
    "compress_blocks",
    "find_links",
    "kernel_table",
    "mapped",
    "neuron_groups",
    "permute_neurons",
    "scale_neurons",
    "start_logits",
]
