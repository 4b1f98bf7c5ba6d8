"""What PyTorch offers under names with an underscore alone: the only file that says them.

Operations over lists of tensors, which its own optimizers are made of; gamma variates from a
generator, which `torch.distributions` cannot give; and the hooks by which operations are seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "TorchDispatchMode",
    "foreach_add_",
    "foreach_copy_",
    "foreach_lerp_",
    "foreach_mul",
    "foreach_mul_",
    "foreach_norm",
    "identity",
    "standard_gamma",
    "tree_leaves",
    "version",
]

foreach_add_ = torch._foreach_add_
foreach_copy_ = torch._foreach_copy_
foreach_lerp_ = torch._foreach_lerp_
foreach_mul = torch._foreach_mul
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm
standard_gamma = torch._standard_gamma


def identity(storage: torch.UntypedStorage) -> int:
    """A number that tells a living storage from all others."""
    return int(storage._cdata)


def version(tensor: Tensor) -> Any:
    """How often a tensor was changed in place; inference tensors keep no count."""
    return 0 if tensor.is_inference() else tensor._version
