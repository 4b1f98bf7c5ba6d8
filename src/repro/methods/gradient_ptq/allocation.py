"""Importance of weights, and bits given out by it (mixed precision at a budget)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from repro.data.base.iterators import generator_for
from repro.errors import UserError
from repro.knobs import checked

PATH = 0.9  # μ: each step of the path from W to zero
Order = Literal["importance", "reversed", "random", "magnitude"]


def importance(
    model: nn.Module, layers: Sequence[str], loss: Callable[[], Tensor], steps: int = 0
) -> dict[str, Tensor]:
    """Attribution of the task's loss to single weights, ``Σ_s |μ^s W ∘ ∇_{μ^s W} L|``.

    Each layer walks its own path from W towards zero, s = 0 … `steps`, while the others keep their
    weights; ``steps=0`` is ``|W ∘ ∇_W L|``. The sum over a layer is the paper's I_n.

    Args:
        model: its weights are put back afterwards.
        layers: names of layers with a ``weight``.
        loss: the task's loss with the model as it is. It may call ``backward`` for parts of the
            data itself and return the last part, so that one batch fits into memory.
        steps: S.

    Returns:
        One tensor for each layer, shaped like its weight.
    """
    weights = {layer: model.get_parameter(f"{layer}.weight".lstrip(".")) for layer in layers}
    found = {layer: torch.zeros_like(weight) for layer, weight in weights.items()}

    def add(names: Sequence[str]) -> None:
        for name in names:
            weights[name].requires_grad_(True).grad = None
        with torch.enable_grad():
            loss().backward()
        for name in names:
            weight = weights[name]
            assert weight.grad is not None
            found[name] += (weight.detach() * weight.grad).abs()
            weight.requires_grad_(False).grad = None

    add(layers)  # s = 0: all layers at once
    for layer in layers if steps else ():
        start = weights[layer].detach().clone()
        for step in range(1, steps + 1):
            weights[layer].data.copy_(PATH**step * start)
            add([layer])
        weights[layer].data.copy_(start)
    return found


def allocate_bits(
    scores: Mapping[str, Tensor],
    sizes: Mapping[str, Tensor],
    *,
    low: int,
    high: int,
    budget: float,
) -> dict[str, Tensor]:
    """Raises units from `low` to `high` bits, highest score first, while the budget lasts.

    Args:
        scores: for each layer, the score of each of its units, (units,); all output channels, or
            the layer as one.
        sizes: number of weights of each unit, likewise.
        low: bits of what is not raised.
        high: bits of what is.
        budget: largest average number of bits over all weights. A unit that would exceed it is
            passed over.

    Returns:
        Bits of each unit, likewise.

    Raises:
        UserError: the budget is below `low`, or `low` above `high`.
    """
    if not low <= high:
        raise UserError(f"method.mixed.low={low} lies above method.mixed.high={high}.")
    if budget < low:
        raise UserError(f"A budget of {budget} bits is below method.mixed.low={low}.")
    score = torch.cat([scores[layer] for layer in sizes])
    size = torch.cat([sizes[layer] for layer in sizes]).double()
    room = (budget - low) * float(size.sum())
    bits = torch.full_like(size, low)
    for index in score.argsort(descending=True, stable=True).tolist():
        cost = (high - low) * float(size[index])
        if cost <= room * (1 + 1e-12):
            bits[index] = high
            room -= cost
    parts = bits.split([len(each) for each in sizes.values()])
    return {layer: part.long() for layer, part in zip(sizes, parts, strict=True)}


@checked
def order_scores(
    order: Order, scores: Mapping[str, Tensor], magnitude: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """The scores of an order in which units are raised: by importance, or one of its controls.

    Args:
        order: ``importance``, ``reversed``, ``random`` or ``magnitude``.
        scores: importance by layer and unit.
        magnitude: mean absolute weight, likewise.
        seed: of the random order.
    """
    if order == "importance":
        return dict(scores)
    if order == "reversed":
        return {layer: -score for layer, score in scores.items()}
    if order == "magnitude":
        return dict(magnitude)
    generator = generator_for(seed, 1)
    return {k: torch.rand(s.shape, generator=generator) for k, s in scores.items()}
