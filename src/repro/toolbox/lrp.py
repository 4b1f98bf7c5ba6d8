"""Layer-wise relevance propagation (LRP): how much of an output each unit accounts for.

Relevance begins at an output and goes backwards layer by layer; a unit's is the sum of what the
units behind it send, and a rule says in which shares (Bach et al. 2015; Montavon et al. 2019). With
z_ij = x_i w_ij and z_j = Σ_i z_ij + b_j,

    Epsilon     R_i = Σ_j z_ij / (z_j + ε sign z_j) R_j
    AlphaBeta   R_i = Σ_j (α z_ij⁺ / Σ_i z_ij⁺ - β z_ij⁻ / Σ_i z_ij⁻) R_j,   α - β = 1
    z_plus      AlphaBeta with α = 1 and β = 0: positive contributions alone
    ZBox        R_i = Σ_j (z_ij - l_i w_ij⁺ - h_i w_ij⁻) / Σ_i (the same) R_j,  for x in [l, h]

A table says which rule a layer follows, by its type or its name:

>>> import torch
>>> from torch import nn
>>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
>>> x, y = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 0])
>>> R = relevance(net, x, {nn.Linear: z_plus()}, one_hot(y))
>>> R["0"].shape, R["2"].sum(1).tolist()  # of each layer's output
(torch.Size([5, 4]), [1.0, 1.0, 1.0, 1.0, 1.0])

Besides convolutions and linear layers, relevance passes through activations and dropout unchanged,
goes back through max-pooling and through all that only moves numbers to where they came from, and
is shared by averages and sums in proportion to their parts (the epsilon rule). Batch norms are
folded into the convolutions before them.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import NonNegative, Positive, checked
from repro.models.parts.folding import fold_batch_norm

Layer = nn.Conv2d | nn.Linear
Start = Callable[[Tensor], Tensor]  # logits (N, classes) to the relevance that begins there
SHARING_EPS = 1e-9  # of averages and sums

ACTIVATIONS = (nn.ReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh)
PASSED = {*ACTIVATIONS, nn.Dropout, nn.Identity, F.relu, torch.relu, "relu", "contiguous"}
MOVED = {
    *(nn.MaxPool2d, nn.Flatten, F.max_pool2d, F.pad, torch.flatten, operator.getitem),
    *("flatten", "view", "reshape"),
}
AVERAGED = {
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d, "mean"),
}
ADDED = {operator.add, torch.add, "add"}


# -- Rules -----------------------------------------------------------------------------------------


class Rule(Protocol):
    """How a layer's relevance is shared among its inputs."""

    def __call__(self, layer: Layer, x: Tensor, z: Tensor, R: Tensor, /) -> Tensor:
        """Relevance of the inputs, of the shape of x.

        Args:
            layer: the layer.
            x: its input.
            z: its output.
            R: relevance of the output, of the shape of z.
        """


Rules = Mapping[str | type[nn.Module], Rule]


@checked
@dataclass(frozen=True)
class Epsilon:
    """Shares in proportion to all contributions; the bias keeps what falls to it.

    With ε → 0 this is input times gradient in a network of ReLUs without biases (Shrikumar 2017).

    Attributes:
        eps: ε, which keeps small z from blowing relevance up.
        relative: ε counts in units of the layer's mean absolute z.
    """

    eps: Positive = 1e-6
    relative: bool = False

    def __call__(self, layer: Layer, x: Tensor, z: Tensor, R: Tensor) -> Tensor:
        """See `Rule`."""
        eps = self.eps * z.abs().mean() if self.relative else self.eps
        return _shared(layer, [(layer.weight, x)], z, R, eps)


@checked
@dataclass(frozen=True)
class AlphaBeta:
    """Shares α in proportion to positive contributions and -β in proportion to negative ones.

    Attributes:
        alpha: α.
        beta: β, α - 1.
        eps: keeps the sums of contributions from zero.
        bias: a bias takes its part of the contributions of its sign; else it is left out, and
            nothing is lost to it.

    Raises:
        UserError: α - β is not 1.
    """

    alpha: Positive = 2.0
    beta: NonNegative = 1.0
    eps: Positive = 1e-9
    bias: bool = False

    def __post_init__(self) -> None:
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise UserError(f"lrp: alpha - beta is 1, not {self.alpha} - {self.beta}.")

    def __call__(self, layer: Layer, x: Tensor, _z: Tensor, R: Tensor) -> Tensor:
        """See `Rule`."""
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        bias = layer.bias if self.bias else None
        shared = self._in_proportion(
            layer, x, R, up, down, None if bias is None else bias.clamp(min=0)
        )
        if not self.beta:
            return self.alpha * shared
        inhibited = self._in_proportion(
            layer, x, R, down, up, None if bias is None else bias.clamp(max=0)
        )
        return self.alpha * shared - self.beta * inhibited

    def _in_proportion(
        self, layer: Layer, x: Tensor, R: Tensor, w: Tensor, w_of_negative: Tensor, b: Tensor | None
    ) -> Tensor:
        """R in proportion to the contributions of one sign: w x where x > 0, the other's else."""
        parts = [(w, x)]
        if bool((x < 0).any()):  # else half of the work is products with zeros
            parts = [(w, x.clamp(min=0)), (w_of_negative, x.clamp(max=0))]
        z = _sum(layer, parts)
        if b is not None:
            z = z + (b if isinstance(layer, nn.Linear) else b.view(-1, 1, 1))
        return _shared(layer, parts, z, R, self.eps)


