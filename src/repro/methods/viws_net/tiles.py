"""Frames that are too large for one pass, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, Natural, checked


@checked
def restore_tiled(
    network: nn.Module,
    clips_BT3HW: Tensor,
    tile: Count = 512,
    overlap: Natural = 16,
    multiple: Count = 32,
) -> Tensor:
    """The restored centre frames (B, 3, H, W).

    Where both sides have room for a tile, as published: tiles that overlap, the later one
    overwriting the earlier. Elsewhere, whole frames, padded by repeating their border.

    Args:
        network: maps clips to `repro.methods.viws_net.Restored`.
        clips_BT3HW: of any size.
        tile: edge of a tile in pixels.
        overlap: of neighbours in pixels.
        multiple: of what H and W have to be for the network.

    Raises:
        UserError: the overlap is not smaller than the tile.
    """
    if overlap >= tile:
        raise UserError(f"Tiles of {tile} pixels cannot overlap by {overlap}: choose less.")
    B, T, _, H, W = clips_BT3HW.shape
    if min(H, W) < tile:
        pad = (0, -W % multiple, 0, -H % multiple)
        padded = F.pad(clips_BT3HW.flatten(0, 1), pad, mode="replicate").unflatten(0, (B, T))
        whole: Tensor = network(padded).centre[:, :, :H, :W]
        return whole
    out = torch.empty_like(clips_BT3HW[:, 0])
    for y in _starts(H, tile, overlap):
        for x in _starts(W, tile, overlap):
            part = (..., slice(y, y + tile), slice(x, x + tile))
            out[part] = network(clips_BT3HW[part]).centre
    return out


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    return [*range(0, length - tile, tile - overlap), length - tile]
