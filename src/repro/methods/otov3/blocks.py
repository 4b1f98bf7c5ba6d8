"""Groups of parameters as one vector: sums over a group, and factors of it, for all groups at once.

Suffixes of tensor names: G groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.toolbox.dependency_graph import DependencyGraph, Group


@dataclass
class Slab:
    """What a parameter holds of the groups along one of its axes.

    Attributes:
        parameter: the tensor.
        dim: the axis.
        numbers: (its size) the group of each entry; G where it belongs to none.
    """

    parameter: nn.Parameter
    dim: int
    numbers: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """Sums a tensor of the parameter's shape over all other axes."""
        others = [dim for dim in range(values.dim()) if dim != self.dim]
        return values.sum(others) if others else values

    def spread(self, factors: Tensor) -> Tensor:
        """Factors (G + 1) in a shape that broadcasts against the parameter."""
        shape = [1] * self.parameter.dim()
        shape[self.dim] = -1
        return factors[self.numbers].view(shape)


class Blocks:
    """Disjoint groups of entries of a model's parameters.

    Args:
        slabs: where they lie.
        count: G, how many groups.

    Attributes:
        sizes: (G,) how many numbers each holds.
    """

    def __init__(self, slabs: Sequence[Slab], count: int) -> None:
        self.slabs, self.count = slabs, count
        self.sizes = self.sums(torch.ones_like(slab.parameter) for slab in slabs).detach()

    def sums(self, values: Iterable[Tensor]) -> Tensor:
        """Sums over each group (G,) of one tensor for each slab."""
        first = self.slabs[0].parameter
        total = torch.zeros(self.count + 1, dtype=first.dtype, device=first.device)
        for slab, each in zip(self.slabs, values, strict=True):
            total.index_add_(0, slab.numbers, slab.sums(each))
        return total[:-1]

    @torch.no_grad()
    def squares(self) -> Tensor:
        """The squared norm (G,) of each group."""
        return self.sums(slab.parameter.square() for slab in self.slabs)

    def copies(self) -> list[Tensor]:
        """The parameters as they are."""
        return [slab.parameter.detach().clone() for slab in self.slabs]

    @torch.no_grad()
    def scale_(self, factors_G: Tensor) -> None:
        """Multiplies every group by its factor."""
        factors = self._with_rest(factors_G, 1.0)
        for slab in self.slabs:
            slab.parameter.mul_(slab.spread(factors))

    @torch.no_grad()
    def add_(self, tensors: Iterable[Tensor], factors_G: Tensor) -> None:
        """Adds to every group its factor times what one tensor for each slab holds of it."""
        factors = self._with_rest(factors_G, 0.0)
        for slab, each in zip(self.slabs, tensors, strict=True):
            slab.parameter.addcmul_(each, slab.spread(factors))

    def _with_rest(self, factors_G: Tensor, rest: float) -> Tensor:
        """With one more factor, for what belongs to no group."""
        return torch.cat([factors_G.to(self.sizes), self.sizes.new_full((1,), rest)])


def channel_blocks(model: nn.Module, groups: Sequence[Group]) -> Blocks:
    """A group for each channel: the rows of producers, and the entries of norms.

    Args:
        model: whose parameters they are.
        groups: of its dependency graph; channels are numbered through all of them in order.
    """
    parameters = dict(model.named_parameters())
    count = sum(group.size for group in groups)
    numbers: dict[tuple[str, int], Tensor] = {}
    first = 0
    for group in groups:
        own = torch.arange(first, first + group.size)
        first += group.size
        for member in group.owned:
            key = (member.name, member.dim)
            if key not in numbers:
                size = parameters[member.name].shape[member.dim]
                numbers[key] = torch.full((size,), count)
            each = own[:, None].expand_as(member.indices)
            numbers[key][member.indices.flatten()] = each.flatten()
    return _blocks(parameters, numbers, count)


def module_blocks(
    model: nn.Module, modules: Sequence[Sequence[str]], channels: DependencyGraph | None = None
) -> Blocks:
    """A group for all parameters of some modules, and for what norms hold of their outputs alone.

    Args:
        model: that they are part of.
        modules: for each group the names of its modules.
        channels: the network's dependency graph, where a concatenation puts outputs side by side
            and a norm behind it has a scale and a shift for each of them.
    """
    parameters = dict(model.named_parameters())
    count = len(modules)
    numbers: dict[tuple[str, int], Tensor] = {}

    def hold(name: str, dim: int, places: Tensor | slice, number: int) -> None:
        size = parameters[name].shape[dim]
        numbers.setdefault((name, dim), torch.full((size,), count))[places] = number

    for number, names in enumerate(modules):
        for module in names:
            for name, _ in model.get_submodule(module).named_parameters(prefix=module):
                hold(name, 0, slice(None), number)
        for group in [] if channels is None else written_by(channels, names):
            for member in group.owned:
                if member.name.rpartition(".")[0] not in names:
                    hold(member.name, member.dim, member.indices.flatten(), number)
    return _blocks(parameters, numbers, count)


def written_by(channels: DependencyGraph, modules: Collection[str]) -> list[Group]:
    """The prunable groups whose channels are written by some modules and by no others."""
    return [
        group
        for group in channels.prunable
        if all(
            member.name.rpartition(".")[0] in modules
            for member in group.members
            if member.role == "producer"
        )
    ]


def _blocks(
    parameters: Mapping[str, nn.Parameter], numbers: Mapping[tuple[str, int], Tensor], count: int
) -> Blocks:
    slabs = [
        Slab(parameters[name], dim, held.to(parameters[name].device))
        for (name, dim), held in numbers.items()
    ]
    return Blocks(slabs, count)