def z_plus(eps: float = 1e-9, bias: bool = False) -> AlphaBeta:
    """The rule of positive contributions, α = 1 and β = 0, also called z⁺.

    Args:
        eps: see `AlphaBeta`.
        bias: see `AlphaBeta`.
    """
    return AlphaBeta(1.0, 0.0, eps, bias)


@dataclass(frozen=True)
class ZBox:
    """The rule of a first layer whose inputs lie in a box (Montavon et al. 2017).

    Attributes:
        low: l, the smallest value of an input, of each channel or of all.
        high: h, the largest.
        eps: keeps the sums of contributions from zero.
    """

    low: Sequence[float] | float
    high: Sequence[float] | float
    eps: float = 1e-9

    def __call__(self, layer: Layer, x: Tensor, _z: Tensor, R: Tensor) -> Tensor:
        """See `Rule`."""
        low, high = (self._everywhere(end, x) for end in (self.low, self.high))
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        parts = [(layer.weight, x), (up, -low), (down, -high)]
        return _shared(layer, parts, _sum(layer, parts), R, self.eps)

    @staticmethod
    def _everywhere(end: Sequence[float] | float, x: Tensor) -> Tensor:
        values = torch.as_tensor(end, dtype=x.dtype, device=x.device)
        return values.view(-1, *[1] * (x.ndim - 2)).expand_as(x)


def _sum(layer: Layer, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ W x over pairs of weights and inputs, as the layer multiplies, without its bias."""
    if isinstance(layer, nn.Linear):
        first, *others = [F.linear(x, w) for w, x in parts]
    else:
        sizes: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
        first, *others = [F.conv2d(x, w, None, *sizes) for w, x in parts]
    return sum(others, first)


def _shared(
    layer: Layer, parts: Sequence[tuple[Tensor, Tensor]], z: Tensor, R: Tensor, eps: float | Tensor
) -> Tensor:
    """Σ x Wᵀ (R / z) over pairs of weights and inputs."""
    S = R / _stable(z, eps)
    if isinstance(layer, nn.Linear):
        first, *others = [x * (S @ w) for w, x in parts]
    else:
        sizes: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
        first, *others = [x * conv2d_input(x.shape, w, S, *sizes) for w, x in parts]
    return sum(others, first)


def _stable(z: Tensor, eps: float | Tensor) -> Tensor:
    """z, moved away from zero by ε."""
    return torch.where(z < 0, z - eps, z + eps)


# -- Where relevance begins ------------------------------------------------------------------------


def one_hot(target_N: Tensor) -> Start:
    """One at each example's class, whatever its logit: every example counts the same."""
    return lambda logits_NC: F.one_hot(target_N, logits_NC.shape[1]).to(logits_NC)


def true_logit(target_N: Tensor) -> Start:
    """The logit of each example's class, which may be negative."""
    return lambda logits_NC: logits_NC * F.one_hot(target_N, logits_NC.shape[1])


# -- Networks --------------------------------------------------------------------------------------


def explained(model: nn.Module) -> torch.fx.GraphModule:
    """A copy of a network that relevance can go back through: traced, batch norms folded, in eval.

    Args:
        model: traceable by `torch.fx`; submodules keep their names.

    A `UserError` says so if there is something in it that no rule is known for.
    """
    network = copy.deepcopy(model).eval()
    fold_batch_norm(network)
    for module in network.modules():
        if getattr(module, "inplace", False):  # it would overwrite what a layer put out
            module.inplace = False  # type: ignore[assignment]
    traced = torch.fx.symbolic_trace(network)
    for node in traced.graph.nodes:
        _refuse_unknown(node, traced)
    return traced


def _refuse_unknown(node: torch.fx.Node, network: torch.fx.GraphModule) -> None:
    kind, layer = _kind(node, network)
    if node.kwargs.get("inplace"):
        raise UserError(f"lrp: '{node.name}' overwrites its input: use inplace=False.")
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or layer.padding == "same"):
        raise UserError(f"lrp: convolution '{node.target}' is to be padded by a number of zeros.")
    if isinstance(layer, nn.BatchNorm2d):
        raise UserError(
            f"lrp: batch norm '{node.target}' does not directly follow a convolution that it could"
            " be folded into: use a network that normalises behind its convolutions."
        )
    if isinstance(layer, nn.Module) and not (
        isinstance(layer, Layer) or kind in PASSED | MOVED | AVERAGED
    ):
        raise UserError(f"lrp: no rule is known for '{node.target}' ({type(layer).__name__}).")


