"""Which units are left: the lowest of all layers together go, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.fx
from torch import Tensor, nn
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Count, checked
from repro.methods.lrp_pruning.criteria import Batches, Criterion, Scores, normalised
from repro.methods.lrp_pruning.removal import shrunk
from repro.toolbox.costs import CountFlops
from repro.toolbox.dependency_graph import DependencyGraph
from repro.toolbox.lrp import explained
from repro.toolbox.method import Method

Kept = dict[str, Tensor]  # layer -> (units,) bool
Kind = Literal["filters", "neurons", "all"]
KINDS: dict[Kind, tuple[type[nn.Module], ...]] = {
    "filters": (nn.Conv2d,),
    "neurons": (nn.Linear,),
    "all": (nn.Conv2d, nn.Linear),
}


@dataclass(frozen=True)
class Units:
    """The units of a layer.

    Attributes:
        layer: its name.
        count: how many it has.
        norm: the batch norm right behind it, which goes with them; None if there is none.
    """

    layer: str
    count: int
    norm: str | None = None


def units_of(model: nn.Module, kind: Kind | None = None) -> list[Units]:
    """The layers whose units may go: all of a kind but the one that gives the outputs.

    Args:
        model: traceable by `torch.fx`.
        kind: ``filters`` of convolutions, ``neurons`` of linear layers, or ``all``; None: filters
            where there are convolutions, else neurons.

    Raises:
        UserError: there is none.
    """
    modules = dict(model.named_modules())
    layers: list[tuple[str, nn.Module, str | None]] = []
    for node in torch.fx.symbolic_trace(model).graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.Linear):
            users = [str(user.target) for user in node.users]
            is_normed = len(users) == 1 and isinstance(modules.get(users[0]), nn.BatchNorm2d)
            layers.append((str(node.target), module, users[0] if is_normed else None))
    if kind is None:
        kind = "filters" if any(isinstance(m, nn.Conv2d) for _, m, _ in layers) else "neurons"
    found = [
        Units(name, len(module.get_parameter("weight")), norm)
        for name, module, norm in layers[:-1]
        if isinstance(module, KINDS[kind])
    ]
    if not found:
        raise UserError(
            f"lrp_pruning: {type(model).__name__} has no {kind} that could go: choose method.units"
            f" among {', '.join(each for each in KINDS if each != kind)}, or another model."
        )
    return found


def without_lowest(scores: Scores, kept: Kept, count: int, least: int = 1) -> tuple[Kept, int]:
    """Removes the lowest units of all layers together.

    Args:
        scores: of all units, by layer; of equal ones those of earlier layers go first.
        kept: which units are still there.
        count: how many of them to remove.
        least: units that every layer keeps, the highest ones.

    Returns:
        Which units are left, and how many of the lowest only stay because of ``least``.

    Raises:
        UserError: so many cannot go.
    """
    offered = sum(max(0, int(mask.sum()) - least) for mask in kept.values())
    if count > offered:
        raise UserError(f"lrp_pruning: {count} units are to go, and only {offered} may.")
    # Sorted on the CPU, in double precision, so that every device breaks ties alike.
    flat = torch.cat([scores[name].double().cpu() for name in kept])
    flat[~torch.cat([mask.cpu() for mask in kept.values()])] = torch.inf
    lowest = flat.argsort(stable=True)[:count]
    guarded, start = torch.zeros(len(flat), dtype=torch.bool), 0
    for mask in kept.values():
        own = flat[start : start + len(mask)].masked_fill(~mask.cpu(), -torch.inf)
        guarded[start + own.argsort(descending=True, stable=True)[:least]] = True
        start += len(mask)
    gone = flat.masked_fill(guarded, torch.inf).argsort(stable=True)[:count]
    left = torch.cat([mask.cpu() for mask in kept.values()])
    left[gone] = False
    sizes = [len(mask) for mask in kept.values()]
    return dict(zip(kept, left.split(sizes), strict=True)), int(guarded[lowest].sum())


@torch.no_grad()
def silence(model: nn.Module, units: list[Units], kept: Kept) -> None:
    """Sets what is not kept to zero, in place: weights, biases, and scale and shift behind them."""
    for each in units:
        gone = ~kept[each.layer]
        for name in filter(None, (each.layer, each.norm)):
            module = model.get_submodule(name)
            for tensor in (module.weight, module.bias):
                if isinstance(tensor, Tensor):
                    tensor[gone.to(tensor.device)] = 0


class FilterPruning(Method):
    """Prunes the units of a trained network, by a criterion, a step at a time (Yeom et al. 2021).

    Args:
        criterion: scores the units.
        norm: see `normalised`.
        units: see `units_of`.
        least: units that every layer keeps; the paper has no such guard.
        dropout: leave dropout on while scoring, as the authors' convolutional code does.

    Attributes:
        kept: by layer, which units are left.
        guarded: how many removals the guard has put off so far.
    """

    @checked
    def __init__(
        self,
        criterion: Criterion,
        norm: Literal["none", "l1", "l2", "rank"] = "none",
        units: Kind | None = None,
        least: Count = 1,
        dropout: bool = False,
    ) -> None:
        self.criterion, self.norm, self.kind = criterion, norm, units
        self.least, self.dropout = least, dropout
        self.units: list[Units] = []
        self.kept: Kept = {}
        self.guarded = 0

    @override
    def attach(self, model: nn.Module) -> None:
        """Refuses: pruning comes after training.

        Raises:
            UserError: always.
        """
        raise UserError(
            "FilterPruning prunes a model that is trained already: use it with paper=lrp_pruning."
        )

    def begin(self, model: nn.Module) -> None:
        """Finds the units of a network, all of which are still there."""
        self.units = units_of(model, self.kind)
        self.kept = {each.layer: torch.ones(each.count, dtype=torch.bool) for each in self.units}
        self.guarded = 0

    @property
    def total(self) -> int:
        """How many units there were at the beginning."""
        return sum(each.count for each in self.units)

    def scores(self, model: nn.Module, batches: Batches) -> Scores:
        """What the criterion says of the network as it is, normalised by layer."""
        return self.scores_of(self.explained(model), batches)

    def explained(self, model: nn.Module) -> torch.fx.GraphModule:
        """A copy of a network that can be scored; for those that are scored more than once."""
        network = explained(model)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.train(self.dropout)
        return network

    def scores_of(self, network: torch.fx.GraphModule, batches: Batches) -> Scores:
        """See `scores`, of an `explained` network."""
        layers = [each.layer for each in self.units]
        return normalised(self.criterion(network, layers, batches), self.norm)

    def remove(self, model: nn.Module, scores: Scores, count: int) -> None:
        """Silences the lowest units that are left, in place."""
        self.kept, guarded = without_lowest(scores, self.kept, count, self.least)
        self.guarded += guarded
        self.silence(model)

    def prune(self, model: nn.Module, batches: Batches, count: int) -> None:
        """A step: scores the network and silences its lowest units."""
        self.remove(model, self.scores(model, batches), count)

    def silence(self, model: nn.Module) -> None:
        """Silences anew what was removed; call it after every update of fine-tuning."""
        silence(model, self.units, self.kept)

    def shrunk(self, model: nn.Module, graph: DependencyGraph) -> nn.Module:
        """The smaller network that computes the same; see `shrunk`."""
        return shrunk(model, self.kept, graph)


def scoring_cost(pruning: FilterPruning, model: nn.Module, batches: Batches) -> float:
    """Multiply-adds of scoring, over those of a forward and a backward pass on the same examples.

    Counted are matrix products and convolutions, not elementwise work.

    Args:
        pruning: has begun with the model.
        model: what is scored.
        batches: references.
    """
    network = pruning.explained(model).requires_grad_()
    with CountFlops() as ours:
        pruning.scores_of(network, batches)
    with CountFlops() as plain, torch.enable_grad():
        for x, y in batches:
            nn.functional.cross_entropy(network(x), y).backward()
    return ours.flops / plain.flops


def overlap(kept: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """The share of the units that one removed and the other did, too."""
    gone, same = (torch.cat([~mask for mask in each.values()]) for each in (kept, others))
    return float((gone & same).sum() / gone.sum())
