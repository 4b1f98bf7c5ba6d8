"""LLaMA: the decoder of Touvron et al. 2023 (arXiv 2302.13971, 2307.09288), of any size.

Parameters carry the names of Hugging Face checkpoints (``model.layers.0.self_attn.q_proj.weight``),
so that published weights load as they are: see `load_hugging_face`.

Suffixes of tensor names: B sequences, T tokens, D width, H heads, K key-value heads, E head width,
V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.base.files import data_root
from repro.errors import UserError
from repro.knobs import Count, Known, NonNegative, Positive, checked
from repro.models.language.hugging_face import (
    assign_weights,
    check_room,
    check_sizes,
    read_config,
    read_weights,
)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What `load_hugging_face` does not do, by the key of config.json and the value that means "off".
UNSUPPORTED = {"rope_scaling": None, "attention_bias": False, "mlp_bias": False}


class Llama(nn.Module):
    """Embedding, blocks of causal attention and SwiGLU, RMSNorm, linear head; no biases.

    Maps token ids (B, T), int64, to logits of the next token (B, T, V). The three stages are also
    there one by one, for procedures that go block by block: `embed`, `blocks`, `head`; each block
    maps (B, T, D) to (B, T, D) and needs nothing else.

    Args:
        vocab_size: V, number of distinct tokens.
        width: D, size of the residual stream.
        layers: number of blocks.
        heads: H, of the queries; must divide `width` into even parts.
        kv_heads: K, of keys and values, shared by groups of query heads; None means `heads`.
        mlp_width: hidden size of SwiGLU.
        tied: the head is the embedding matrix.
        rope_theta: base of the rotary wavelengths.
        norm_eps: added to the mean square in RMSNorm.
        init_std: standard deviation of fresh weights; what writes into the residual stream gets
            ``init_std / sqrt(2 layers)`` (GPT-2's rule).

    Raises:
        UserError: a size below 1, or heads that do not divide evenly.
    """

    @checked
    def __init__(
        self,
        vocab_size: Count,
        width: Count = 64,
        layers: Count = 3,
        heads: Count = 4,
        kv_heads: Count | None = None,
        mlp_width: Count = 176,
        tied: bool = False,
        rope_theta: Positive = 10000.0,
        norm_eps: NonNegative = 1e-5,
        init_std: NonNegative = 0.02,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if width % (2 * heads) or heads % kv_heads:
            raise UserError(
                f"llama: {heads} heads must divide the width {width} into even parts, and"
                f" {kv_heads} kv_heads must divide the heads."
            )
        self.init_std = init_std
        self.model = Trunk(
            nn.Embedding(vocab_size, width),
            [Block(width, heads, kv_heads, mlp_width, rope_theta, norm_eps) for _ in range(layers)],
            nn.RMSNorm(width, norm_eps),
        )
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.reset_parameters()

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, first to last."""
        return self.model.layers

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Maps token ids (B, T) to the input of the first block (B, T, D)."""
        embedded: Tensor = self.model.embed_tokens(tokens_BT)
        return embedded

    def head(self, x_BTD: Tensor) -> Tensor:
        """Maps the output of the last block (B, T, D) to logits (B, T, V)."""
        logits: Tensor = self.lm_head(self.model.norm(x_BTD))
        return logits

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Maps token ids (B, T) to logits (B, T, V)."""
        x_BTD = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(x_BTD)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew from PyTorch's global generator."""
        residual_std = self.init_std / (2 * len(self.blocks)) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)  # the gains of RMSNorm
            else:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, residual_std if writes else self.init_std)


class Trunk(nn.Module):
    """All but the head: a holder of names, as the published checkpoints have them."""

    def __init__(self, embed_tokens: nn.Embedding, layers: list[Block], norm: nn.RMSNorm) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(layers)
        self.norm = norm


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm and added to the stream: (B, T, D) to itself."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, mlp_width: int, theta: float, eps: float
    ) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.self_attn = Attention(width, heads, kv_heads, theta)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.mlp = SwiGLU(width, mlp_width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD))
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Attention(nn.Module):
    """Causal attention with rotary positions; query heads may share keys and values."""

    def __init__(self, width: int, heads: int, kv_heads: int, theta: float) -> None:
        super().__init__()
        self.head_width = width // heads
        self.groups = heads // kv_heads
        self.theta = theta
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        # What a trace makes is not to be found by the next pass.
        angles = rotation.__wrapped__ if torch.compiler.is_compiling() else rotation
        turn = angles(x_BTD.shape[1], self.head_width, self.theta, x_BTD.device, x_BTD.dtype)
        q_BHTE = rotate(self._split(self.q_proj(x_BTD)), *turn)
        k_BKTE = rotate(self._split(self.k_proj(x_BTD)), *turn)
        v_BKTE = self._split(self.v_proj(x_BTD))
        mixed_BHTE = F.scaled_dot_product_attention(
            q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=self.groups > 1
        )
        mixed: Tensor = self.o_proj(mixed_BHTE.transpose(1, 2).flatten(2))
        return mixed

    def extra_repr(self) -> str:
        """What the shapes of the weights do not tell."""
        return f"head_width={self.head_width}, theta={self.theta}"

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(2, (-1, self.head_width)).transpose(1, 2)


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (Shazeer 2020): (B, T, D) to itself."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        x: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return x


