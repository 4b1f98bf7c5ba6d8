"""What can be removed: channels (pruning mode), or whole operators (erasing mode)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Node

from repro.errors import UserError
from repro.methods.otov3.blocks import Blocks, channel_blocks, module_blocks
from repro.methods.otov3.erasing import SegmentGraph, erase
from repro.toolbox.dependency_graph import DependencyGraph, Group, remove, trace


class Structure(Protocol):
    """Groups of parameters that can be zero together, and what follows if they are."""

    blocks: Blocks

    def redundant(self, score_G: Tensor, count: int) -> Tensor:
        """Chooses about so many groups by falling score, such that a network is left.

        Returns:
            (G,) booleans.
        """

    def shuffled(self, chosen_G: Tensor, generator: torch.Generator) -> Tensor:
        """Another choice of the same size, at random."""

    def zero(self) -> Tensor:
        """(G,) which groups are zero."""

    def extract(self, model: nn.Module, zero_G: Tensor) -> nn.Module:
        """The network without some groups, as a copy."""


@dataclass
class Layer:
    """A convolution or linear layer, for counting.

    Attributes:
        rows: the channel of each of its outputs; G for what cannot go.
        columns: the channel of each of its inputs, within a group of a convolution.
        repeats: multiply-accumulates for each pair: kernel area times output positions.
    """

    rows: Tensor
    columns: Tensor
    repeats: int


class Channels:
    """Pruning mode: the channels of all groups that are zero-invariant.

    Args:
        model: the network.
        inputs: an example, as `repro.toolbox.dependency_graph.trace` takes it.
        least: channels that every group keeps.
        multiple: how many a group keeps is rounded to a multiple of this, if it has as many.

    Raises:
        UserError: the network cannot be traced, or has no such group.
    """

    def __init__(self, model: nn.Module, inputs: Any, least: int = 1, multiple: int = 1) -> None:
        self.graph = trace(model, inputs)
        self.groups = [group for group in self.graph.prunable if group.exact]
        if not self.groups:
            raise UserError(
                f"otov3 finds no channels in {type(model).__name__} that can be zero and removed."
            )
        self.least, self.multiple = least, multiple
        self.blocks = channel_blocks(model, self.groups)
        self.layers = _layers(model, self.graph, self.groups)

    def slices(self) -> list[slice]:
        """Where each group's channels are among all."""
        slices, first = [], 0
        for group in self.groups:
            slices.append(slice(first, first + group.size))
            first += group.size
        return slices

    def redundant(self, score_G: Tensor, count: int) -> Tensor:
        """The highest scores; the best of a group are given back where it would keep too few."""
        chosen = torch.zeros_like(score_G, dtype=torch.bool)
        chosen[score_G.argsort(descending=True, stable=True)[:count]] = True
        for place in self.slices():
            scores, size = score_G[place], place.stop - place.start
            kept = size - int(chosen[place].sum())
            kept = max(round(kept / self.multiple), 1) * self.multiple
            kept = min(max(kept, self.least), size)
            order = scores.argsort(descending=True, stable=True)
            within = torch.zeros_like(chosen[place])
            within[order[: size - kept]] = True
            chosen[place] = within
        return chosen

    def shuffled(self, chosen_G: Tensor, generator: torch.Generator) -> Tensor:
        """As many of every group, at random."""
        shuffled = chosen_G.clone()
        for place in self.slices():
            size = place.stop - place.start
            shuffled[place] = chosen_G[place][torch.randperm(size, generator=generator)]
        return shuffled

    def zero(self) -> Tensor:
        """(G,) whether a channel is zero."""
        return self.blocks.squares() == 0

    def extract(self, model: nn.Module, zero_G: Tensor) -> nn.Module:
        """Without some channels; one of a group stays, if all should go."""
        kept = {}
        for group, place in zip(self.groups, self.slices(), strict=True):
            alive = (~zero_G[place]).nonzero().flatten().tolist()
            kept[group] = alive or [0]
        return remove(model, kept, self.graph)

    def share(self, zero_G: Tensor) -> float:
        """The share of multiply-accumulates that is saved without some channels."""
        return 1 - self.products(zero_G) / self.products(torch.zeros_like(zero_G))

    def emptied(self, zero_G: Tensor) -> int:
        """How many groups lose all channels."""
        return sum(width == 0 for width in self.widths(zero_G).values())

    def widths(self, zero_G: Tensor) -> dict[str, int]:
        """How many channels of each group are left, by its name."""
        return {
            group.name: group.size - int(zero_G[place].sum())
            for group, place in zip(self.groups, self.slices(), strict=True)
        }

    def products(self, zero_G: Tensor) -> float:
        """Multiply-accumulates of all convolutions and linear layers, for one example."""
        alive = torch.cat([~zero_G, zero_G.new_ones(1)]).cpu()
        return float(
            sum(
                layer.repeats * int(alive[layer.rows].sum()) * int(alive[layer.columns].sum())
                for layer in self.layers
            )
        )


