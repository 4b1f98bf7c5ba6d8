"""SparseGPT: prune column by column and let the columns to come make up for it.

Frantar and Alistarh 2023 (arXiv 2301.00774), as in the official code: optimal brain surgeon on the
squared error of a layer's outputs, with one order of columns for all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repro.errors import UserError
from repro.toolbox.pruning.patterns import Pattern, lowest


def sparsegpt(
    weight: Tensor, hessian: Tensor, pattern: Pattern, block: int = 128, damping: float = 0.01
) -> Tensor:
    """Prunes a weight matrix and updates the weights that stay.

    With U the upper Cholesky factor of H⁻¹, U_jj² is entry (j, j) of the inverse of H restricted to
    columns j, j+1, …; a weight is worth w² / U_jj², and taking it away adds ``-w / U_jj`` times
    row j of U to the columns that follow. Within a block of columns weights of all rows compete.

    Args:
        weight: (outputs, inputs).
        hessian: (inputs, inputs) of the squared error, e.g. ``2/N Σ XᵀX``.
        pattern: how much goes; N:M patterns choose when their first column is reached.
        block: columns among which weights compete, and after which the rest is updated at once.
        damping: fraction of the mean diagonal that is added to it.

    Returns:
        (outputs, inputs): the new weights, in the type of `weight`; inputs that were never active
        have weight zero.

    Raises:
        UserError: a block that M does not divide, or a Hessian that is not positive.
    """
    if pattern.is_grouped and block % pattern.m:
        raise UserError(f"sparsegpt: block={block} must be a multiple of {pattern.m}.")
    if pattern.is_grouped and weight.shape[1] % pattern.m:
        raise UserError(
            f"Pattern {pattern.n}:{pattern.m} needs inputs in groups of {pattern.m}; a layer has"
            f" {weight.shape[1]}."
        )
    w = weight.to(hessian.dtype, copy=True)
    upper = _inverse_factor(hessian, w, damping)
    # Columns are worked on as rows of the transpose, which lie together in memory.
    w_IO = w.mT.contiguous()
    for start in range(0, len(w_IO), block):
        part_IO, factor = w_IO[start : start + block], upper[start : start + block]
        own = factor[:, start : start + len(part_IO)]
        errors_IO = _prune_block(part_IO, own, pattern)
        w_IO[start + block :] -= factor[:, start + block :].mT @ errors_IO
    return w_IO.mT.to(weight.dtype).contiguous()


def _prune_block(w_IO: Tensor, upper: Tensor, pattern: Pattern) -> Tensor:
    """Prunes the columns of one block in place; returns their errors (columns, outputs)."""
    scale = upper.diagonal()[:, None]
    goes = torch.zeros_like(w_IO, dtype=torch.bool)
    if not pattern.is_grouped:
        goes = lowest(w_IO.square() / scale.square(), pattern, "matrix")
    errors_IO = torch.empty_like(w_IO)
    for j in range(len(w_IO)):
        if pattern.is_grouped and j % pattern.m == 0:
            group = slice(j, j + pattern.m)
            worth = w_IO[group].square() / scale[group].square()
            goes[group] = lowest(worth.mT, pattern).mT
        removed = torch.where(goes[j], w_IO[j], 0)
        errors_IO[j] = removed / upper[j, j]
        w_IO[j:].addr_(upper[j, j:], errors_IO[j], alpha=-1)
    w_IO.masked_fill_(goes, 0)  # exactly zero, where rounding left a trace
    return errors_IO


def _inverse_factor(hessian: Tensor, w: Tensor, damping: float) -> Tensor:
    """U with UᵀU = (H + damping)⁻¹; clears the weights of inputs that were never active.

    Raises:
        UserError: the Hessian is not positive definite.
    """
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    silent = diagonal == 0
    diagonal[silent] = 1
    w[:, silent] = 0
    diagonal += damping * diagonal.mean()
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise UserError(
            "sparsegpt: the Hessian is not positive definite: raise method.damping."
        ) from error
