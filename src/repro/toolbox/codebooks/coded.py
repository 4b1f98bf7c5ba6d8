"""A weight as codes, codebooks and scales: ``Ŵ_ij = s_γ(i) · C^γ(i)_{m_ij}``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.toolbox.codebooks.packing import decode, pack

CODEBOOK_BITS = 16  # of a value in a codebook, and of a scale: both are stored as float16


def code_bits(k: int) -> int:
    """Bits of a code that takes k values."""
    return max(1, (k - 1).bit_length())


def nearest_codes(weight_RN: Tensor, tables_Rk: Tensor) -> Tensor:
    """Number of the nearest value in each row's own table, (R, N) int64.

    Args:
        weight_RN: rows of weights.
        tables_Rk: rising values.
    """
    middles = (tables_Rk[:, 1:] + tables_Rk[:, :-1]) / 2
    return torch.searchsorted(middles.contiguous(), weight_RN.contiguous())


@dataclass(frozen=True)
class CodedWeight:
    """What is stored of a weight.

    Attributes:
        codes: (rows, columns) numbers of values, uint8; columns are all but the first dimension.
        codebooks: (B, k), a codebook for each group of rows, or one for all.
        groups: (rows,) group of each row, int64.
        scales: (G,) a scale for each group, or None.
        shape: of the weight.
        implied: groups follow from the order of the rows (they are contiguous), so that no table
            says which row is in which.
    """

    codes: Tensor
    codebooks: Tensor
    groups: Tensor
    scales: Tensor | None
    shape: tuple[int, ...]
    implied: bool = True

    @property
    def tables(self) -> Tensor:
        """Values by group (G, k), in single precision."""
        tables = self.codebooks.float()
        return tables if self.scales is None else tables * self.scales.float()[:, None]

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.tables)

    def weight(self) -> Tensor:
        """The weight, in single precision."""
        bits = code_bits(self.codebooks.shape[1])
        columns = self.codes.shape[1]
        data = pack(self.codes, bits)
        return decode(data, bits, columns, self.groups, self.tables).view(self.shape)

    def bits(self) -> int:
        """Bits of codes, codebooks, scales and, unless implied, of the table of groups."""
        return weight_bits(
            self.codes.shape[0],
            self.codes.numel(),
            self.codebooks.shape[1],
            len(self.codebooks),
            0 if self.scales is None else len(self.scales),
            0 if self.implied else self.count,
        )

    def used(self) -> int:
        """How many of the codebooks' values any weight has."""
        places = self.codes.long()
        if len(self.codebooks) > 1:
            places = places + self.codebooks.shape[1] * self.groups[:, None]
        return len(places.unique())


def weight_bits(
    rows: int, weights: int, k: int, codebooks: int = 1, scales: int = 0, listed: int = 0
) -> int:
    """``Ω(W) log2 k + 16 k B + 16 G``, and ``n_o log2 G`` where groups are listed row by row.

    Args:
        rows: n_o of the weight.
        weights: Ω(W).
        k: values in a codebook.
        codebooks: B.
        scales: G, where there are scales.
        listed: number of groups that a table lists the rows of; 0: there is no table.
    """
    table = rows * code_bits(listed) if listed > 1 else 0
    return weights * code_bits(k) + CODEBOOK_BITS * (k * codebooks + scales) + table


def memory_bits(
    model: nn.Module, layers: Collection[str], k: int, codebooks: int = 1, scales: int = 0
) -> int:
    """Bits of a model whose named layers are coded, from its shapes alone.

    Args:
        model: may be on the device ``meta``; everything but the layers' weights stays as it is.
        layers: names of layers.
        k: values in a codebook.
        codebooks: of each layer.
        scales: of each layer.
    """
    coded = {f"{layer}.weight" for layer in layers}
    return sum(
        weight_bits(len(tensor), tensor.numel(), k, codebooks, scales)
        if name in coded
        else 8 * tensor.numel() * tensor.dtype.itemsize
        for name, tensor in model.named_parameters()
    )
