"""The shunted transformer (Ren et al., CVPR 2022), with tokens that ride along with every image.

Half of the heads of a block look at keys that were pooled r times, the other half at keys pooled
r / 2 times. Shape legend: see `repro.models.parts.maps`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.files import data_root
from repro.errors import UserError
from repro.knobs import Count, Fraction, Natural, Positive, checked
from repro.models.parts.maps import (
    EPS,
    ConvolvedMLP,
    DropPath,
    PatchEmbedding,
    Size,
    attention,
    convolve,
    depthwise,
    init_map_transformer,
    on_constant,
    size_of,
    to_map,
    to_sequence,
    tokens_of,
)

# Called with tokens (N, M, C), the block's number and its stage's depth; returns the next tokens.
Between = Callable[[Tensor, int, int], Tensor]


def kept(tokens_NMC: Tensor, _block: int, _depth: int) -> Tensor:
    """Tokens as they are."""
    return tokens_NMC


class Shunt(nn.Module):
    """Some heads of a block: their keys and values, pooled or not, and the attention to them.

    Values get a depth-wise convolution of themselves added, tokens themselves: before the attention
    where keys are pooled, else behind it, each at its own place.

    Args:
        width: C of what keys are made of.
        inner: channels of keys and values, those of these heads.
        heads: their number.
        ratio: of the pooling, kernel and stride of a convolution; None: none.
    """

    def __init__(self, width: int, inner: int, heads: int, ratio: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.sr = None if ratio is None else nn.Conv2d(width, width, ratio, ratio)
        self.norm = None if ratio is None else nn.LayerNorm(width)
        self.kv = nn.Linear(width, 2 * inner)
        self.local_conv = depthwise(inner)

    def forward(self, q_NLc: Tensor, x_NLC: Tensor, size: Size) -> Tensor:
        """What queries (N, L, inner) find in a sequence."""
        if self.sr is not None and self.norm is not None:
            x_NLC, size = convolve(self.sr, x_NLC, size)
            x_NLC = F.gelu(self.norm(x_NLC))
        k, v = self.kv(x_NLC).chunk(2, -1)
        local = to_sequence(self.local_conv(to_map(v, size)), tokens_of(v, size))
        if self.sr is not None:
            v = v + local
        found = attention(q_NLc, k, v, self.heads)
        return found if self.sr is not None else found + local


class ShuntedBlock(nn.Module):
    """Attention and MLP, both behind a layer norm that map and tokens share.

    Args:
        width: C.
        heads: of the attention, an even number where keys are pooled.
        ratio: hidden width of the MLP over C.
        reduction: r; 1: keys are not pooled.
        drop_path: rate of `DropPath`, which leaves out map and tokens together.
    """

    def __init__(
        self, width: int, heads: int, ratio: float, reduction: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.q, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        ratios = [None] if reduction == 1 else [reduction, reduction // 2]
        parts = len(ratios)
        self.shunts = nn.ModuleList(
            Shunt(width, width // parts, heads // parts, each) for each in ratios
        )
        self.mlp = ConvolvedMLP(width, ratio, residual=True)
        self.drop = DropPath(drop_path)

    def forward(self, x_NLC: Tensor, size: Size) -> Tensor:
        """A sequence of the same shape."""
        normed = self.norm1(x_NLC)
        parts = self.q(normed).chunk(len(self.shunts), -1)
        found = [shunt(q, normed, size) for shunt, q in zip(self.shunts, parts, strict=True)]
        x_NLC = x_NLC + self.drop(self.proj(torch.cat(found, -1)))
        return x_NLC + self.drop(self.mlp(self.norm2(x_NLC), size))


class Stem(nn.Module):
    """Convolutions down to a quarter of the size; of tokens only the first one, and the norm.

    Args:
        width: of all maps.
        kernel: of the first convolution, of stride 2.
        convs: 3 x 3 convolutions behind it.
    """

    def __init__(self, width: int, kernel: int, convs: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, width, kernel, 2, kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(convs):
            conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        self.conv = nn.Sequential(*layers, nn.Conv2d(width, width, 2, 2))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_N3HW: Tensor, tokens_NM3: Tensor) -> tuple[Tensor, Size]:
        """The sequence of map and tokens, and its size."""
        x_NCHW = self.conv(x_N3HW)
        first = self.conv[0]
        assert isinstance(first, nn.Conv2d)
        return self.norm(to_sequence(x_NCHW, on_constant(first, tokens_NM3))), size_of(x_NCHW)


class Stage(nn.Module):
    """An embedding, blocks, and a layer norm.

    Args:
        embed: makes the first sequence.
        blocks: see `ShuntedBlock`.
        width: C.
    """

    def __init__(self, embed: nn.Module, blocks: Sequence[ShuntedBlock], width: int) -> None:
        super().__init__()
        self.embed, self.blocks = embed, nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor, other: Tensor | Size, between: Between) -> tuple[Tensor, Size]:
        """The last sequence and its size; ``other`` is what the embedding takes besides."""
        x_NLC, size = self.embed(x, other)
        for number, block in enumerate(self.blocks):
            x_NLC = block(x_NLC, size)
            tokens = between(tokens_of(x_NLC, size), number, len(self.blocks))
            x_NLC = to_sequence(to_map(x_NLC, size), tokens)
        return self.norm(x_NLC), size


class ShuntedTransformer(nn.Module):
    """The stages without a classifier; those of shunted-S by default.

    Args:
        widths: C by stage, at strides 4, 8, 16, ….
        depths: blocks by stage.
        heads: by stage.
        ratios: hidden width of the MLPs over C, by stage.
        reductions: r by stage, 1 or an even number.
        drop_path: rate of `DropPath` in the last block; it rises from 0 in the first.
        kernel: of the first convolution.
        convs: 3 x 3 convolutions behind it.

    Raises:
        UserError: lists of different lengths, heads that do not divide widths, or an odd r.
    """

    @checked
    def __init__(
        self,
        widths: Sequence[Count] = (64, 128, 256, 512),
        depths: Sequence[Count] = (2, 4, 12, 1),
        heads: Sequence[Count] = (2, 4, 8, 16),
        ratios: Sequence[Positive] = (8.0, 8.0, 4.0, 4.0),
        reductions: Sequence[Count] = (8, 4, 2, 1),
        drop_path: Fraction = 0.3,
        kernel: Count = 7,
        convs: Natural = 1,
    ) -> None:
        super().__init__()
        if len({len(each) for each in (widths, depths, heads, ratios, reductions)}) > 1:
            raise UserError("Shunted transformer: give all of its lists an entry for each stage.")
        for width, count, r in zip(widths, heads, reductions, strict=True):
            if width % count or (r > 1 and (r % 2 or count % 2)):
                raise UserError(
                    f"Shunted transformer: {count} heads on {width} channels, reduction {r}: heads"
                    " divide channels, and both heads and a reduction above 1 are even."
                )
        self.widths = list(widths)
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        for stage, end in enumerate(accumulate(depths)):
            wide = widths[stage]
            blocks = [
                ShuntedBlock(wide, heads[stage], ratios[stage], reductions[stage], rate)
                for rate in rates[end - depths[stage] : end]
            ]
            embed = PatchEmbedding(widths[stage - 1], wide) if stage else Stem(wide, kernel, convs)
            self.stages.append(Stage(embed, blocks, wide))
        init_map_transformer(self)

    def forward(
        self, x_N3HW: Tensor, tokens_NM3: Tensor | None = None, between: Between = kept
    ) -> tuple[list[Tensor], Tensor]:
        """Maps by stage, and what became of the tokens.

        Args:
            x_N3HW: images; H and W at least the largest product of a stage's stride and reduction.
            tokens_NM3: M colours that ride along with each of them.
            between: what happens to tokens behind each block.

        Returns:
            [(N, C, H / stride, W / stride)], and (N, M, C) of the last stage.
        """
        tokens = x_N3HW.new_zeros(len(x_N3HW), 0, 3) if tokens_NM3 is None else tokens_NM3
        maps: list[Tensor] = []
        x_NLC, size = self.stages[0](x_N3HW, tokens, between)
        maps.append(to_map(x_NLC, size))
        for stage in self.stages[1:]:
            x_NLC, size = stage(x_NLC, size, between)
            maps.append(to_map(x_NLC, size))
        return maps, tokens_of(x_NLC, size)

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over ImageNet weights as their authors publish them (``ckpt_S.pth``).

        Their first convolution has no bias, so that ours keeps its own; their head is not used.

        Args:
            weights: the state dictionary.

        Raises:
            UserError: names or shapes are of another network.
        """
        ours = {_ours(name): value for name, value in weights.items() if name[:5] != "head."}
        missing = self.state_dict().keys() - ours.keys() - {"stages.0.embed.conv.0.bias"}
        if missing:
            raise UserError(f"Shunted transformer: the weights lack {sorted(missing)[0]}.")
        try:
            self.load_state_dict(ours, strict=False)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"Shunted transformer: weights of another network: {reason}") from error


