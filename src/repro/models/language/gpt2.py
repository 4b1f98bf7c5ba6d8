"""GPT-2: the decoder of Radford et al. 2019, of any size, with published weights.

Parameters carry the names of Hugging Face checkpoints (``transformer.h.0.attn.c_attn.weight``), and
their shapes: its linear layers keep their weights as (in, out). See `load_gpt2`.

Suffixes of tensor names: B sequences, T tokens, D width, H heads, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.files import data_root
from repro.errors import UserError
from repro.knobs import Count, NonNegative, checked
from repro.models.language.hugging_face import (
    assign_weights,
    check_sizes,
    read_config,
    read_weights,
)


class GPT2(nn.Module):
    """Embeddings of tokens and positions, pre-norm blocks, and the token embedding as the head.

    Maps token ids (B, T), int64, to logits of the next token (B, T, V). There is no dropout: it is
    a model to look into, not to fine-tune.

    Args:
        vocab_size: V, number of distinct tokens.
        positions: longest sequence.
        width: D, size of the residual stream.
        layers: number of blocks.
        heads: H; must divide `width`.
        norm_eps: added to the variance in layer norm.

    Raises:
        UserError: a size below 1, or heads that do not divide the width.
    """

    @checked
    def __init__(
        self,
        vocab_size: Count = 50257,
        positions: Count = 1024,
        width: Count = 768,
        layers: Count = 12,
        heads: Count = 12,
        norm_eps: NonNegative = 1e-5,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"gpt2: {heads} heads must divide the width {width}.")
        self.transformer = Trunk(vocab_size, positions, width, layers, heads, norm_eps)
        self.reset_parameters()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Maps token ids (B, T) to logits (B, T, V)."""
        return F.linear(self.transformer(tokens_BT), self.transformer.wte.weight)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew from PyTorch's global generator, by the rule of the paper."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(float("ln_" in name and name.endswith("weight")))
            else:
                writes = name.endswith("c_proj.weight")
                layers = len(self.transformer.h)
                parameter.normal_(0.0, 0.02 / (2 * layers) ** 0.5 if writes else 0.02)


class Trunk(nn.Module):
    """All but the head: token ids (B, T) to the normalised residual stream (B, T, D)."""

    def __init__(
        self, vocab_size: int, positions: int, width: int, layers: int, heads: int, eps: float
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, width)
        self.wpe = nn.Embedding(positions, width)
        self.h = nn.ModuleList(Block(width, heads, eps) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, eps)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Maps (B, T) to (B, T, D).

        Raises:
            UserError: the sequences are longer than its positions.
        """
        T, longest = tokens_BT.shape[1], self.wpe.num_embeddings
        if longest < T:
            raise UserError(f"gpt2: sequences of {T} tokens are longer than its {longest}.")
        x_BTD = self.wte(tokens_BT) + self.wpe.weight[:T]
        for block in self.h:
            x_BTD = block(x_BTD)
        final: Tensor = self.ln_f(x_BTD)
        return final


class Block(nn.Module):
    """Attention and a hidden layer, each behind a layer norm and added to the stream."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = Hidden(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.attn(self.ln_1(x_BTD))
        after: Tensor = x_BTD + self.mlp(self.ln_2(x_BTD))
        return after


class Attention(nn.Module):
    """Causal attention; queries, keys and values from one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Linear(width, 3 * width)
        self.c_proj = Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        parts = self.c_attn(x_BTD).chunk(3, dim=2)
        q_BHTE, k_BHTE, v_BHTE = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts
        )
        mixed_BHTE = F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True)
        mixed_BTD: Tensor = self.c_proj(mixed_BHTE.transpose(1, 2).flatten(2))
        return mixed_BTD


class Hidden(nn.Module):
    """A hidden layer four times as wide, with GELU in its tanh form."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Linear(width, 4 * width)
        self.c_proj = Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        x: Tensor = self.c_proj(F.gelu(self.c_fc(x_BTD), approximate="tanh"))
        return x


class Linear(nn.Module):
    """x W + b with W (in, out), as the published checkpoints keep it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, in) to (…, out)."""
        return F.linear(x, self.weight.T, self.bias)


def load_gpt2(
    folder: str | Path,
    root: str | Path | None = None,
    vocab_size: int | None = None,
    parameters: int | None = None,
    info: Mapping[str, Any] | None = None,  # noqa: ARG001 - read by `unloaded`
) -> GPT2:
    """Builds a GPT-2 from a folder with ``config.json`` and safetensors.

    Args:
        folder: of the checkpoint, as ``openai-community/gpt2`` below `root`, or a path of its own.
        root: folder of all downloads, see `repro.data.base.files.data_root`.
        vocab_size: checked, if stated.
        parameters: number of parameters, checked, if stated.
        info: the sizes, for `unloaded`; not used here.

    A `UserError` says so if the folder is missing or incomplete, holds another kind of model, or
    does not have the stated sizes, or if safetensors is not installed.
    """
    path = data_root(root) / folder  # an absolute folder stays what it is
    config = _read_config(path, str(folder))
    with torch.device("meta"):
        model = GPT2(
            vocab_size=config["vocab_size"],
            positions=config["n_positions"],
            width=config["n_embd"],
            layers=config["n_layer"],
            heads=config["n_head"],
            norm_eps=config["layer_norm_epsilon"],
        )
    check_sizes(path, model, config, parameters=parameters, vocab_size=vocab_size)
    # The first checkpoints have no common prefix; masks and the tied head are stored in some.
    weights = {
        f"transformer.{name.removeprefix('transformer.')}": tensor
        for name, tensor in read_weights(path, torch.float32).items()
        if not name.endswith((".attn.bias", ".attn.masked_bias")) and name != "lm_head.weight"
    }
    assign_weights(model, weights, path, "GPT-2")
    return model


def unloaded(info: Mapping[str, Any], vocab_size: int, **_facts: Any) -> GPT2:
    """Stands in for `load_gpt2`: a GPT-2 of the stated sizes with fresh weights.

    Args:
        info: ``sizes`` are arguments of `GPT2`.
        vocab_size: V.
        **_facts: where the weights would be.
    """
    return GPT2(vocab_size, **info["sizes"])


def _read_config(path: Path, name: str) -> dict[str, Any]:
    config = read_config(path, name, "gpt2")
    for key, value in {"activation_function": "gelu_new", "scale_attn_weights": True}.items():
        if config.get(key, value) != value:
            raise UserError(f"{path / 'config.json'}: {key}={config[key]} is not supported.")
    return config
