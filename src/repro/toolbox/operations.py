"""What a computation costs, counted: multiplications, and decompositions or solves it asks for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
_ELEMENTWISE = {"mul", "div", "reciprocal", "square", "rsqrt", "sqrt"}


class CountOperations(TorchDispatchMode):
    """Counts the real multiplications of all PyTorch operations inside a ``with`` block.

    A complex product counts as four real ones. Products of matrices, elementwise products and
    quotients, and the leading term of each factorisation are counted; additions, exponentials and
    memory traffic are not. A factorisation or solve is also counted as such.

    Attributes:
        multiplications: real multiplications so far.
        solves: by name, the calls that invert, solve with, or factorise a matrix.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0
        self.solves: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts it."""
        if torch.is_inference_mode_enabled():
            # There, operations that consist of others arrive whole.
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        output = result[0] if isinstance(result, tuple | list) else result
        if not tensors or not isinstance(output, Tensor):
            return result
        real = 4 if any(tensor.is_complex() for tensor in tensors) else 1
        if name in _PRODUCTS:
            self.multiplications += real * output.numel() * tensors[-1].shape[-2]
        elif name in _ELEMENTWISE:
            self.multiplications += real * output.numel()
        elif "linalg" in name or "cholesky" in name or "inverse" in name:
            self.solves[name] = self.solves.get(name, 0) + 1
            self.multiplications += real * _cost(name, tensors)
        return result


def _cost(name: str, tensors: list[Tensor]) -> int:
    """Products of a dense factorisation, to leading order (Golub and Van Loan)."""
    *batch, rows, columns = tensors[0].shape
    small, large = min(rows, columns), max(rows, columns)
    count = math.prod(batch)
    if "solve" in name:
        right = tensors[1].shape[-1] if len(tensors) > 1 else 1
        return count * (small**3 // 3 + small**2 * right)
    if "inv" in name:
        return count * small**3
    if "svd" in name:
        return count * (4 * large * small**2 + 8 * small**3)
    if "qr" in name:  # the factorisation, and forming Q
        return count * 2 * (large * small**2 - small**3 // 3)
    if "eig" in name:
        return count * 9 * small**3
    return count * small**3 // 3  # Cholesky, LU, determinants


def count_operations(function: Any, *args: Any) -> CountOperations:
    """Counts what ``function(*args)`` does, without gradients."""
    with torch.no_grad(), CountOperations() as counted:
        function(*args)
    return counted