@functools.lru_cache(maxsize=16)
def rotation(
    length: int, head_width: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles ``t theta^(-2i/E)``, each (T, E), i twice from 0 to E/2."""
    # Kept for all layers and steps, so not as what inference mode makes: training may need it next.
    with torch.inference_mode(False), torch.no_grad():
        place_E = torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width
        angle_TE = torch.arange(length, device=device)[:, None] / theta ** torch.cat(2 * [place_E])
        return angle_TE.cos().to(dtype), angle_TE.sin().to(dtype)


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Turns each pair (i, i + E/2) of a head by the angle of its position (Su et al. 2021)."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_TE + torch.cat((-second, first), dim=-1) * sin_TE


@checked
def load_hugging_face(
    folder: str | Path,
    root: str | Path | None = None,
    dtype: Annotated[str, Known(tuple(DTYPES))] = "float32",
    vocab_size: int | None = None,
    parameters: int | None = None,
    info: Mapping[str, Any] | None = None,  # noqa: ARG001 - read by `unloaded`
) -> Llama:
    """Builds a LLaMA from a folder with ``config.json`` and safetensors, in shards or in one file.

    Args:
        folder: of the checkpoint, as ``huggyllama/llama-7b`` below `root`, or a path of its own.
        root: folder of all downloads, see `repro.data.base.files.data_root`.
        dtype: of the weights in memory: ``float32``, ``float16`` or ``bfloat16``.
        vocab_size: checked, if stated.
        parameters: number of parameters, checked, if stated.
        info: the sizes, for `unloaded`; not used here.

    A `UserError` says so if the folder is missing or incomplete, holds another kind of model, or
    does not have the stated sizes, or if safetensors is not installed.
    """
    path = data_root(root) / folder  # an absolute folder stays what it is
    config = _read_config(path, str(folder))
    with torch.device("meta"):
        model = Llama(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads"),
            mlp_width=config["intermediate_size"],
            tied=config.get("tie_word_embeddings", False),
            rope_theta=_rope_theta(config),
            norm_eps=config["rms_norm_eps"],
        )
    check_sizes(path, model, config, parameters=parameters, vocab_size=vocab_size)
    weights = {
        name: tensor
        for name, tensor in read_weights(path, DTYPES[dtype]).items()
        if not name.endswith(
            "rotary_emb.inv_freq"
        )  # old checkpoints store what `rotation` computes
    }
    if config.get("tie_word_embeddings", False):
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    assign_weights(model, weights, path, "LLaMA")
    if config.get("tie_word_embeddings", False):
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def unloaded(
    info: Mapping[str, Any], vocab_size: int, dtype: str = "float32", **_facts: Any
) -> Llama:
    """Stands in for `load_hugging_face`: a LLaMA of the stated sizes with fresh weights.

    Args:
        info: ``sizes`` are arguments of `Llama`.
        vocab_size: V.
        dtype: of the weights in memory.
        **_facts: where the weights would be.

    A `UserError` says so if the weights do not fit into memory.
    """
    with torch.device("meta"):
        model = Llama(vocab_size, **info["sizes"]).to(DTYPES[dtype])
    check_room(model)
    model.to_empty(device="cpu")
    model.reset_parameters()
    return model


def _read_config(path: Path, name: str) -> dict[str, Any]:
    config = read_config(path, name, "llama")
    off = {**UNSUPPORTED, "head_dim": config["hidden_size"] // config["num_attention_heads"]}
    for key, value in off.items():
        if config.get(key, value) not in (value, None):
            raise UserError(f"{path / 'config.json'}: {key}={config[key]} is not supported.")
    return config


def _rope_theta(config: dict[str, Any]) -> float:
    """The base of the wavelengths, where old and new files keep it.

    Raises:
        UserError: another kind of rotation.
    """
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"config.json: rope_type={rope['rope_type']} is not supported.")
    return float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
