"""What a unit is worth, by its weights, gradients, activations or relevance: low scores go first.

A unit is an output channel of a convolution or an output of a linear layer, and z its output before
the activation (N examples; of a convolution, N x H x W numbers). Networks come traced, with batch
norms folded (`repro.toolbox.lrp.explained`), so that z is what a unit hands on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from repro.knobs import checked
from repro.toolbox.lrp import Rule, Rules, one_hot, propagate, true_logit

Scores = Mapping[str, Tensor]  # layer -> (units,)
Batches = Iterable[tuple[Tensor, Tensor]]  # references: inputs (N, …) and their classes (N,)
STARTS = {"one_hot": one_hot, "true_logit": true_logit}


class Criterion(Protocol):
    """Scores the units of layers."""

    def __call__(
        self, network: torch.fx.GraphModule, layers: Sequence[str], batches: Batches, /
    ) -> Scores:
        """A score for every unit.

        Args:
            network: traced, batch norms folded.
            layers: whose units.
            batches: references.
        """


class Relevance:
    """The relevance of a unit's output for the true class, summed over references and positions.

    Yeom et al. 2021, Section 3. Under z⁺ the sum over a layer's units is N, the relevance that N
    examples begin with, so that scores of different layers compare as they are.

    Args:
        conv: rule of convolutions.
        linear: rule of linear layers, the output layer among them.
        start: ``one_hot`` | ``true_logit``, which a wrong answer may make negative.
        absolute: sum absolute relevance, as the authors do in residual networks.
    """

    @checked
    def __init__(
        self,
        conv: Rule,
        linear: Rule,
        start: Literal["one_hot", "true_logit"] = "one_hot",
        absolute: bool = False,
    ) -> None:
        self.rules: Rules = {nn.Conv2d: conv, nn.Linear: linear}
        self.start, self.absolute = STARTS[start], absolute

    def __call__(
        self, network: torch.fx.GraphModule, layers: Sequence[str], batches: Batches
    ) -> Scores:
        """See `Criterion`; no further back than the first of the layers."""
        scores: dict[str, Tensor] = {}
        for x, y in batches:
            missing = set(layers)
            for name, R in propagate(network, x, self.rules, self.start(y)):
                if name in missing:
                    found = _over_positions(R.abs() if self.absolute else R).sum(0)
                    scores[name] = scores[name] + found if name in scores else found
                    missing.remove(name)
                if not missing:
                    break
        return scores


class Weight:
    """The sum of a unit's absolute weights, the bias excluded (Li et al. 2017)."""

    def __call__(
        self, network: torch.fx.GraphModule, layers: Sequence[str], _batches: Batches
    ) -> Scores:
        """See `Criterion`; references are not looked at."""
        weights = {name: network.get_parameter(f"{name}.weight") for name in layers}
        return {name: w.detach().abs().flatten(1).sum(1) for name, w in weights.items()}


class Gradient:
    """The absolute mean of the loss's gradient by z (Sun et al. 2017)."""

    def __call__(
        self, network: torch.fx.GraphModule, layers: Sequence[str], batches: Batches
    ) -> Scores:
        """See `Criterion`."""
        means = _mean(network, layers, batches, lambda _, g: _position_mean(g))
        return {name: mean.abs() for name, mean in means.items()}


class Taylor:
    """The absolute mean of z times the loss's gradient by it (Molchanov et al. 2017).

    Args:
        absolute_inside: take the absolute value of each example's mean instead, so that examples
            of different signs do not cancel.
    """

    def __init__(self, absolute_inside: bool = False) -> None:
        self.absolute_inside = absolute_inside

    def __call__(
        self, network: torch.fx.GraphModule, layers: Sequence[str], batches: Batches
    ) -> Scores:
        """See `Criterion`."""

        def change(z: Tensor, g: Tensor) -> Tensor:
            found = _position_mean(z * g)
            return found.abs() if self.absolute_inside else found

        return {k: mean.abs() for k, mean in _mean(network, layers, batches, change).items()}


class Activation:
    """The mean of relu(z): a control that reads what a unit says and not what comes of it."""

    def __call__(
        self, network: torch.fx.GraphModule, layers: Sequence[str], batches: Batches
    ) -> Scores:
        """See `Criterion`."""
        return _mean(network, layers, batches, lambda z, _: _position_mean(z.relu()))


class Random:
    """Uniform numbers of PyTorch's global generator, anew at every call: what has to be beaten."""

    def __call__(
        self, network: torch.fx.GraphModule, layers: Sequence[str], _batches: Batches
    ) -> Scores:
        """See `Criterion`; references are not looked at."""
        sizes = {name: len(network.get_parameter(f"{name}.weight")) for name in layers}
        return {name: torch.rand(size) for name, size in sizes.items()}


def normalised(scores: Scores, norm: Literal["none", "l1", "l2", "rank"]) -> Scores:
    """Makes layers comparable.

    Args:
        scores: of units, by layer.
        norm: ``none``; ``l1``, ``l2``: divides a layer's by their norm; ``rank``: the place of a
            unit in its layer, in [0, 1), so that every layer loses the same share.
    """
    if norm == "none":
        return scores
    if norm == "rank":
        return {k: s.argsort(stable=True).argsort() / len(s) for k, s in scores.items()}
    return {k: F.normalize(s, p=int(norm[1]), dim=0) for k, s in scores.items()}


def _over_positions(values: Tensor) -> Tensor:
    """(N, units) of (N, units, …): the sum over positions."""
    return values.flatten(2).sum(2) if values.ndim > 2 else values


def _position_mean(values: Tensor) -> Tensor:
    """(N, units) of (N, units, …): the mean over positions."""
    return values.flatten(2).mean(2) if values.ndim > 2 else values


def _mean(
    network: torch.fx.GraphModule,
    layers: Sequence[str],
    batches: Batches,
    of: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """The mean over all references of a function of z and its gradient that returns (N, units)."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    count = 0
    for name, z, g in _gradients(network, layers, batches):
        found[name].append(of(z, g).sum(0))
        count += len(z)
    return {name: torch.stack(sums).sum(0) * len(layers) / count for name, sums in found.items()}


@torch.enable_grad()
def _gradients(
    network: torch.fx.GraphModule, layers: Sequence[str], batches: Batches
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer's z and the gradient of each example's cross-entropy by it, batch after batch."""
    network.requires_grad_()
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _inputs, z: outputs.__setitem__(name, z)

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        for x, y in batches:
            loss = F.cross_entropy(network(x), y, reduction="sum")
            gradients = torch.autograd.grad(loss, [outputs[name] for name in layers])
            for name, gradient in zip(layers, gradients, strict=True):
                yield name, outputs[name].detach(), gradient
    finally:
        for hook in hooks:
            hook.remove()