def _kind(node: torch.fx.Node, network: torch.fx.GraphModule) -> tuple[Any, nn.Module | None]:
    """What a node does: the class of its module, its function or its method; and the module."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return type(module), module
    return node.target, None


class _Record(torch.fx.Interpreter):
    """Runs a network and keeps what every node put out."""

    def __init__(self, network: torch.fx.GraphModule) -> None:
        super().__init__(network)
        self.values: dict[torch.fx.Node, Any] = {}

    @override
    def run_node(self, n: torch.fx.Node) -> Any:
        """Runs a node."""
        self.values[n] = super().run_node(n)
        return self.values[n]


@torch.no_grad()
def propagate(
    network: torch.fx.GraphModule, x: Tensor, rules: Rules, start: Start
) -> Iterator[tuple[str, Tensor]]:
    """Goes forwards, and then backwards from layer to layer as far as it is asked.

    Args:
        network: see `explained`.
        x: inputs (N, …).
        rules: by name or type of a layer; a name goes first.
        start: relevance of the output, given the output (N, classes).

    Yields:
        The name of each convolution and linear layer, the last first, and the relevance of its
        output, of that shape; at the end the empty name, and the relevance of the input.

    A `UserError` says so if there is no rule for a layer or an operation.
    """
    record = _Record(network)
    record.run(x)
    values, flowing = record.values, dict[torch.fx.Node, Tensor]()
    for node in reversed(network.graph.nodes):
        if node.op == "output":
            flowing[node.args[0]] = start(values.pop(node))
            continue
        if node not in flowing:  # sizes, and what does not lead to the output
            continue
        R = flowing.pop(node)
        if node.op == "placeholder":
            yield "", R
            continue
        if isinstance(_kind(node, network)[1], Layer):
            yield str(node.target), R
        for source, share in _shares(node, network, values, rules, R):
            flowing[source] = flowing[source] + share if source in flowing else share
        del values[node]  # nothing before it in the network needs it


def relevance(model: nn.Module, x: Tensor, rules: Rules, start: Start) -> dict[str, Tensor]:
    """Relevance of all layers' outputs by their names, and of the input as ``""``.

    Args:
        model: traceable by `torch.fx`; it is left as it is.
        x: inputs (N, …).
        rules: see `propagate`.
        start: see `propagate`.

    A `UserError` says so if something in the model has no rule.
    """
    return dict(propagate(explained(model), x, rules, start))


def _shares(
    node: torch.fx.Node,
    network: torch.fx.GraphModule,
    values: Mapping[torch.fx.Node, Any],
    rules: Rules,
    R: Tensor,
) -> list[tuple[torch.fx.Node, Tensor]]:
    """The nodes that a node gets its input from, and the relevance that each is sent.

    Raises:
        UserError: it is not known how.
    """
    kind, module = _kind(node, network)
    if kind in ADDED:
        total = _stable(values[node], SHARING_EPS)
        sources = [each for each in node.args if isinstance(each, torch.fx.Node)]
        return [(each, values[each] * R / total) for each in sources]
    source: Any = node.args[0]
    x = values[source]
    if isinstance(module, Layer):
        return [(source, _rule(str(node.target), module, rules)(module, x, values[node], R))]
    if kind in PASSED:
        return [(source, R)]
    if kind in MOVED:
        return [(source, _back(node, module, values, x, R))]
    if kind in AVERAGED:
        S = R / _stable(values[node], SHARING_EPS)
        return [(source, x * _back(node, module, values, x, S))]
    raise UserError(f"lrp: no rule is known for the operation '{node.target}' ({node.name}).")


def _rule(name: str, layer: Layer, rules: Rules) -> Rule:
    rule = rules.get(name) or rules.get(type(layer))
    if rule is None:
        raise UserError(
            f"lrp: the table has no rule for layer '{name}' ({type(layer).__name__}): add one."
        )
    return rule


def _back(
    node: torch.fx.Node,
    module: nn.Module | None,
    values: Mapping[torch.fx.Node, Any],
    x: Tensor,
    S: Tensor,
) -> Tensor:
    """Jᵀ S, J the Jacobian at x of what a node does."""
    others, named = torch.fx.node.map_arg((node.args[1:], node.kwargs), lambda n: values[n])

    def again(x: Tensor) -> Tensor:
        if module is not None:
            return module.forward(x)  # without anybody's hooks
        target: Any = node.target
        if isinstance(target, str):
            return getattr(x, target)(*others, **named)
        return target(x, *others, **named)

    back: Tensor = torch.func.vjp(again, x)[1](S)[0]
    return back
