"""Cutting channels out of a network, or setting them to zero."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.toolbox.dependency_graph.graph import DependencyGraph, Group, called

Kept = Mapping[Group, Sequence[int] | Tensor]

# Numbers that a layer keeps beside its weight, by the axis of the weight that they are the size of.
SIZES = {
    "in_features": 1,
    "out_features": 0,
    "num_features": 0,
    "num_channels": 0,
    "embedding_dim": 1,
    "nx": 0,
    "nf": 1,
}


def remove(model: nn.Module, kept: Kept, graph: DependencyGraph) -> nn.Module:
    """A smaller copy of a network: only the kept channels of some groups are left.

    Parameters and statistics are cut, and the sizes that layers keep beside them follow; classes
    and names stay.

    Args:
        model: the network that was traced, or one of the same shapes.
        kept: for each group that loses channels, the positions (0 to size - 1) of those that stay.
        graph: what `trace` found.

    Raises:
        UserError: a group that is not the graph's or not prunable, positions that it does not have,
            no position at all, or a network whose forward pass has sizes written into it.
    """
    chosen = {group: _positions(group, positions, graph) for group, positions in kept.items()}
    smaller = copy.deepcopy(model)
    _follow(smaller, chosen, graph)
    cut(smaller, _places(chosen))
    was_training = {module: module.training for module in smaller.modules()}
    try:
        with torch.no_grad():
            called(smaller.eval(), graph.inputs)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{type(model).__name__} cannot lose these channels, because its forward pass has "
            f"sizes written into it: {str(error).splitlines()[0]}"
        ) from error
    finally:
        for module, training in was_training.items():
            module.training = training
    return smaller


@torch.no_grad()
def silence(model: nn.Module, kept: Kept) -> None:
    """Sets what belongs to all other channels of some groups to zero, in place.

    Args:
        model: see `remove`.
        kept: see `remove`; here a group may lose all channels.
    """
    parameters = dict(model.named_parameters())
    for group, positions in kept.items():
        gone = torch.ones(group.size, dtype=torch.bool)
        gone[torch.as_tensor(positions, dtype=torch.long)] = False
        for member in group.owned:
            weight = parameters[member.name]
            places = member.indices[gone].flatten().to(weight.device)
            weight.index_fill_(member.dim, places, 0.0)


def _positions(group: Group, positions: Sequence[int] | Tensor, graph: DependencyGraph) -> Tensor:
    """The positions that stay, in rising order.

    Raises:
        UserError: see `remove`.
    """
    if group not in graph.channels:
        raise UserError(f"Group '{group.name}' is not of this graph: trace the network again.")
    if not group.prunable:
        raise UserError(f"Group '{group.name}' is not prunable: its channels have to stay.")
    chosen = torch.as_tensor(positions, dtype=torch.long).unique()
    if len(chosen) == 0:
        raise UserError(f"Group '{group.name}' has to keep at least one channel.")
    if chosen[0] < 0 or chosen[-1] >= group.size:
        raise UserError(f"Group '{group.name}' has channels 0 to {group.size - 1}.")
    return chosen


def _places(kept: Mapping[Group, Tensor]) -> dict[str, dict[int, Tensor]]:
    """For each parameter or buffer, by axis, the places that go."""
    gone: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for group, positions in kept.items():
        lost = torch.ones(group.size, dtype=torch.bool)
        lost[positions] = False
        for member in group.members + group.buffers:
            gone[member.name][member.dim].append(member.indices[lost].flatten())
    return {
        name: {dim: torch.cat(places) for dim, places in axes.items()}
        for name, axes in gone.items()
    }


def cut(model: nn.Module, places: Mapping[str, Mapping[int, Tensor]]) -> None:
    """Cuts places out of parameters and statistics, in place; sizes beside them follow.

    Args:
        model: a network.
        places: by the name of a parameter or buffer, and by axis, the places that go.
    """
    for name, cuts in places.items():
        _cut(model, name, cuts)
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor):
            _resize(layer, weight)


def _cut(model: nn.Module, name: str, cuts: Mapping[int, Tensor]) -> None:
    """Puts a smaller tensor in the place of one, wherever the network holds it."""
    owner, _, attribute = name.rpartition(".")
    whole: Tensor = getattr(model.get_submodule(owner), attribute)
    part = whole.detach()
    for dim, places in cuts.items():
        stays = torch.ones(part.shape[dim], dtype=torch.bool)
        stays[places] = False
        part = part.index_select(dim, stays.nonzero().flatten().to(part.device))
    new = nn.Parameter(part, whole.requires_grad) if isinstance(whole, nn.Parameter) else part
    for module in model.modules():  # tied weights are held more than once
        held = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for key, tensor in held:
            if tensor is whole:
                setattr(module, key, new)


def _follow(model: nn.Module, kept: Mapping[Group, Tensor], graph: DependencyGraph) -> None:
    """Sets numbers that modules keep apart from their weights to what is left."""
    gone: set[int] = set()
    for group, positions in kept.items():
        all_of_it = graph.channels[group]
        gone |= set(all_of_it) - {all_of_it[place] for place in positions.tolist()}
    for stored, numbers in graph.stored:
        left = sum(number not in gone for number in numbers.tolist())
        module: Any = model.get_submodule(stored.module)
        tuple_like = isinstance(getattr(module, stored.attribute), list | tuple)
        setattr(module, stored.attribute, (left,) if tuple_like else left)


def _resize(layer: Any, weight: Tensor) -> None:
    """The sizes that one layer keeps, from its weight."""
    for attribute, dim in SIZES.items():
        if isinstance(getattr(layer, attribute, None), int) and dim < weight.dim():
            setattr(layer, attribute, weight.shape[dim])
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and weight.dim() == 1:
        layer.normalized_shape = tuple(weight.shape)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
