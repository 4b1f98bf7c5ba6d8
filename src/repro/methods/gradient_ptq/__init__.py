"""Gradient-based post-training quantisation: rounding learned on a few calibration examples.

Yvinec, Dapogny, Bailly 2023, "Gradient-Based Post-Training Quantization: Challenging the Status
Quo", arXiv 2308.07662, and the methods it studies: AdaRound (Nagel et al. 2020), BRECQ (Li et al.
2021), QDrop (Wei et al. 2022). For units F (layers or blocks) in forward order, with float input X
and the quantised prefix's X̂, the rounding of the weights W descends

    L = E ‖ F(W, X) - F(Ŵ, X̂) ‖².

What varies is a `Recipe`: the variable (`round_sigmoid`, `free`, `offset`, `tanh`), the grid
(`uniform`, `power`), the loss, the optimizer, which weights may move, how features are augmented,
learned scales and biases, mixed precision by importance, quantised activations. Round to nearest
and the Hessian-based method of Frantar et al., which is also called GPTQ, are ``rounding=nearest``
and ``rounding=hessian``. In a plain loop:

>>> import torch
>>> from repro.methods.gradient_ptq import PostTrainingQuantization, Recipe
>>> _ = torch.manual_seed(0)
>>> mix = torch.randn(8, 8)  # correlated inputs, the case in which rounding can be learned
>>> x = torch.randn(256, 8) @ mix
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> def errors(**settings):
...     network = torch.nn.Sequential(*map(__import__("copy").deepcopy, model))
...     ptq = PostTrainingQuantization(network, Recipe(bits=2, **settings), x)
...     return [report.error for report in ptq]  # quantises layer after layer
>>> nearest = errors(rounding="nearest")
>>> learned = errors(variable="free", lr=1e-2, iterations=200)
>>> learned[-1] < nearest[-1]
True
"""

from repro.methods.gradient_ptq.activations import ActivationQuantizer
from repro.methods.gradient_ptq.allocation import allocate_bits, importance
from repro.methods.gradient_ptq.hessian import hessian_rounding, layer_hessian
from repro.methods.gradient_ptq.integer import integer_layer
from repro.methods.gradient_ptq.recipe import Activations, Mixed, Recipe
from repro.methods.gradient_ptq.reconstruction import PostTrainingQuantization

__all__ = [
    "ActivationQuantizer",
    "Activations",
    "Mixed",
    "PostTrainingQuantization",
    "Recipe",
    "allocate_bits",
    "hessian_rounding",
    "importance",
    "integer_layer",
    "layer_hessian",
]
