"""Folding batch norm into the convolution before it, as inference and quantisation want it."""

from __future__ import annotations

import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(model: nn.Module) -> int:
    """Folds every batch norm that directly follows a convolution, in place.

    The convolution takes over scale and shift and the batch norm becomes an identity, so that all
    other names in the model stay.

    Args:
        model: in evaluation mode; traceable by `torch.fx` if it has batch norms.

    Returns:
        How many were folded.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return 0
    modules = dict(model.named_modules())
    folded = 0
    for node in torch.fx.symbolic_trace(model).graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        source = node.args[0]
        conv = modules.get(str(source.target)) if source.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(source.users) > 1:
            continue
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        parent, _, name = str(node.target).rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
        folded += 1
    return folded
