"""Codes as a stream of bits, least significant first, and products straight from it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 512  # decoded at a time; eight rows begin and end with a byte, whatever their length


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes below ``2^bits``, of any shape, as ``ceil(count·bits / 8)`` bytes (uint8).

    Args:
        codes: whole numbers.
        bits: of a code, 1 to 8.
    """
    count = codes.numel()
    flat = F.pad(codes.flatten().to(torch.int64), (0, -count % 8)).view(-1, 8)
    # Eight codes make `bits` bytes, all of which fit into one word.
    words = (flat << bits * torch.arange(8, device=codes.device)).sum(1)
    shifts = 8 * torch.arange(bits, device=codes.device)
    data = ((words[:, None] >> shifts) & 255).to(torch.uint8).flatten()
    return data[: packed_size(count, bits)]


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes (uint8) of what `pack` made.

    Args:
        data: bytes.
        bits: of a code.
        count: of the codes.
    """
    data = F.pad(data, (0, -len(data) % bits)).view(-1, bits).to(torch.int64)
    words = (data << 8 * torch.arange(bits, device=data.device)).sum(1)
    shifts = bits * torch.arange(8, device=data.device)
    codes = (words[:, None] >> shifts) & (2**bits - 1)
    return codes.to(torch.uint8).flatten()[:count]


def packed_size(count: int, bits: int) -> int:
    """Bytes of so many codes."""
    return -(-count * bits // 8)


def decode(data: Tensor, bits: int, columns: int, groups_R: Tensor, tables_Gk: Tensor) -> Tensor:
    """Values (R, columns) of packed rows, each looked up in the table of its group.

    Args:
        data: codes of all rows, one row after the other.
        bits: of a code.
        columns: codes in a row.
        groups_R: number of the table of each row.
        tables_Gk: values, ``2^bits`` or fewer in each table.
    """
    per_byte = 8 // bits
    if 8 % bits or columns % per_byte:
        codes = unpack(data, bits, len(groups_R) * columns).view(-1, columns)
        return tables_Gk[groups_R].gather(1, codes.long())
    # One look-up gives the values of all codes in a byte.
    byte = torch.arange(256, device=data.device)[:, None]
    codes = (byte >> bits * torch.arange(per_byte, device=data.device)) & (2**bits - 1)
    values = tables_Gk[:, codes.clamp(max=tables_Gk.shape[1] - 1)].flatten(0, 1)
    place = data.view(len(groups_R), -1).int() + 256 * groups_R[:, None].int()
    return F.embedding(place, values).flatten(1)


def packed_product(
    x_BI: Tensor, data: Tensor, bits: int, groups_O: Tensor, tables_Gk: Tensor
) -> Tensor:
    """``x Ŵᵀ`` (B, O) without ever holding more than `ROWS` rows of Ŵ.

    Args:
        x_BI: inputs.
        data: packed codes of Ŵ (O, I).
        bits: of a code.
        groups_O: number of the table of each row.
        tables_Gk: values.
    """
    columns = x_BI.shape[-1]
    parts = []
    for start in range(0, len(groups_O), ROWS):
        groups = groups_O[start : start + ROWS]
        first = start * columns * bits // 8
        part = data[first : first + packed_size(len(groups) * columns, bits)]
        parts.append(x_BI @ decode(part, bits, columns, groups, tables_Gk).to(x_BI.dtype).T)
    return torch.cat(parts, dim=-1)
