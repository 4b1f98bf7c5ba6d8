"""Erasing mode: which operators can go, when a network is left, and taking them out.

A segment is a chain of operations without branches. It can be erased if it has parameters and all
that reads it is a sum or a concatenation, which does without one of its inputs (Algorithm 2).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from repro.errors import UserError
from repro.methods.otov3.blocks import written_by
from repro.toolbox.dependency_graph import DependencyGraph, cut, running

# What stays zero if its input is: it may stand behind the last parameters of a segment.
QUIET = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity, nn.Dropout,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Upsample,
)  # fmt: skip
QUIET_FUNCTIONS = {
    F.relu, F.gelu, F.silu, torch.relu, torch.tanh, F.dropout, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, torch.flatten, "relu", "tanh", "flatten",
}  # fmt: skip
LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
CONCATENATIONS = {torch.cat, torch.concat}


@dataclass(frozen=True)
class Segment:
    """A chain of operations.

    Attributes:
        nodes: their names in the graph, in order.
        modules: the names of its modules with parameters.
    """

    nodes: tuple[str, ...]
    modules: tuple[str, ...]


class SegmentGraph:
    """A network as segments: chains of operations, and the joints between them.

    Args:
        model: traceable by `torch.fx`, module by module.

    Attributes:
        segments: all chains; joints are chains of one.
        removable: those that can be erased, in the order of the forward pass.

    Raises:
        UserError: the network cannot be traced; the message names the module that stopped it.
    """

    def __init__(self, model: nn.Module) -> None:
        with running(model) as names:
            try:
                self.traced = torch.fx.symbolic_trace(model)
            except Exception as error:
                where = names[-1] if names else type(model).__name__
                raise UserError(
                    f"{type(model).__name__}: the forward pass of '{where}' cannot be traced by "
                    f"torch.fx: {str(error).splitlines()[0]}"
                ) from error
        self.model = model
        nodes = [node for node in self.traced.graph.nodes if node.op != "get_attr"]
        self.segments: list[Segment] = []
        self.removable: list[Segment] = []
        taken: set[Node] = set()
        for node in nodes:
            if node in taken:
                continue
            chain = [node]
            while _goes_on(chain[-1]):
                chain.append(next(iter(chain[-1].users)))
            taken |= set(chain)
            segment = Segment(tuple(each.name for each in chain), self._trained(chain))
            self.segments.append(segment)
            readers = chain[-1].users
            alone = bool(readers) and all(is_joint(reader) for reader in readers)
            if alone and segment.modules and self._falls_silent(chain):
                self.removable.append(segment)

    def _trained(self, chain: Iterable[Node]) -> tuple[str, ...]:
        return tuple(
            str(node.target)
            for node in chain
            if node.op == "call_module"
            and any(True for _ in self.model.get_submodule(str(node.target)).parameters())
        )

    def _falls_silent(self, chain: Sequence[Node]) -> bool:
        """Whether a chain returns zero once its parameters are zero."""
        for node in reversed(chain):
            module = None
            if node.op == "call_module":
                module = self.model.get_submodule(str(node.target))
            if isinstance(module, LAYERS):
                return True
            if not (isinstance(module, QUIET) or node.target in QUIET_FUNCTIONS):
                return False
        return False

    @property
    def concatenates(self) -> bool:
        """Whether some joint is a concatenation."""
        return any(node.target in CONCATENATIONS for node in self.traced.graph.nodes)

    def valid(self, erased: Collection[int]) -> bool:
        """Whether the output still hangs on the input without some of `removable`, by number."""
        gone = self.dead(erased)
        return all(node not in gone for node in self.traced.graph.nodes if node.op == "output")

    def dead(self, erased: Collection[int]) -> set[Node]:
        """The operations that compute nothing any more: erased, or without an input."""
        names = {name for number in erased for name in self.removable[number].nodes}
        gone: set[Node] = set()
        for node in self.traced.graph.nodes:
            inputs = [each for each in node.all_input_nodes if each.op != "get_attr"]
            lost = [each for each in inputs if each in gone]
            starves = len(lost) == len(inputs) if is_joint(node) else bool(lost)
            if node.name in names or (inputs and starves):
                gone.add(node)
        return gone


def is_joint(node: Node) -> bool:
    """Whether an operation is a sum or a concatenation of several activations."""
    inputs = [each for each in node.all_input_nodes if each.op != "get_attr"]
    return len(inputs) > 1 and node.target in SUMS | CONCATENATIONS


def _goes_on(node: Node) -> bool:
    """Whether a chain goes on behind an operation: one reader, which reads nothing else."""
    if node.op == "placeholder" or is_joint(node) or len(node.users) != 1:
        return False
    reader = next(iter(node.users))
    inputs = [each for each in reader.all_input_nodes if each.op != "get_attr"]
    return reader.op != "output" and len(inputs) == 1


def erase(
    model: nn.Module,
    erased: Collection[int],
    graph: SegmentGraph,
    channels: DependencyGraph | None = None,
) -> torch.fx.GraphModule:
    """The network without some segments, as a copy that computes the same.

    Args:
        model: the network, in which these segments are zero.
        erased: numbers of `SegmentGraph.removable`.
        graph: of the network.
        channels: its dependency graph; needed where a concatenation loses an input, and what reads
            it loses columns.

    Raises:
        UserError: nothing would be left, or ``channels`` is missing.
    """
    if not graph.valid(erased):
        raise UserError("Without these segments the output does not hang on the input: keep one.")
    smaller = torch.fx.symbolic_trace(copy.deepcopy(model))
    by_name = {node.name: node for node in smaller.graph.nodes}
    gone = {by_name[node.name] for node in graph.dead(erased)}
    for node in list(smaller.graph.nodes):
        lost = [each for each in node.all_input_nodes if each in gone]
        if node in gone or not lost:
            continue
        if node.target in CONCATENATIONS:
            if channels is None:
                raise UserError("Erasing before a concatenation needs the dependency graph.")
            parts = [each for each in node.args[0] if each not in gone]
            node.args = (parts, *node.args[1:])
        else:
            (left,) = [each for each in node.all_input_nodes if each not in gone]
            node.replace_all_uses_with(left)
    smaller.graph.eliminate_dead_code()
    if channels is not None:
        lost_modules = {str(node.target) for node in gone if node.op == "call_module"}
        cut(smaller, _orphaned(channels, lost_modules))
    smaller.delete_all_unused_submodules()
    smaller.recompile()
    return smaller


def _orphaned(channels: DependencyGraph, modules: Collection[str]) -> dict[str, Any]:
    """By parameter and axis, the places of channels that erased modules alone wrote."""
    places: dict[str, dict[int, list[torch.Tensor]]] = {}
    for group in written_by(channels, modules):
        for member in group.members + group.buffers:
            if member.name.rpartition(".")[0] not in modules:
                axes = places.setdefault(member.name, {})
                axes.setdefault(member.dim, []).append(member.indices.flatten())
    return {
        name: {dim: torch.cat(parts) for dim, parts in axes.items()}
        for name, axes in places.items()
    }
