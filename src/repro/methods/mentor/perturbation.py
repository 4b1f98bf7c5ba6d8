"""Perturbations of weights: towards a fresh start, or what the best agents had in common."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repro.knobs import Count, checked
from repro.methods.mentor.dormant import LINEAR

Rule = Literal["none", "reset", "random", "top", "recent", "mean"]
SMALLEST_DEVIATION = 1e-7


class TopSet:
    """The weights of the agents that had the highest returns, or of the latest ones.

    Members are copies; a set that is full gives up its lowest return for a strictly larger one.

    Args:
        capacity: most members.
        keep: ``best`` or ``latest``.
    """

    @checked
    def __init__(self, capacity: Count = 10, keep: Literal["best", "latest"] = "best") -> None:
        self.capacity, self.keep = capacity, keep
        self.scores: list[float] = []
        self.numbers: list[int] = []  # of the offers that are members
        self.members: list[list[Tensor]] = []
        self.offers = 0

    def __len__(self) -> int:
        return len(self.members)

    def offer(self, score: float, weights: Sequence[Tensor]) -> bool:
        """Takes in a copy of the weights if they are wanted, and says whether they were."""
        number, self.offers = self.offers, self.offers + 1
        if len(self) == self.capacity:
            latest = self.keep == "latest"
            worst = 0 if latest else min(range(len(self)), key=self.scores.__getitem__)
            if not latest and score <= self.scores[worst]:
                return False
            for table in (self.scores, self.numbers, self.members):
                del table[worst]
        self.scores.append(score)
        self.numbers.append(number)
        self.members.append([each.detach().clone() for each in weights])
        return True

    def moments(self) -> tuple[list[Tensor], list[Tensor]]:
        """Elementwise mean and standard deviation of each tensor over at least two members."""
        stacked = [torch.stack(each) for each in zip(*self.members, strict=True)]
        deviations = [each.std(0).clamp(min=SMALLEST_DEVIATION) for each in stacked]
        return [each.mean(0) for each in stacked], deviations

    def state_dict(self) -> dict[str, Any]:
        """All that it holds."""
        names = ("scores", "numbers", "members", "offers")
        return {name: copy.copy(getattr(self, name)) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)


def perturbed_weights(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """What perturbations move: weights and biases of linear layers, and nothing else."""
    layers = (each for module in modules for each in module.modules())
    return [part for each in layers if isinstance(each, LINEAR) for part in each.parameters()]


@torch.no_grad()
def fresh_weights(weights: Sequence[Tensor]) -> list[Tensor]:
    """Orthogonal matrices, one for each of a stack, and biases of zero, in the given shapes.

    Args:
        weights: as `perturbed_weights` lists them, where biases follow their weights.
    """
    fresh = []
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        for each in (made := torch.empty_like(weight)).view(-1, *weight.shape[-2:]):
            nn.init.orthogonal_(each)
        fresh += [made, torch.zeros_like(bias)]
    return fresh


@torch.no_grad()
def candidate(rule: Rule, weights: Sequence[Tensor], members: TopSet) -> Sequence[Tensor]:
    """φ: what weights are mixed with.

    Args:
        rule: ``top`` and ``recent`` draw each element from the normal distribution fitted to it
            over the members; ``mean`` takes their mean; ``random`` is a fresh start; ``none`` and
            ``reset`` (of the optimizer's state alone) are the weights themselves.
        weights: as they are.
        members: the set that the rule draws from; as long as it has but one, weights stay.
    """
    if rule == "random":
        return fresh_weights(weights)
    if rule in ("none", "reset") or len(members) < 2:
        return weights
    means, deviations = members.moments()
    if rule == "mean":
        return means
    return [torch.normal(m, s) for m, s in zip(means, deviations, strict=True)]


@torch.no_grad()
def perturb(
    weights: Sequence[Tensor], alpha: float, rule: Rule, members: TopSet | None = None
) -> None:
    """``θ ← α θ + (1 − α) φ`` in place; ``α = 1`` leaves every bit.

    Args:
        weights: θ.
        alpha: share that is kept, in [0, 1].
        rule: see `candidate`.
        members: likewise.
    """
    mixed_in = candidate(rule, weights, TopSet() if members is None else members)
    for weight, other in zip(weights, mixed_in, strict=True):
        weight.lerp_(other.to(weight.device), 1 - alpha)
