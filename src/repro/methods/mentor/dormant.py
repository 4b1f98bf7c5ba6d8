"""The share of neurons that hardly answer a batch, and what follows from it (Xu et al., DrM)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repro.methods.mentor.experts import StackedLinear

LINEAR = (nn.Linear, StackedLinear)
Layers = Literal["all", "relu_only"]


def recorded_layers(model: nn.Module, layers: Layers = "all") -> Iterator[nn.Module]:
    """The modules whose outputs count: linear ones, or the ReLU that follows one in a sequence.

    The published measure hangs on this: its hooks keep a reference to the linear output, which a
    ReLU in place overwrites. Before the ReLU no neuron is ever dormant.

    Args:
        model: any module; ReLUs are found in `torch.nn.Sequential`.
        layers: ``relu_only`` leaves out what no ReLU follows.
    """
    followed: dict[nn.Module, nn.Module] = {}
    for sequence in model.modules():
        if isinstance(sequence, nn.Sequential):
            parts = list(sequence)
            followed |= {
                first: second
                for first, second in itertools.pairwise(parts)
                if isinstance(first, LINEAR) and isinstance(second, nn.ReLU)
            }
    for module in model.modules():
        if module in followed:
            yield followed[module]
        elif isinstance(module, LINEAR) and layers == "all":
            yield module


def dormant_neurons(output: Tensor, threshold: float = 0.025) -> Tensor:
    """Which neurons are dormant: ``s_i < threshold · mean_j s_j`` with ``s_i = mean_b |h_bi|``.

    Args:
        output: (B, O), or (N, B, O) of N layers side by side, each with a mean of its own.
        threshold: at least 0.

    Returns:
        (O,) or (N, O), boolean.
    """
    score = output.abs().mean(-2)
    return score < threshold * score.mean(-1, keepdim=True)


@torch.no_grad()
def dormant_ratio(
    layers: Iterable[nn.Module], evaluate: Callable[[], object], threshold: float = 0.025
) -> float:
    """β: dormant neurons over all neurons of these layers.

    Args:
        layers: what is recorded, see `recorded_layers`.
        evaluate: calls their model on a batch, once, in whatever mode it is in.
        threshold: see `dormant_neurons`.

    Returns:
        a share in [0, 1].
    """
    found: list[Tensor] = []

    def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found.append(dormant_neurons(output, threshold).flatten())

    hooks = [each.register_forward_hook(note) for each in layers]
    try:
        evaluate()
    finally:
        for hook in hooks:
            hook.remove()
    return float(torch.cat(found).float().mean())


def _logistic(beta: float, top: float, temperature: float, target: float) -> float:
    return top / (1 + math.exp(-temperature * (beta - target)))


# σ(β) of the exploration noise, which rises with the share of dormant neurons.
exploration_noise = partial(_logistic, temperature=10.0, target=0.2)
# λ(β) of the exploitation value in the target, which falls with it.
exploitation_weight = partial(_logistic, temperature=-50.0, target=0.2)


def kept_share(beta: float, rate: float = 2.0, least: float = 0.2, most: float = 0.9) -> float:
    """α = clip(1 − rate · β, least, most): the share of the weights that a perturbation keeps."""
    return min(most, max(least, 1 - rate * beta))
