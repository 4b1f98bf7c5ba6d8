"""Models too large for the device: statistics and pruning, one block at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.toolbox.pruning.patterns import Pattern
from repro.toolbox.pruning.pruners import Pruner
from repro.toolbox.pruning.statistics import GradientNorms, InputMoments, layers_of


class Decoder(Protocol):
    """A language model in three stages, such as `repro.models.Llama`."""

    @property
    def blocks(self) -> Sequence[nn.Module] | nn.ModuleList:
        """Each maps (B, T, D) to (B, T, D)."""

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Maps tokens to the input of the first block."""

    def head(self, x_BTD: Tensor) -> Tensor:
        """Maps the output of the last block to logits."""


def next_token_losses(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Cross-entropy of each sequence, (B,): the mean over its T - 1 predicted tokens."""
    logits_BVT = logits_BTV[:, :-1].mT
    logits_BVT = logits_BVT.to(torch.promote_types(logits_BVT.dtype, torch.float32))
    losses = F.cross_entropy(logits_BVT, tokens_BT[:, 1:], reduction="none")
    return losses.mean(1)


def prune_blocks(
    blocks: Sequence[nn.Module] | nn.ModuleList,
    x: Tensor,
    pruner: Pruner,
    pattern: Pattern,
    gradients: GradientNorms | None = None,
    batch_size: int = 1,
    device: torch.device | None = None,
    sequential: bool = True,
) -> Tensor:
    """Prunes every linear layer of a chain of blocks, first to last, in place.

    Of each block: the inputs of its layers are seen, its layers are pruned, and its outputs, now
    those of the pruned block, become the inputs of the next one (Wanda's and SparseGPT's scheme).
    Beyond the model itself, memory holds `x` and what one block needs for one batch.

    Args:
        blocks: each maps (B, …, D) to the same shape.
        x: (N, …, D), inputs of the first block for N sequences; overwritten.
        pruner: prunes one layer.
        pattern: how much.
        gradients: of the dense model; its layers are named ``<block>.<layer>``.
        batch_size: sequences in a pass.
        device: blocks visit it one at a time and go back to where they were; None: they stay.
        sequential: False hands on the outputs of the dense block instead.

    Returns:
        `x`, now the outputs of the last block.
    """
    pruner.start(pattern)
    for index, block in enumerate(blocks):
        home = next(block.parameters()).device
        block.to(device or home)
        layers = layers_of(block, f"{index}.")
        with InputMoments(layers, products=pruner.needs_hessian) as moments:
            _run(block, x, batch_size, keep=not sequential)
        for name, layer in layers.items():
            gradient, count = None, None
            if gradients is not None:
                gradient = gradients.norm(name).to(layer.weight.device)
                count = gradients.count
            statistics = moments.of(name, gradient, count)
            layer.weight.data.copy_(pruner(layer.weight.data, statistics, pattern))
        if sequential:
            _run(block, x, batch_size, keep=True)
        block.to(home)
    return x


def run_blocks(
    blocks: Sequence[nn.Module] | nn.ModuleList,
    x: Tensor,
    batch_size: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Runs a chain of blocks over `x` without gradients; arguments as in `prune_blocks`."""
    for block in blocks:
        home = next(block.parameters()).device
        _run(block.to(device or home), x, batch_size, keep=True)
        block.to(home)
    return x


@torch.no_grad()
def _run(block: nn.Module, x: Tensor, batch_size: int, keep: bool) -> None:
    """Runs a block over all sequences; its outputs take the place of its inputs, if kept."""
    device = next(block.parameters()).device
    for part in x.split(batch_size):
        output = block(part.to(device))
        if keep:
            part.copy_(output)


def block_layers(decoder: Decoder) -> dict[str, nn.Linear]:
    """The linear layers of all blocks, named ``<block>.<layer>``; no embedding, no head."""
    layers: dict[str, nn.Linear] = {}
    for index, block in enumerate(decoder.blocks):
        layers |= layers_of(block, f"{index}.")
    return layers


def decoder_gradients(
    decoder: Decoder,
    tokens_NT: Tensor,
    norm: Literal["l1", "l2"] = "l1",
    batch_size: int = 1,
    device: torch.device | None = None,
) -> GradientNorms:
    """Gradient norms of each sequence's language-modelling loss, for all layers of all blocks.

    With a `device`, blocks visit it one at a time: forward, keeping only the inputs of blocks;
    then last to first, each computing its activations anew for the backward pass. Sums stay where
    the model is.

    Args:
        decoder: a dense model in three stages; also an `nn.Module`.
        tokens_NT: N sequences of T tokens.
        norm: ``l1`` or ``l2`` over sequences.
        batch_size: sequences in a pass.
        device: see above; None: one ordinary backward pass where the model is.
    """
    assert isinstance(decoder, nn.Module)
    home = next(decoder.parameters()).device
    store = home if device is not None else None
    with GradientNorms(decoder, block_layers(decoder), norm, store) as gradients:
        for tokens_BT in tokens_NT.split(batch_size):
            tokens_BT = tokens_BT.to(home)
            if device is None:
                next_token_losses(decoder(tokens_BT), tokens_BT).sum().backward()
            else:
                _visit(decoder, tokens_BT, device, home)
    return gradients


def _visit(decoder: Decoder, tokens_BT: Tensor, device: torch.device, home: torch.device) -> None:
    """One forward and backward pass during which one block at a time is on the device."""
    x_BTD = decoder.embed(tokens_BT)
    inputs = []
    for block in decoder.blocks:
        inputs.append(x_BTD)
        block.to(device)
        with torch.no_grad():
            x_BTD = block(x_BTD.to(device)).to(home)
        block.to(home)
    with torch.enable_grad():
        x_BTD = x_BTD.detach().requires_grad_()
        loss = next_token_losses(decoder.head(x_BTD), tokens_BT).sum()
        (back_BTD,) = torch.autograd.grad(loss, x_BTD)
        for block in reversed(decoder.blocks):
            block.to(device)
            x_BTD = inputs.pop().to(device).requires_grad_()
            output_BTD = block(x_BTD)
            torch.autograd.backward(output_BTD, back_BTD.to(device), inputs=[x_BTD])
            assert x_BTD.grad is not None
            back_BTD = x_BTD.grad.to(home)
            block.to(home)


@torch.no_grad()
def mean_loss(
    decoder: Decoder, tokens_MT: Tensor, batch_size: int = 1, device: torch.device | None = None
) -> float:
    """The mean over M windows of `next_token_losses`; arguments as in `decoder_gradients`."""
    assert isinstance(decoder, nn.Module)
    home = next(decoder.parameters()).device
    parts = [part.to(home) for part in tokens_MT.split(batch_size)]
    if device is None:
        outputs = (decoder(part) for part in parts)
    else:
        x_MTD = torch.cat([decoder.embed(part) for part in parts])
        run_blocks(decoder.blocks, x_MTD, batch_size, device)
        outputs = (decoder.head(x_BTD) for x_BTD in x_MTD.split(batch_size))
    losses = [
        next_token_losses(logits, part).double()
        for logits, part in zip(outputs, parts, strict=True)
    ]
    return float(torch.cat(losses).mean())


def zero_fraction(layers: Mapping[str, nn.Linear]) -> float:
    """The part of the layers' weights that is zero."""
    total = sum(layer.weight.numel() for layer in layers.values())
    return sum(int((layer.weight == 0).sum()) for layer in layers.values()) / total
