"""The dependency graph of a network: what `trace` makes of the operations of a forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from repro.errors import UserError, did_you_mean
from repro.toolbox.dependency_graph.channels import PINNED, Places, Role, Ties
from repro.toolbox.dependency_graph.rules import Stored, Walk

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Member:
    """What a parameter holds of a group's channels.

    Attributes:
        name: of the parameter (or buffer), as `nn.Module.named_parameters` has it.
        dim: the axis along which it holds channels.
        indices: (size, k): the k places of each channel along that axis. More than one where a
            channel is spread: over the pixels that a linear layer reads, or over a head's features.
        role: ``producer`` writes the channel (rows of weights, biases, embeddings), ``norm`` scales
            and shifts it, ``consumer`` reads it. Where all producers and norms of a channel are
            zero, so is the channel.
    """

    name: str
    dim: int
    indices: Tensor
    role: Role


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of the same members, each of which can be removed without the others.

    Attributes:
        name: of the layer that writes them first; with a number where that has several groups.
        size: how many channels.
        members: the parameters that hold them.
        buffers: the statistics that do, by the names of `nn.Module.named_buffers`.
        prunable: whether channels can be removed at all: those of the network's output cannot, nor
            what meets an operation that `DependencyGraph.unknown` names.
        exact: whether the network without a channel is the network with its producers and norms at
            zero: not where a layer norm or a mean looks across channels, or where zero does not
            stay zero on the way to its consumers.
    """

    name: str
    size: int
    members: list[Member]
    buffers: list[Member]
    prunable: bool
    exact: bool

    @property
    def owned(self) -> list[Member]:
        """Producers and norms: what belongs to a channel alone, and is zero if the channel is."""
        return [member for member in self.members if member.role != "consumer"]


@dataclass(frozen=True, eq=False)
class DependencyGraph:
    """The groups of a network's channels.

    Attributes:
        groups: in the order of their first parameters in the forward pass.
        channels: the number of each channel of a group.
        stored: what modules keep beside their weights, and the channels that it counts.
        unknown: operations that no rule describes but that met channels, each with the name of the
            module they stand in: what they meet is not prunable.
        inputs: the example that was traced.
        program: the operations, as `torch.export` recorded them.
        parameter_names: the names of the nodes of `program` that are parameters or buffers.
    """

    groups: list[Group]
    channels: dict[Group, list[int]]
    stored: list[tuple[Stored, NDArray[np.int64]]]
    unknown: list[tuple[str, str]]
    inputs: Inputs
    program: ExportedProgram
    parameter_names: dict[torch.fx.Node, str]

    @property
    def prunable(self) -> list[Group]:
        """The groups whose channels can be removed."""
        return [group for group in self.groups if group.prunable]

    def group(self, name: str) -> Group:
        """The group of a name.

        Raises:
            UserError: there is none.
        """
        names = {group.name: group for group in self.groups}
        if name not in names:
            raise UserError(f"There is no group '{name}'.{did_you_mean(name, names)}")
        return names[name]


def trace(model: nn.Module, example_inputs: Inputs) -> DependencyGraph:
    """Finds the groups of a network's channels.

    The forward pass is recorded by `torch.export` in evaluation mode, without computing anything.

    Args:
        model: any module that `torch.export` can record; stays as it is.
        example_inputs: a tensor, a sequence of positional arguments, or a mapping of named ones.

    Returns:
        The graph. Channels are counted at the sizes of this example: a network of other sizes has
        another graph.

    A `UserError` says so if the forward pass cannot be recorded, and names the module that stopped
    it.
    """
    program = _recorded(model, example_inputs)
    walk = Walk(model)
    first = _first_names(model)
    names = {
        spec.arg.name: first[str(spec.target)]
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in names and isinstance(value, Tensor):
            walk.values[node] = walk.ties.parameter(names[node.name], value.shape)
        elif node.op == "placeholder" and isinstance(value, Tensor):
            walk.start(node, value)
        elif node.op == "call_function":
            walk.visit(node)
        elif node.op == "output":
            walk.finish(node)
    nodes = {node: names[node.name] for node in program.graph.nodes if node.name in names}
    channels = _Channels(walk.ties, {name for name, _ in model.named_parameters()})
    stored = [(each, channels.numbers[each.places]) for each in walk.stored]
    return DependencyGraph(
        groups=channels.groups(),
        channels=channels.number_of,
        stored=stored,
        unknown=walk.unknown,
        inputs=example_inputs,
        program=program,
        parameter_names=nodes,
    )


def _first_names(model: nn.Module) -> dict[str, str]:
    """Of every parameter and buffer the name that `named_parameters` has, where it has several."""
    held = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in held}


