"""U-ViT: a vision transformer with long skip connections (Bao et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import Count, checked
from repro.models.parts.checks import image_shape
from repro.models.parts.skips import Merge, MergeKind, PlainSkips, sinusoidal


class Block(nn.Module):
    """A transformer block with the norms first: attention and MLP, each with a residual.

    Args:
        width: features of a token, D.
        heads: of the attention; divides ``width``.
        mlp_ratio: hidden features of the MLP over ``width``.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        B, L, D = x_BLD.shape
        qkv_BLD = self.qkv(self.norm1(x_BLD)).view(B, L, 3, self.heads, D // self.heads)
        q, k, v = qkv_BLD.permute(2, 0, 3, 1, 4)  # each (B, heads, L, D / heads)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D)
        x_BLD = x_BLD + self.project(attended)
        out: Tensor = x_BLD + self.mlp(self.norm2(x_BLD))
        return out


class UViT(nn.Module):
    """U-ViT without classes: 2 N + 1 blocks over patch tokens and one time token.

    Maps noised images (B, C, H, W) and times (B,) to noise (B, C, H, W). With the defaults and
    CIFAR-10 it is U-ViT-S/2: 257 tokens, 44 M parameters. Initialisation and layout follow the
    official code: weights of linear layers and positions from N(0, 0.02²), biases zero, no bias in
    queries, keys and values.

    Args:
        input_shape: (C, H, W).
        n_skips: N, long skip connections.
        patch: side of a patch in pixels; divides H and W.
        width: features of a token.
        heads: of each attention.
        mlp_ratio: hidden features of the MLPs over ``width``.
        merge: ``concat`` (the official code) or ``add``.

    Raises:
        UserError: sizes that do not fit together.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        n_skips: Count = 6,
        patch: Count = 2,
        width: Count = 512,
        heads: Count = 8,
        mlp_ratio: Count = 4,
        merge: MergeKind = "concat",
    ) -> None:
        super().__init__()
        C, H, W = image_shape("uvit", input_shape)
        if H % patch or W % patch:
            raise UserError(f"uvit: model.patch={patch} does not divide images of {H}x{W} pixels.")
        if width % (2 * heads):
            raise UserError(f"uvit: model.width={width} is no multiple of 2 x {heads} heads.")
        self.width, self.patch, self.grid = width, patch, (H // patch, W // patch)
        tokens = 1 + self.grid[0] * self.grid[1]
        self.embed = nn.Conv2d(C, width, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(1, tokens, width))
        self.encoder = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(n_skips))
        self.middle = Block(width, heads, mlp_ratio)
        self.merges = nn.ModuleList(Merge(merge, width) for _ in range(n_skips))
        self.decoder = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(n_skips))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patch * patch * C)
        self.final = nn.Conv2d(C, C, 3, padding=1)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.apply(_init)
        self.skip_features = [tokens] * n_skips  # in decoder order
        self.scaler: nn.Module = PlainSkips()

    def forward(self, x: Tensor, time_B: Tensor) -> Tensor:
        """The predicted noise, of the shape of ``x``."""
        patches_BLD = self.embed(x).flatten(2).transpose(1, 2)
        time_B1D = sinusoidal(time_B, self.width).to(patches_BLD.dtype)[:, None]
        h = torch.cat([time_B1D, patches_BLD], dim=1) + self.position
        skips = []
        for block in self.encoder:
            h = block(h)
            skips.append(h)
        h = self.middle(h)
        for j, (merge, block) in enumerate(zip(self.merges, self.decoder, strict=True)):
            h = block(merge(h, self.scaler(skips.pop(), j)))
        pixels_BLP = self.head(self.norm(h))[:, 1:]
        noise: Tensor = self.final(self._assembled(pixels_BLP))
        return noise

    def _assembled(self, pixels_BLP: Tensor) -> Tensor:
        """Patches (B, rows · columns, patch² C) as images; within a patch, channels come last."""
        rows, columns = self.grid
        grid = pixels_BLP.view(len(pixels_BLP), rows, columns, self.patch, self.patch, -1)
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
