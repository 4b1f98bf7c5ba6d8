"""A decoder whose attention asks a feature map with queries (TransWeather, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.knobs import Count, Fraction, Natural, Positive, checked
from repro.models.parts.maps import (
    EPS,
    ConvolvedMLP,
    DropPath,
    PatchEmbedding,
    Size,
    attention,
    init_map_transformer,
    size_of,
    to_map,
    to_sequence,
)


class QueryBlock(nn.Module):
    """``x <- x + attention(queries, norm(x))``, ``x <- x + MLP(norm(x))``.

    Args:
        width: C.
        heads: of the attention.
        ratio: hidden width of the MLP over C.
        drop_path: rate of `DropPath`.
        learned: how many queries of its own it has; 0: they are given.
    """

    def __init__(
        self, width: int, heads: int, ratio: float, drop_path: float, learned: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = ConvolvedMLP(width, ratio, residual=False)
        self.drop = DropPath(drop_path)
        self.queries = nn.Parameter(torch.zeros(1, learned, width)) if learned else None

    def forward(self, x_NLC: Tensor, size: Size, queries_NMC: Tensor | None) -> Tensor:
        """A sequence of the same shape."""
        if self.queries is not None:
            queries_NMC = self.queries.expand(len(x_NLC), -1, -1)
        assert queries_NMC is not None
        # As many queries as places: the nearest one for each.
        asked_NLC = F.interpolate(queries_NMC.mT, x_NLC.shape[1]).mT
        k, v = self.kv(self.norm1(x_NLC)).chunk(2, -1)
        found_NLC = attention(self.q(asked_NLC), k, v, self.heads)
        x_NLC = x_NLC + self.drop(self.proj(found_NLC))
        return x_NLC + self.drop(self.mlp(self.norm2(x_NLC), size))


class QueryDecoder(nn.Module):
    """Halves a map, and lets queries rewrite it in some blocks.

    Args:
        width: C of the map and of the queries.
        depth: blocks.
        heads: of their attention.
        ratio: hidden width of their MLPs over C.
        drop_path: rates by block.
        learned: queries that each block has of its own, drawn from N(0, 1); 0: they are given.
    """

    @checked
    def __init__(
        self,
        width: Count,
        depth: Count,
        heads: Count,
        ratio: Positive = 4.0,
        drop_path: Sequence[Fraction] = (),
        learned: Natural = 0,
    ) -> None:
        super().__init__()
        rates = [*drop_path, *[0.0] * depth][:depth]
        self.embed = PatchEmbedding(width, width)
        self.blocks = nn.ModuleList(QueryBlock(width, heads, ratio, r, learned) for r in rates)
        self.norm = nn.LayerNorm(width, EPS)
        init_map_transformer(self)
        for block in self.blocks:  # last, so that decoders with and without queries begin alike
            if block.queries is not None:
                nn.init.normal_(block.queries)  # type: ignore[arg-type]

    def forward(self, x_NCHW: Tensor, queries_NMC: Tensor | None = None) -> Tensor:
        """(N, C, H / 2, W / 2), rounded up."""
        x_NLC, size = self.embed(to_sequence(x_NCHW), size_of(x_NCHW))
        for block in self.blocks:
            x_NLC = block(x_NLC, size, queries_NMC)
        return to_map(self.norm(x_NLC), size)
