"""Neurons that may be renumbered: who produces them, who consumes them, and doing it.

Of a layer whose outputs reach one other layer and nothing else, element by element, the rows may be
put in any order, if that other layer's columns follow. Outputs that meet in residual sums, pass a
normalisation over neurons, or belong to attention heads are not free.

Suffixes of tensor names: O rows of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from repro.knobs import Count, checked
from repro.toolbox.codebooks import kmeans_1d

Criterion = Literal["std", "std_kmeans", "quantiles", "random", "contiguous"]
TOLERANCE = 1e-4  # of outputs after a renumbering, in units of the largest one


@dataclass(frozen=True)
class Link:
    """A set of neurons, and everything that carries a number of theirs.

    Attributes:
        producers: layers whose rows they are (two, where a gate multiplies values).
        between: modules with a parameter for each of them: batch norms, depthwise convolutions.
        consumer: the layer whose columns they are.
        count: how many neurons.
        repeat: columns of a neuron: more than one behind a flattened picture.
    """

    producers: tuple[str, ...]
    between: tuple[str, ...]
    consumer: str
    count: int
    repeat: int


@torch.no_grad()
def find_links(model: nn.Module, x: Tensor, layers: Sequence[str]) -> list[Link]:
    """All neurons that may be renumbered.

    One output of each layer is marked (as not a number), and it is seen which columns of which
    layers the mark reaches. Every link that is found so is tried with a random order; it is dropped
    if the model's outputs change.

    Args:
        model: in evaluation mode; its output is a tensor.
        x: one batch of inputs.
        layers: names of its layers, in forward order.
    """
    marks = {layer: _Mark(model, layer, x) for layer in layers}
    links = []
    for consumer in layers:
        reaching = [layer for layer in layers if consumer in marks[layer].reached]
        counts = {marks[layer].count for layer in reaching}
        if len(counts) != 1 or not all(marks[layer].is_free(model) for layer in reaching):
            continue
        between = dict.fromkeys(name for layer in reaching for name in marks[layer].between)
        # A depthwise convolution reaches the consumer, too, and follows its producer.
        producers = [layer for layer in reaching if layer not in between]
        count = counts.pop()
        repeat = _inputs(model.get_submodule(consumer)) // count
        link = Link(tuple(producers), tuple(between), consumer, count, repeat)
        if _keeps_the_function(model, link, x):
            links.append(link)
    return links


class _Mark:
    """Where one output of a layer goes."""

    def __init__(self, model: nn.Module, layer: str, x: Tensor) -> None:
        self.layer = layer
        self.count = len(model.get_submodule(layer).get_parameter("weight"))
        self.neuron = min(1, self.count - 1)
        self.calls = 0
        self.reached: dict[str, Tensor] = {}  # layers, and which of their input channels are marked
        self.between: list[str] = []
        hooks = [
            module.register_forward_hook(
                lambda module, args, out, name=name: self._look(name, module, args[0], out)
            )
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d)
        ]
        try:
            self.escaped = bool(model(x).isnan().any())
        finally:
            for hook in hooks:
                hook.remove()

    def is_free(self, model: nn.Module) -> bool:
        """Does the mark reach a block of columns of one layer, and nothing else?"""
        if self.escaped or self.calls != 1 or len(self.reached) != 1:
            return False
        ((name, marked),) = self.reached.items()
        repeat, rest = divmod(len(marked), self.count)
        if rest or not repeat or getattr(model.get_submodule(name), "groups", 1) != 1:
            return False
        block = torch.zeros_like(marked)
        block[self.neuron * repeat : (self.neuron + 1) * repeat] = True
        return torch.equal(marked, block)

    def _look(self, name: str, module: nn.Module, x: Tensor, out: Tensor) -> Tensor | None:
        if name == self.layer:
            self.calls += 1
            out = out.clone()
            out.select(_channels(module), self.neuron).fill_(torch.nan)
            return out
        marked = x.isnan()
        if not marked.any():
            return None
        if _is_channelwise(module):
            self.between.append(name)
            return None
        others = [dim for dim in range(x.dim()) if dim != _channels(module) % x.dim()]
        self.reached[name] = marked.amax(others)
        return torch.zeros_like(out)  # what comes behind is that layer's business


def permute_neurons(model: nn.Module, link: Link, order_O: Tensor) -> None:
    """Renumbers neurons in place; the function stays what it was.

    Args:
        model: with the layers that the link names.
        link: the neurons.
        order_O: neuron ``order[i]`` becomes number i.
    """
    for name in (*link.producers, *link.between):
        module = model.get_submodule(name)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim():
                tensor.data = tensor.data[order_O.to(tensor.device)]
    columns = _columns(model, link)
    columns.copy_(columns[:, order_O.to(columns.device)].clone())


def scale_neurons(model: nn.Module, link: Link, factors_O: Tensor) -> None:
    """Multiplies neurons by positive factors, and their columns by the inverse, in place.

    The function stays what it was where only positively homogeneous functions (ReLU, pooling) lie
    between.

    Args:
        model: with the layers that the link names.
        link: the neurons, with nothing of their own in between.
        factors_O: positive.
    """
    for name in link.producers:
        for parameter in model.get_submodule(name).parameters():
            parameter.data.mul_(factors_O.to(parameter).view(-1, *[1] * (parameter.dim() - 1)))
    columns = _columns(model, link)
    columns.div_(factors_O.to(columns).view(1, -1, *[1] * (columns.dim() - 2)))


@checked
def neuron_groups(
    weight: Tensor,
    groups: Count,
    criterion: Criterion = "std",
    generator: torch.Generator | None = None,
) -> Tensor:
    """A group (O,), int64 in [0, groups), for each row of a weight; never more groups than rows.

    Args:
        weight: (O, …).
        groups: how many.
        criterion: ``std``: rows by the deviation of their weights, cut into equal blocks;
            ``std_kmeans``: k-means of these deviations; ``quantiles``: k-means of the rows'
            quantiles 0.05, 0.25, …, 0.95; the controls ``random`` and ``contiguous``: equal blocks
            of rows in a random order, or as they come.
        generator: of the random order.
    """
    rows = weight.detach().flatten(1).float().cpu()
    count = min(groups, len(rows))
    spread_O = rows.std(1, correction=0)
    if criterion == "std_kmeans":
        centres = kmeans_1d(spread_O[None], count)[0]
        middles = (centres[1:] + centres[:-1]) / 2
        return _consecutive(torch.searchsorted(middles, spread_O)).to(weight.device)
    if criterion == "quantiles":
        levels = torch.linspace(0.05, 0.95, 5)
        features = rows.quantile(levels, dim=1).T.numpy()
        found = KMeans(count, n_init=1, random_state=0).fit_predict(features)
        return _consecutive(torch.from_numpy(found.astype(np.int64))).to(weight.device)
    order = {
        "std": spread_O.argsort(stable=True),
        "random": torch.randperm(len(rows), generator=generator),
        "contiguous": torch.arange(len(rows)),
    }[criterion]
    found_O = torch.empty(len(rows), dtype=torch.int64)
    found_O[order] = torch.arange(len(rows)) * count // len(rows)
    return found_O.to(weight.device)


def _consecutive(groups_O: Tensor) -> Tensor:
    """Groups numbered without gaps."""
    return groups_O.unique(return_inverse=True)[1]


def _channels(module: nn.Module) -> int:
    """The dimension of channels, in inputs and outputs."""
    return -1 if isinstance(module, nn.Linear) else 1


def _is_channelwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == module.in_channels == module.out_channels > 1
    return isinstance(module, nn.BatchNorm2d)


def _inputs(module: Any) -> int:
    return int(module.weight.shape[1])


def _columns(model: nn.Module, link: Link) -> Tensor:
    """The consumer's weight as (out, neurons, repeat, …), a view."""
    weight = model.get_submodule(link.consumer).get_parameter("weight").data
    return weight.view(len(weight), link.count, link.repeat, *weight.shape[2:])


def _keeps_the_function(model: nn.Module, link: Link, x: Tensor) -> bool:
    """Whether outputs stay what they are under a random order, which is then undone."""
    order_O = torch.randperm(link.count, generator=torch.Generator().manual_seed(0))
    before = model(x)
    permute_neurons(model, link, order_O)
    after = model(x)
    permute_neurons(model, link, order_O.argsort())
    tolerance = TOLERANCE if before.dtype.itemsize >= 4 else 100 * TOLERANCE
    return bool((after - before).abs().max() <= tolerance * before.abs().max())