def called(model: nn.Module, inputs: Inputs) -> Any:
    """What a network returns for an example."""
    positional, named = _arguments(inputs)
    return model(*positional, **named)


def _arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs), {}


def _recorded(model: nn.Module, example_inputs: Inputs) -> ExportedProgram:
    """The operations of a forward pass in evaluation mode.

    Raises:
        UserError: it cannot be recorded.
    """
    positional, named = _arguments(example_inputs)
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with running(model) as active:
            return torch.export.export(model, positional, named, strict=False)
    except Exception as error:
        name = active[-1] if active else ""
        kind = type(model.get_submodule(name)).__name__
        where = f"'{name}' ({kind})" if name else kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{type(model).__name__}: the forward pass of {where} cannot be traced: {reason}"
        ) from error
    finally:
        for module, training in was_training.items():
            module.training = training


@contextmanager
def running(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules whose forward passes have begun and not ended, outermost first."""
    names: list[str] = []
    handles = []
    for name, module in model.named_modules():

        def enter(_module: nn.Module, _inputs: Any, name: str = name) -> None:
            names.append(name)

        def leave(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
            names.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


class _Channels:
    """Channels, and the groups that they form.

    Args:
        ties: of the whole network.
        parameters: the names of parameters; all others are buffers.
    """

    def __init__(self, ties: Ties, parameters: set[str]) -> None:
        self.ties, self.parameters = ties, parameters
        self.numbers = ties.components()
        self.number_of: dict[Group, list[int]] = {}  # the channels' numbers, in a group's order
        self.pinned = {int(self.numbers[PINNED]), *self._numbers(ties.pinned)}
        self.inexact = self._numbers(ties.inexact)
        # Where each channel lies: its places along every (parameter, axis).
        self.where: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(dict)
        for key, start in ties.starts.items():
            for place, number in enumerate(self.numbers[start : start + ties.sizes[key]].tolist()):
                self.where[number].setdefault(key, []).append(place)

    def _numbers(self, places: list[Places]) -> set[int]:
        return {int(number) for each in places for number in np.unique(self.numbers[each])}

    def _role(self, key: tuple[str, int]) -> Role:
        return self.ties.roles.get(key, "norm")

    def _produces(self, key: tuple[str, int]) -> bool:
        return self.ties.roles.get(key) == "producer" and key[0] in self.parameters

    def groups(self) -> list[Group]:
        """Channels with as many places in the same parameters are a group."""
        alike: dict[Any, list[int]] = defaultdict(list)
        for number, where in self.where.items():
            if any(self._produces(key) for key in where):
                shape = tuple((key, len(places)) for key, places in where.items())
                flags = (number in self.pinned, number in self.inexact)
                alike[shape, flags].append(number)
        names: dict[str, int] = {}
        found = []
        for (shape, (pinned, inexact)), numbers in alike.items():
            members = [self._member(key, numbers) for key, _ in shape]
            writer = next(member for member in members if member.role == "producer")
            name = writer.name.rpartition(".")[0] or writer.name
            names[name] = names.get(name, 0) + 1
            group = Group(
                name=name if names[name] == 1 else f"{name}:{names[name]}",
                size=len(numbers),
                members=[member for member in members if member.name in self.parameters],
                buffers=[member for member in members if member.name not in self.parameters],
                prunable=not pinned,
                exact=not inexact,
            )
            self.number_of[group] = numbers
            found.append(group)
        return found

    def _member(self, key: tuple[str, int], numbers: list[int]) -> Member:
        indices = torch.tensor([self.where[number][key] for number in numbers])
        return Member(*key, indices, self._role(key))
