"""Which tensor operations the skeletonisation is made of."""

from __future__ import annotations

import copy

import torch

from repro.methods.skeleton.skeletonize import Skeletonize
from repro.toolbox.costs import CountOperations

# What the abstract allows, by PyTorch's names: additions, multiplications, convolutions, simple
# non-linearities, uniform random numbers; and what only moves, shapes or compares numbers.
ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "neg", "convolution", "avg_pool2d", "avg_pool3d"}
NONLINEAR = {"relu", "hardtanh", "clamp", "minimum", "amax", "abs", "sigmoid", "log", "gt"}
RANDOM = {"rand"}
MOVING = {
    "constant_pad_nd", "slice", "unsqueeze", "squeeze", "stack", "cat", "unbind", "select", "clone",
    "copy_", "alias", "view", "detach", "_to_copy", "empty", "fill_", "_unsafe_view", "zeros_like",
}  # fmt: skip
CHECKING = {"eq", "ge", "le", "bitwise_or", "bitwise_and", "all", "min", "max", "_local_scalar_dense", "is_nonzero"}  # fmt: skip  # noqa: E501
ALLOWED = ARITHMETIC | NONLINEAR | RANDOM | MOVING | CHECKING


def foreign_operations(layer: Skeletonize) -> set[str]:
    """Operations, beyond those that the paper allows itself, of one pass over soft input.

    The pass goes through the definition, without the shortcut for gradients of binary data.

    Args:
        layer: whose knobs are used; it is not changed.
    """
    plain = copy.deepcopy(layer)
    plain.num_iter, plain.probabilistic, plain.shortcut = 1, True, False
    inputs = [torch.full((1, 1, *size), 0.6) for size in ((6, 5), (4, 5, 6))]
    # Inference mode would show operations before they are taken apart.
    with torch.inference_mode(False), torch.no_grad(), CountOperations() as recorder:
        for x in inputs:
            plain(x.clone())
    return recorder.names - ALLOWED
