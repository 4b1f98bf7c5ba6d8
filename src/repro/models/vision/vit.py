"""Vision transformer: Dosovitskiy et al. 2021, "An image is worth 16x16 words", Section 3.1.

Parameters are named as in timm (``vit_base_patch16_224``, ``deit_small_patch16_224``), so that its
published checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.knobs import Count, Positive, checked
from repro.models.parts.chain import Chain
from repro.models.parts.checks import image_shape


class Attention(nn.Module):
    """Multi-head self-attention, spelt out so that its probabilities can be seen (and quantised).

    Args:
        width: D, of the tokens.
        heads: number of heads, a divisor of D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.scale = self.head_width**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps tokens (B, T, D) to tokens."""
        B, T, _ = x_BTD.shape
        # As many heads as the weights have: pruning may have removed some.
        q, k, v = self.qkv(x_BTD).view(B, T, 3, -1, self.head_width).permute(2, 0, 3, 1, 4)
        attention_BHTT = self.softmax(q * self.scale @ k.transpose(-2, -1))
        return self.proj((attention_BHTT @ v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        width: of input and output.
        hidden: between the layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, width) to (…, width)."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + perceptron(norm(x))``.

    Args:
        width: of the tokens.
        heads: of the attention.
        hidden: of the perceptron.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (B, T, D) to tokens."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Cuts an image into squares and maps each to a token.

    Args:
        channels: of the image.
        patch: side of a square, in pixels.
        width: of a token.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, H·W / patch², D)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Tokens(nn.Module):
    """Patches with the class token in front and positions added: what the first block sees.

    Args:
        patch_embed: makes patches into tokens.
        cls_token: (1, 1, D).
        pos_embed: (1, T, D).
    """

    def __init__(
        self, patch_embed: nn.Module, cls_token: nn.Parameter, pos_embed: nn.Parameter
    ) -> None:
        super().__init__()
        self.patch_embed, self.cls_token, self.pos_embed = patch_embed, cls_token, pos_embed

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, T, D)."""
        first = self.cls_token.expand(len(x), -1, -1)
        return torch.cat([first, self.patch_embed(x)], dim=1) + self.pos_embed


class ClassToken(nn.Module):
    """Picks the class token of (B, T, D) tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, D)."""
        return x[:, 0]


class VisionTransformer(nn.Module):
    """ViT with a class token; ViT-B/16 at 1000 classes has 86,567,656 parameters.

    Maps (batch, *input_shape) to logits (batch, classes).

    Args:
        input_shape: (channels, height, width) of one image.
        classes: number of outputs.
        patch: side of a patch; it divides height and width.
        width: of the tokens.
        depth: number of blocks.
        heads: a divisor of `width`.
        mlp_ratio: hidden width of the perceptrons over `width`.

    Raises:
        UserError: sizes below 1, or that do not divide.
    """

    @checked
    def __init__(
        self,
        input_shape: Sequence[Count],
        classes: Count,
        patch: Count = 16,
        width: Count = 768,
        depth: Count = 12,
        heads: Count = 12,
        mlp_ratio: Positive = 4.0,
    ) -> None:
        super().__init__()
        channels, height, image_width = image_shape("vit", input_shape)
        if height % patch or image_width % patch:
            raise UserError(f"vit: patches of {patch} do not tile {height}x{image_width} pixels.")
        if width % heads:
            raise UserError(f"vit: {heads} heads do not divide a width of {width}.")
        tokens = (height // patch) * (image_width // patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, width))
        self.patch_embed = PatchEmbedding(channels, patch, width)
        hidden = round(mlp_ratio * width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to logits (batch, classes)."""
        first = self.cls_token.expand(len(x), -1, -1)
        x = torch.cat([first, self.patch_embed(x)], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])

    def chain(self) -> Chain:
        """The embedding, the blocks as units of one stage, and the class token's classifier."""
        units = list(self.blocks.children())
        return Chain(
            Tokens(self.patch_embed, self.cls_token, self.pos_embed),
            units,
            [1] * len(units),
            nn.Sequential(self.norm, ClassToken(), self.head),
        )
