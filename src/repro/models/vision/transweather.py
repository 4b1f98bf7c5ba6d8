"""TransWeather (Valanarasu et al., CVPR 2022): a transformer that restores single images.

An encoder of pooled attention whose stages also look at patches within patches, a decoder of
learned weather queries, and an up-sampler; the output is no correction of the input but the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.knobs import Count, Fraction, Positive, checked
from repro.models.parts.maps import (
    EPS,
    ConvolvedMLP,
    DropPath,
    PatchEmbedding,
    Size,
    UpSampler,
    attention,
    convolve,
    init_map_transformer,
    size_of,
    to_map,
    to_sequence,
)
from repro.models.parts.queries import QueryDecoder


class PooledBlock(nn.Module):
    """Attention to a pooled map (Wang et al., ICCV 2021), and an MLP with a convolution.

    Args:
        width: C.
        heads: of the attention.
        ratio: hidden width of the MLP over C.
        reduction: kernel and stride of the pooling; 1: none.
        drop_path: rate of `DropPath`.
    """

    def __init__(
        self, width: int, heads: int, ratio: float, reduction: int, drop_path: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.sr = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width) if reduction > 1 else None
        self.mlp = ConvolvedMLP(width, ratio, residual=False)
        self.drop = DropPath(drop_path)

    def forward(self, x_NLC: Tensor, size: Size) -> Tensor:
        """A sequence of the same shape."""
        normed = self.norm1(x_NLC)
        pooled = normed
        if self.sr is not None and self.norm is not None:
            pooled = self.norm(convolve(self.sr, normed, size)[0])
        k, v = self.kv(pooled).chunk(2, -1)
        x_NLC = x_NLC + self.drop(self.proj(attention(self.q(normed), k, v, self.heads)))
        return x_NLC + self.drop(self.mlp(self.norm2(x_NLC), size))


class InnerPatches(nn.Module):
    """Patches within patches: an embedding, a block, and a layer norm.

    Args:
        width: C of a stage.
        wider: of the next one.
        block: on the latter.
    """

    def __init__(self, width: int, wider: int, block: PooledBlock) -> None:
        super().__init__()
        self.embed, self.block = PatchEmbedding(width, wider), block
        self.norm = nn.LayerNorm(wider, EPS)

    def forward(self, x_NLC: Tensor, size: Size) -> Tensor:
        """A sequence as the next stage has them."""
        y_NLC, inner_size = self.embed(x_NLC, size)
        out: Tensor = self.norm(self.block(y_NLC, inner_size))
        return out


class TransWeather(nn.Module):
    """Maps images (N, 3, H, W) in [0, 1] to restored ones; the published sizes by default.

    Images are normalised by a mean and a standard deviation of 0.5, targets are not.

    Args:
        widths: C by stage, at strides 4, 8, 16, ….
        depths: blocks by stage.
        heads: by stage; inner blocks have those of the first stage, then of the second.
        ratio: hidden width of the encoder's MLPs over C.
        reductions: of the keys, by stage.
        drop_path: rate in the encoder's last block, rising from 0; the decoder's blocks have the
            first ones of 16 steps to it.
        kernel: of the first embedding, of stride 4.
        queries: that each block of the decoder learns.
        decoder_depth: blocks of the decoder.
        decoder_heads: of their attention.
        last: channels of the up-sampler at stride 2 and at full size.
    """

    @checked
    def __init__(
        self,
        widths: Sequence[Count] = (64, 128, 320, 512),
        depths: Sequence[Count] = (2, 2, 2, 2),
        heads: Sequence[Count] = (1, 2, 4, 4),
        ratio: Positive = 2.0,
        reductions: Sequence[Count] = (4, 2, 2, 1),
        drop_path: Fraction = 0.1,
        kernel: Count = 7,
        queries: Count = 48,
        decoder_depth: Count = 3,
        decoder_heads: Count = 8,
        last: Sequence[Count] = (16, 8),
    ) -> None:
        super().__init__()
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.embeds, self.norms = nn.ModuleList(), nn.ModuleList()
        self.stages, self.inner = nn.ModuleList(), nn.ModuleList()
        for stage, (wide, depth, r) in enumerate(zip(widths, depths, reductions, strict=True)):
            before = widths[stage - 1] if stage else 3
            self.embeds.append(
                PatchEmbedding(before, wide) if stage else PatchEmbedding(3, wide, kernel, 4)
            )
            own = [next(rates) for _ in range(depth)]
            self.stages.append(
                nn.ModuleList(PooledBlock(wide, heads[stage], ratio, r, rate) for rate in own)
            )
            self.norms.append(nn.LayerNorm(wide, EPS))
            if stage + 1 < len(widths):
                wider = widths[stage + 1]
                block = PooledBlock(wider, heads[min(stage, 1)], ratio, r, own[0])
                self.inner.append(InnerPatches(wide, wider, block))
        decoder_rates = torch.linspace(0, drop_path, 16, device="cpu").tolist()
        self.decoder = QueryDecoder(
            widths[-1], decoder_depth, decoder_heads, 4.0, decoder_rates, queries
        )
        self.up = UpSampler(list(widths), (last[0], last[1]), from_below=True)
        self.out = nn.Conv2d(last[1], 3, 3, padding=1)
        for part in (self.embeds, self.stages, self.inner):
            init_map_transformer(part)

    def encode(self, x_NCHW: Tensor) -> list[Tensor]:
        """Maps by stage."""
        maps: list[Tensor] = []
        x_NLC, size = self.embeds[0](to_sequence(x_NCHW), size_of(x_NCHW))
        for stage, blocks in enumerate(self.stages):
            # Patches within patches branch off before the blocks and join the next embedding.
            branch = None
            if stage < len(self.inner):
                branch = self.inner[stage](x_NLC, size)
            for block in blocks:  # type: ignore[attr-defined]
                x_NLC = block(x_NLC, size)
            x_NLC = self.norms[stage](x_NLC)
            maps.append(to_map(x_NLC, size))
            if branch is not None:
                x_NLC, size = self.embeds[stage + 1](x_NLC, size)
                x_NLC = x_NLC + branch
        return maps

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Restored images of the same shape; H and W multiples of the deepest stride."""
        maps = self.encode(2 * x_N3HW - 1)
        return torch.tanh(self.out(self.up(maps, self.decoder(maps[-1]))))