def _layers(model: nn.Module, graph: DependencyGraph, groups: Sequence[Group]) -> list[Layer]:
    """What is counted."""
    count = sum(group.size for group in groups)
    weights = dict(model.named_parameters())
    axes: dict[tuple[str, int], Tensor] = {}
    first = 0
    for group in groups:
        own = torch.arange(first, first + group.size)
        first += group.size
        for member in group.members:
            size = weights[member.name].shape[member.dim]
            axis = axes.setdefault((member.name, member.dim), torch.full((size,), count))
            axis[member.indices.flatten()] = own[:, None].expand_as(member.indices).flatten()

    def channels(name: str, dim: int) -> Tensor:
        return axes.get((name, dim), torch.full((weights[name].shape[dim],), count))

    names = graph.parameter_names
    layers = []
    for node in graph.program.graph.nodes:
        kind = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        weight = names.get(node.args[1]) if len(node.args) > 1 else None
        if weight not in weights or not (kind.startswith("conv") or kind == "linear"):
            continue
        shape = weights[weight].shape
        positions = _positions(node, channel=1 if kind.startswith("conv") else -1)
        repeats = positions * int(shape[2:].numel())
        layers.append(Layer(channels(weight, 0), channels(weight, 1), repeats))
    return layers


def _positions(node: Node, channel: int) -> int:
    """How many outputs a channel has, for one example."""
    shape = node.meta["val"].shape
    return int(shape.numel() // (shape[0] * shape[channel]))


class Segments:
    """Erasing mode: operators between sums or concatenations.

    Args:
        model: the network.
        inputs: an example, as `repro.toolbox.dependency_graph.trace` takes it.
        checked: whether a choice has to leave a path from the input to the output.

    Raises:
        UserError: the network cannot be traced, or has no operator that could be erased.
    """

    def __init__(self, model: nn.Module, inputs: Any, checked: bool = True) -> None:
        self.graph = SegmentGraph(model)
        self.channels = trace(model, inputs) if self.graph.concatenates else None
        if not self.graph.removable:
            raise UserError(
                f"otov3 finds no operators in {type(model).__name__} that could be erased: none "
                "stands alone before a sum or a concatenation."
            )
        self.checked = checked
        modules = [segment.modules for segment in self.graph.removable]
        self.blocks = module_blocks(model, modules, self.channels)

    def redundant(self, score_G: Tensor, count: int) -> Tensor:
        """By falling score; one that would cut the network in two is passed over."""
        chosen: list[int] = []
        for number in score_G.argsort(descending=True, stable=True).tolist():
            if len(chosen) == count:
                break
            if not self.checked or self.graph.valid([*chosen, number]):
                chosen.append(number)
        mask = torch.zeros_like(score_G, dtype=torch.bool)
        mask[chosen] = True
        return mask

    def shuffled(self, chosen_G: Tensor, generator: torch.Generator) -> Tensor:
        """As many at random, by the same rule."""
        score = torch.rand(len(chosen_G), generator=generator)
        return self.redundant(score.to(chosen_G.device), int(chosen_G.sum()))

    def zero(self) -> Tensor:
        """(G,) whether a segment is zero."""
        return self.blocks.squares() == 0

    def extract(self, model: nn.Module, zero_G: Tensor) -> nn.Module:
        """Without some segments; the whole, if that would be no network."""
        erased = zero_G.nonzero().flatten().tolist()
        return erase(model, erased if self.graph.valid(erased) else [], self.graph, self.channels)

    def emptied(self, zero_G: Tensor) -> int:
        """Whether no path is left from input to output."""
        return int(not self.graph.valid(zero_G.nonzero().flatten().tolist()))

    def widths(self, zero_G: Tensor) -> dict[str, int]:
        """Which segments are left, by the name of their first module."""
        kept = (~zero_G).tolist()
        return {
            segment.modules[0]: int(alive)
            for segment, alive in zip(self.graph.removable, kept, strict=True)
        }