class PublishedWeights:
    """Fills a `ShuntedTransformer` from a file as its authors publish it.

    Args:
        file: a state dictionary, or a checkpoint that holds one as ``model``; below `root`, or a
            path of its own.
        root: folder of all downloads, see `repro.data.base.files.data_root`.
        info: what stands in for it, see `fresh`; not used here.
    """

    def __init__(
        self,
        file: str | Path,
        root: str | Path | None = None,
        info: Mapping[str, Any] | None = None,  # noqa: ARG002 - read from the config
    ) -> None:
        self.file = data_root(root) / file

    def __call__(self, network: ShuntedTransformer) -> None:
        """Loads them.

        Raises:
            UserError: the file is missing, or of another network.
        """
        if not self.file.is_file():
            raise UserError(
                f"The encoder's ImageNet weights are missing: no {self.file}.\nSave the published"
                " file there, or train from scratch with arm=viws_scratch."
            )
        weights = torch.load(self.file, map_location="cpu", weights_only=True)
        network.load_published(weights.get("model", weights))


def fresh(**_facts: Any) -> Callable[[ShuntedTransformer], None]:
    """Stands in for `PublishedWeights`: the network keeps its fresh weights.

    Args:
        **_facts: where the weights would be.
    """
    return lambda _network: None


def _ours(name: str) -> str:
    """What we call a published weight."""
    name = re.sub(r"^(patch_embed|block|norm)(\d)", lambda m: f"{m[1]}.{int(m[2]) - 1}", name)
    name = re.sub(r"^patch_embed\.(\d)", r"stages.\1.embed", name)
    name = re.sub(r"^block\.(\d)", r"stages.\1.blocks", name)
    name = re.sub(r"^norm\.(\d)", r"stages.\1.norm", name)
    name = re.sub(
        r"attn\.(sr|norm|kv|local_conv)(\d?)\.",
        lambda m: f"shunts.{int(m[2] or 1) - 1}.{m[1]}.",
        name,
    )
    return name.replace("attn.", "").replace("dwconv.dwconv", "dwconv")
