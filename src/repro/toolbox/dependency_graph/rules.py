"""What every operation does to channels: which entries it ties, mixes, keeps or moves.

A rule is called with the `Walk` and the operation's node and returns the `Value` of the result, or
a list of them where the operation returns several tensors. What has no rule pins the channels that
it meets: they are never removed. Operations are ATen's, as `torch.export` records them:
https://docs.pytorch.org/docs/stable/torch.compiler_ir.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.fx
from torch import Tensor, nn

from repro.toolbox.dependency_graph.channels import PINNED, Axis, Places, Ties, Value, plain

Rule = Callable[["Walk", torch.fx.Node], Value | list[Value]]


@dataclass
class Stored:
    """A number that a module keeps beside its weights, and that has to follow them.

    Attributes:
        module: its name in the network.
        attribute: where it keeps the number.
        places: the number is how many of these are left.
    """

    module: str
    attribute: str
    places: Places


@dataclass
class Walk:
    """A graph that is walked from its inputs to its outputs.

    Attributes:
        model: the network that was traced.
        ties: what is tied so far.
        values: of the nodes so far.
        stored: numbers to be kept right.
        unknown: operations without a rule that met channels, with the module they stand in.
    """

    model: nn.Module
    ties: Ties = field(default_factory=Ties)
    values: dict[torch.fx.Node, Any] = field(default_factory=dict)
    stored: list[Stored] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)

    def value(self, argument: Any) -> Any:
        """The value of an argument that is a node; what is none is returned."""
        return (
            self.values.get(argument, argument) if isinstance(argument, torch.fx.Node) else argument
        )

    def start(self, node: torch.fx.Node, tensor: Tensor) -> None:
        """An input of the network, or a constant: nothing of it can go."""
        self.values[node] = plain(tensor.shape)

    def finish(self, node: torch.fx.Node) -> None:
        """The outputs of the network keep all entries."""
        for each in node.all_input_nodes:
            value = self.value(each)
            self.ties.pin_all(*(value if isinstance(value, list) else [value]))

    def visit(self, node: torch.fx.Node) -> None:
        """Applies the rule of an operation."""
        tensors = [self.value(each) for each in node.all_input_nodes]
        flat = [v for each in tensors for v in (each if isinstance(each, list) else [each])]
        followed = [v for v in flat if isinstance(v, Value) and v.followed]
        name = _name(node)
        rule = RULES.get(name)
        if not isinstance(node.meta.get("val"), Tensor | list | tuple):
            return  # an assertion, or a number
        if followed and rule is not None:
            self.values[node] = rule(self, node)
            return
        if followed:
            self.unknown.append((name, owner(node)))
            self.ties.pin_all(*followed)
        self.values[node] = _unfollowed(node.meta.get("val"))


def owner(node: torch.fx.Node) -> str:
    """The name of the innermost module in whose forward pass the operation stands."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _name(node: torch.fx.Node) -> str:
    """``conv2d`` of ``aten.conv2d.default``; in-place operations are called like the others."""
    target: Any = node.target
    name = target.overloadpacket.__name__ if hasattr(target, "overloadpacket") else target.__name__
    return str(name).rstrip("_") if not str(name).startswith("__") else str(name)


def _unfollowed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return plain(value.shape)
    if isinstance(value, list | tuple):
        return [_unfollowed(each) for each in value]
    return value


def _shape(node: torch.fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def _argument(node: torch.fx.Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


# -- Layers ---------------------------------------------------------------------------------------


def _mixed(
    walk: Walk, x: Axis, weight: Axis, weight_is_parameter: bool, sizes: tuple[int, int]
) -> None:
    """A contraction over two axes: an entry can go if either side is zero there."""
    if weight_is_parameter:
        walk.ties.play(weight, "consumer")
    walk.ties.join(x, weight, *sizes)
    if not x.zero and (weight_is_parameter or not weight.zero):
        walk.ties.blur(x)


def _linear(walk: Walk, node: torch.fx.Node) -> Value:
    x, weight = (walk.value(each) for each in node.args[:2])
    bias = walk.value(_argument(node, 2, "bias"))
    _mixed(walk, x.axes[-1], weight.axes[1], weight.is_parameter, (x.shape[-1], weight.shape[1]))
    return Value(_shape(node), [*x.axes[:-1], _produced(walk, weight.axes[0], bias)])


def _produced(walk: Walk, rows: Axis, bias: Value | None) -> Axis:
    """The output channels of a layer: rows of its weight, and its bias."""
    walk.ties.play(rows, "producer")
    if bias is not None:
        walk.ties.play(bias.axes[0], "producer")
        if rows.places is not None and bias.axes[0].places is not None:
            walk.ties.tie(rows.places, bias.axes[0].places)
    return Axis(rows.places, zero=True)


def _convolution(walk: Walk, node: torch.fx.Node) -> Value:
    transposed = "transpose" in _name(node)
    x, weight = (walk.value(each) for each in node.args[:2])
    bias = walk.value(_argument(node, 2, "bias"))
    groups = int(_argument(node, 6, "groups", 1))
    ins, outs = (0, 1) if transposed else (1, 0)
    if groups == 1:
        sizes = (x.shape[1], weight.shape[ins])
        _mixed(walk, x.axes[1], weight.axes[ins], weight.is_parameter, sizes)
    elif transposed:
        walk.unknown.append((_name(node), owner(node)))
        walk.ties.pin_all(x, weight)
    else:
        _grouped(walk, node, x, weight, groups)
    pixels = [Axis() for _ in _shape(node)[2:]]
    return Value(_shape(node), [x.axes[0], _produced(walk, weight.axes[outs], bias), *pixels])


def _grouped(walk: Walk, node: torch.fx.Node, x: Value, weight: Value, groups: int) -> None:
    """A convolution in groups loses whole groups, inputs and outputs; depthwise ones are of one."""
    read, rows = x.axes[1], weight.axes[0]
    if read.places is None or rows.places is None or not hasattr(_module(walk, node), "groups"):
        walk.ties.pin_all(x, weight)
        return
    firsts = _blocks(walk, read.places, groups)
    walk.ties.tie(firsts, _blocks(walk, rows.places, groups))
    if not read.zero:
        walk.ties.blur(read)
    walk.stored.append(Stored(owner(node), "groups", firsts))


def _blocks(walk: Walk, places: Places, blocks: int) -> Places:
    """Ties the places of each of so many blocks, and returns the first of each."""
    grid = places.reshape(blocks, -1)
    walk.ties.tie(np.repeat(grid[:, 0], grid.shape[1] - 1), grid[:, 1:].reshape(-1))
    return grid[:, 0]


def _batch_norm(walk: Walk, node: torch.fx.Node) -> Value:
    x, *stored = (walk.value(each) for each in node.args[:5])
    axis = _scaled(walk, x.axes[1], stored)
    return Value(x.shape, [x.axes[0], axis, *x.axes[2:]])


def _scaled(walk: Walk, axis: Axis, parameters: Sequence[Value | None]) -> Axis:
    """Scale, shift and statistics of a channel; zero afterwards if there is a scale."""
    for parameter in parameters:
        if parameter is not None:
            walk.ties.play(parameter.axes[-1], "norm")
            walk.ties.join(axis, parameter.axes[-1], parameter.shape[-1], parameter.shape[-1])
    return Axis(axis.places, zero=parameters[0] is not None)


def _layer_norm(walk: Walk, node: torch.fx.Node) -> Value:
    """Statistics across the last axes: without a channel they are others."""
    x, shape = walk.value(node.args[0]), _argument(node, 1, "normalized_shape")
    weight, bias = walk.value(_argument(node, 2, "weight")), walk.value(_argument(node, 3, "bias"))
    if "rms" in _name(node):
        bias = None
    normalised = x.axes[-len(shape) :]
    for axis in normalised:
        walk.ties.blur(axis)
    if len(shape) > 1 or not hasattr(_module(walk, node), "normalized_shape"):
        walk.ties.pin_all(Value(x.shape, normalised))
    elif normalised[0].places is not None:
        walk.stored.append(Stored(owner(node), "normalized_shape", normalised[0].places))
    last = _scaled(walk, x.axes[-1], [weight, bias])
    return Value(x.shape, [*x.axes[:-1], last])


def _group_norm(walk: Walk, node: torch.fx.Node) -> Value:
    """Channels that are normalised together go together, and then the others' statistics stay."""
    x, groups = walk.value(node.args[0]), _argument(node, 1, "num_groups")
    weight, bias = walk.value(_argument(node, 2, "weight")), walk.value(_argument(node, 3, "bias"))
    axis = x.axes[1]
    if axis.places is not None:
        if hasattr(_module(walk, node), "num_groups"):
            firsts = _blocks(walk, axis.places, groups)
            walk.stored.append(Stored(owner(node), "num_groups", firsts))
        else:
            walk.ties.pin(axis)
    return Value(x.shape, [x.axes[0], _scaled(walk, axis, [weight, bias]), *x.axes[2:]])


def _module(walk: Walk, node: torch.fx.Node) -> nn.Module:
    return walk.model.get_submodule(owner(node))


def _embedding(walk: Walk, node: torch.fx.Node) -> Value:
    weight, tokens = walk.value(node.args[0]), walk.value(node.args[1])
    walk.ties.pin(weight.axes[0])
    return Value(_shape(node), [*tokens.axes, _produced(walk, weight.axes[1], None)])


# -- Products -------------------------------------------------------------------------------------


def _matmul(walk: Walk, node: torch.fx.Node) -> Value:
    return _product(walk, node, walk.value(node.args[0]), walk.value(node.args[1]))


def _addmm(walk: Walk, node: torch.fx.Node) -> Value:
    bias, one, other = (walk.value(each) for each in node.args[:3])
    product = _product(walk, node, one, other)
    return _sum_of(walk, bias, product, product.shape)


def _product(walk: Walk, node: torch.fx.Node, one: Value, other: Value) -> Value:
    """``(…, n, k) @ (…, k, m)``."""
    if min(len(one.shape), len(other.shape)) < 2:
        walk.ties.pin_all(one, other)
        return plain(_shape(node))
    shared = (one.shape[-1], other.shape[-2])
    _mixed(walk, one.axes[-1], other.axes[-2], other.is_parameter, shared)
    if other.is_parameter:
        walk.ties.play(other.axes[-1], "producer")
    rank = max(len(one.shape), len(other.shape)) - 2
    batch = [_aligned(walk, one, other, place - rank - 2, either=True) for place in range(rank)]
    return Value(_shape(node), [*batch, one.axes[-2], other.axes[-1]])


def _aligned(walk: Walk, one: Value, other: Value, place: int, either: bool) -> Axis:
    """An axis, counted from the end, of two tensors that are broadcast.

    Args:
        walk: the walk.
        one: a tensor.
        other: another.
        place: negative.
        either: the result is zero where either is (a product), and not where both are (a sum).
    """
    here = one.axes[place] if -place <= len(one.shape) else None
    there = other.axes[place] if -place <= len(other.shape) else None
    sizes = [v.shape[place] if -place <= len(v.shape) else 1 for v in (one, other)]
    here, there = here or Axis(), there or Axis()
    places = walk.ties.join(here, there, sizes[0], sizes[1])
    known = [axis.zero for axis in (here, there) if axis.places is not None]
    zero = any(known) if either else len(known) == 2 and all(known)
    return Axis(places, zero)


def _attention(walk: Walk, node: torch.fx.Node) -> Value:
    """``softmax(scale q k' + mask) v`` of (B, H, T, E); the heads of k and v may be fewer."""
    query, key, value = (walk.value(each) for each in node.args[:3])
    if node.kwargs.get("scale") is None:  # it would be another without a channel
        for axis in (query.axes[-1], key.axes[-1]):
            walk.ties.pin(axis)
    _mixed(walk, query.axes[-1], key.axes[-1], False, (query.shape[-1], key.shape[-1]))
    mask = walk.value(_argument(node, 3, "attn_mask"))
    if isinstance(mask, Value) and len(mask.shape) > 2 and mask.shape[-3] > 1:
        walk.ties.pin(query.axes[-3])
    heads = _heads(walk, query, key)
    shared = _heads(walk, query, value)
    places = heads if shared is None else shared
    axis = Axis(places, zero=value.axes[-3].zero)
    return Value(_shape(node), [*query.axes[:-3], axis, query.axes[-2], value.axes[-1]])


def _heads(walk: Walk, query: Value, other: Value) -> Places | None:
    """The places of the queries' heads, tied to those of the keys or values that each one reads."""
    repeats = query.shape[-3] // other.shape[-3]
    places = other.axes[-3].places
    repeated = Axis(None if places is None else np.repeat(places, repeats))
    return walk.ties.join(query.axes[-3], repeated, query.shape[-3], query.shape[-3])


# -- Entry by entry -------------------------------------------------------------------------------


def _kept(walk: Walk, node: torch.fx.Node) -> Value:
    """Zero stays zero."""
    x: Value = walk.value(node.args[0])
    return Value(x.shape, x.axes, x.is_parameter)


def _changed(walk: Walk, node: torch.fx.Node) -> Value:
    """Zero becomes something else."""
    x: Value = walk.value(node.args[0])
    return Value(x.shape, [Axis(axis.places, zero=False) for axis in x.axes])


def _power(walk: Walk, node: torch.fx.Node) -> Value:
    exponent = node.args[1]
    positive = isinstance(exponent, int | float) and exponent > 0
    return _kept(walk, node) if positive else _changed(walk, node)


def _sum(walk: Walk, node: torch.fx.Node) -> Value:
    one, other = (walk.value(each) for each in node.args[:2])
    if not isinstance(one, Value) or not isinstance(other, Value):  # a number is added
        return _changed(walk, node) if isinstance(one, Value) else _other_changed(walk, node)
    return _sum_of(walk, one, other, _shape(node))


def _other_changed(walk: Walk, node: torch.fx.Node) -> Value:
    x: Value = walk.value(node.args[1])
    return Value(x.shape, [Axis(axis.places, zero=False) for axis in x.axes])


def _sum_of(walk: Walk, one: Value, other: Value, shape: tuple[int, ...]) -> Value:
    for value in (one, other):
        if value.is_parameter:
            for axis in value.axes:
                walk.ties.play(axis, "producer")
    places = range(-len(shape), 0)
    axes = [_aligned(walk, one, other, place, either=False) for place in places]
    return Value(shape, axes, one.is_parameter and other.is_parameter)


def _scaling(walk: Walk, node: torch.fx.Node) -> Value:
    """A product entry by entry, or a quotient: whose denominator is taken to be no zero."""
    one, other = (walk.value(each) for each in node.args[:2])
    if not isinstance(other, Value):
        return _kept(walk, node)
    if not isinstance(one, Value):
        return _other_changed(walk, node)
    for value in (one, other):
        if value.is_parameter:
            for axis in value.axes:
                walk.ties.play(axis, "norm")
    if _name(node) == "div":
        other = Value(other.shape, [Axis(axis.places, zero=False) for axis in other.axes])
    shape = _shape(node)
    axes = [_aligned(walk, one, other, place, either=True) for place in range(-len(shape), 0)]
    return Value(shape, axes, one.is_parameter and other.is_parameter)


def _prelu(walk: Walk, node: torch.fx.Node) -> Value:
    x, slopes = (walk.value(each) for each in node.args[:2])
    axis = x.axes[1]
    if slopes.shape[0] > 1:
        walk.ties.play(slopes.axes[0], "norm")
        places = walk.ties.join(axis, slopes.axes[0], x.shape[1], slopes.shape[0])
        axis = Axis(places, axis.zero)
        walk.stored.append(Stored(owner(node), "num_parameters", slopes.axes[0].places))
    return Value(x.shape, [x.axes[0], axis, *x.axes[2:]])


def _softmax(walk: Walk, node: torch.fx.Node) -> Value:
    x: Value = walk.value(node.args[0])
    walk.ties.pin(x.axes[_argument(node, 1, "dim")])
    return Value(x.shape, [Axis(axis.places, zero=False) for axis in x.axes])


# -- Shapes ---------------------------------------------------------------------------------------


def _pixels(walk: Walk, node: torch.fx.Node) -> Value:
    """Pooling, interpolation: channels keep their places, pixels change their number."""
    x: Value = walk.value(node.args[0])
    shape = _shape(node)
    axes = []
    for axis, before, after in zip(x.axes, x.shape, shape, strict=True):
        if before != after:
            walk.ties.pin(axis)
        axes.append(axis if before == after else Axis())
    return Value(shape, axes)


def _pad(walk: Walk, node: torch.fx.Node) -> Value:
    """Zeros around; new channels among them are not anybody's, and stay."""
    x, pad = walk.value(node.args[0]), _argument(node, 1, "pad")
    number = _argument(node, 2, "value", 0)
    if _name(node) == "pad":  # its third argument is the mode
        number = _argument(node, 3, "value", 0) or 0
        constant = _argument(node, 2, "mode", "constant") == "constant"
        number = number if constant else None
    axes = list(x.axes)
    for count in range(len(pad) // 2):
        place = len(axes) - 1 - count
        before, after = pad[2 * count], pad[2 * count + 1]
        places = axes[place].places
        if places is None or before == after == 0:
            continue
        if number != 0 or min(before, after) < 0:
            walk.ties.pin(axes[place])
            axes[place] = Axis()
        else:
            new = np.pad(places, (before, after), constant_values=PINNED)
            axes[place] = Axis(new, axes[place].zero)
    return Value(_shape(node), axes)


def _reduced(walk: Walk, node: torch.fx.Node) -> Value:
    """Means and sums; a mean over channels is another without one of them."""
    x: Value = walk.value(node.args[0])
    dims = _argument(node, 1, "dim")
    keep = bool(_argument(node, 2, "keepdim", False))
    dims = range(len(x.shape)) if dims is None or dims == [] else dims
    gone = {int(dim) % len(x.shape) for dim in (dims if not isinstance(dims, int) else [dims])}
    axes = []
    for place, axis in enumerate(x.axes):
        if place not in gone:
            axes.append(axis)
            continue
        if _name(node) != "sum" or not axis.zero:
            walk.ties.blur(axis)
        if keep:
            axes.append(Axis())
    return Value(_shape(node), axes)


def _concatenated(walk: Walk, node: torch.fx.Node) -> Value:
    parts = [walk.value(each) for each in _argument(node, 0, "tensors")]
    parts = [part for part in parts if part.shape != (0,)]
    shape = _shape(node)
    along = int(_argument(node, 1, "dim", 0)) % len(shape)
    axes = []
    for place in range(len(shape)):
        beside = [part.axes[place] for part in parts]
        zero = all(axis.zero for axis in beside if axis.places is not None)
        if place != along:
            axis = beside[0]
            for other in beside[1:]:
                axis = Axis(walk.ties.join(axis, other, shape[place], shape[place]), zero)
        elif all(axis.places is None for axis in beside):
            axis = Axis()
        else:
            pieces = [
                np.full(part.shape[place], PINNED) if axis.places is None else axis.places
                for axis, part in zip(beside, parts, strict=True)
            ]
            axis = Axis(np.concatenate(pieces), zero)
        axes.append(axis)
    return Value(shape, axes)


def _parts(walk: Walk, node: torch.fx.Node) -> list[Value]:
    """``split`` and ``chunk``: equal parts of an axis, which have to stay equal."""
    x: Value = walk.value(node.args[0])
    place = int(_argument(node, 2, "dim", 0)) % len(x.shape)
    shapes = [tuple(each.shape) for each in node.meta["val"]]
    axis = x.axes[place]
    if axis.places is None:
        return [Value(shape, list(x.axes)) for shape in shapes]
    sizes = [shape[place] for shape in shapes]
    pieces = np.split(axis.places, np.cumsum(sizes)[:-1])
    if len(set(sizes)) > 1 or not _can_split(walk, node, pieces[0]):
        walk.ties.pin(axis)
    else:
        for piece in pieces[1:]:
            walk.ties.tie(pieces[0], piece)
    return [
        Value(shape, [*x.axes[:place], Axis(piece, axis.zero), *x.axes[place + 1 :]])
        for shape, piece in zip(shapes, pieces, strict=True)
    ]


def _can_split(walk: Walk, node: torch.fx.Node, piece: Places) -> bool:
    """A number of chunks can stay; the size of a part has to be known where it is stored."""
    if _name(node) == "chunk":
        return True
    if getattr(_module(walk, node), "split_size", None) != len(piece):
        return False
    walk.stored.append(Stored(owner(node), "split_size", piece))
    return True


def _item(walk: Walk, node: torch.fx.Node) -> Value:
    item: Value = walk.value(node.args[0])[_argument(node, 1, "item")]
    return item


def _slice(walk: Walk, node: torch.fx.Node) -> Value:
    """Of an axis with channels only the whole is a slice that can follow them."""
    x, shape = walk.value(node.args[0]), _shape(node)
    axes = list(x.axes)
    for place, (before, after) in enumerate(zip(x.shape, shape, strict=True)):
        if before != after:
            walk.ties.pin(axes[place])
            axes[place] = Axis()
    return Value(shape, axes, x.is_parameter)


def _select(walk: Walk, node: torch.fx.Node) -> Value:
    x: Value = walk.value(node.args[0])
    place = _argument(node, 1, "dim") % len(x.shape)
    walk.ties.pin(x.axes[place])
    return Value(_shape(node), [*x.axes[:place], *x.axes[place + 1 :]])


def _unbind(walk: Walk, node: torch.fx.Node) -> list[Value]:
    x: Value = walk.value(node.args[0])
    place = int(_argument(node, 1, "dim", 0)) % len(x.shape)
    walk.ties.pin(x.axes[place])
    axes = [*x.axes[:place], *x.axes[place + 1 :]]
    return [Value(tuple(each.shape), list(axes)) for each in node.meta["val"]]


def _transposed(walk: Walk, node: torch.fx.Node) -> Value:
    x: Value = walk.value(node.args[0])
    order = list(range(len(x.shape)))
    if _name(node) == "permute":
        order = [place % len(order) for place in _argument(node, 1, "dims")]
    elif len(node.args) > 1:
        one, other = (_argument(node, i, f"dim{i - 1}") % len(order) for i in (1, 2))
        order[one], order[other] = order[other], order[one]
    else:  # t, and the attribute T
        order.reverse()
    return Value(_shape(node), [x.axes[place] for place in order], x.is_parameter)


def _expanded(walk: Walk, node: torch.fx.Node) -> Value:
    x, shape = walk.value(node.args[0]), _shape(node)
    new = len(shape) - len(x.shape)
    axes = [Axis() for _ in range(new)]
    for axis, before, after in zip(x.axes, x.shape, shape[new:], strict=True):
        axes.append(axis if before == after else Axis())
    if x.is_parameter:
        for axis in axes:
            walk.ties.play(axis, "producer")
    return Value(shape, axes)


def _unsqueezed(walk: Walk, node: torch.fx.Node) -> Value:
    x: Value = walk.value(node.args[0])
    place = _argument(node, 1, "dim") % (len(x.shape) + 1)
    return Value(_shape(node), [*x.axes[:place], Axis(), *x.axes[place:]], x.is_parameter)


def _reshaped(walk: Walk, node: torch.fx.Node) -> Value:
    """Axes are merged or split: see `_merged` and `_divided`."""
    x, shape = walk.value(node.args[0]), _shape(node)
    adapts = _adapting(node, x.shape, shape)
    axes: list[Axis] = []
    for old, new in _aligned_blocks(x.shape, shape):
        block = [x.axes[place] for place in old]
        sizes_old = [x.shape[place] for place in old]
        sizes_new = [shape[place] for place in new]
        flat = _merged(walk, block, sizes_old)
        axes += _divided(walk, flat, sizes_new, [place in adapts for place in new])
    return Value(shape, axes, x.is_parameter)


def _adapting(node: torch.fx.Node, before: tuple[int, ...], shape: tuple[int, ...]) -> set[int]:
    """The axes of a new shape that are written as -1, and so follow what is removed."""
    name = _name(node)
    if name in ("flatten", "squeeze"):
        return set(range(len(shape)))
    if name == "unflatten":
        place, sizes = _argument(node, 1, "dim") % len(before), _argument(node, 2, "sizes")
        return {place + i for i, size in enumerate(sizes) if size == -1}
    return {i for i, size in enumerate(_argument(node, 1, "size")) if size == -1}


def _aligned_blocks(
    before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes of both shapes that hold equally many entries, in order.

    Raises:
        AssertionError: the shapes hold different numbers of entries.
    """
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old: list[int] = []
        new: list[int] = []
        held, needed = 1, 1
        while True:
            if i < len(before) and (held < needed or (not old and held == needed)):
                held *= before[i]
                old.append(i)
                i += 1
            elif j < len(after) and (needed < held or (not new and held == needed)):
                needed *= after[j]
                new.append(j)
                j += 1
            elif held == needed:
                break
            else:
                raise AssertionError("not equally many entries")
        blocks.append((old, new))
    return blocks


def _merged(walk: Walk, axes: list[Axis], sizes: list[int]) -> Axis:
    """Several axes as one; only one of them can have channels."""
    followed = [place for place, axis in enumerate(axes) if axis.places is not None]
    if len(followed) != 1:
        for axis in axes:
            walk.ties.pin(axis)
        return Axis()
    (place,) = followed
    places = axes[place].places
    assert places is not None
    inner = int(np.prod(sizes[place + 1 :], dtype=int))
    outer = int(np.prod(sizes[:place], dtype=int))
    return Axis(np.tile(np.repeat(places, inner), outer), axes[place].zero)


def _divided(walk: Walk, axis: Axis, sizes: list[int], adapts: list[bool]) -> list[Axis]:
    """One axis as several, of which one carries the channels.

    It is the one along which alone they differ already; else the one whose size is not written
    down: everything across from one of its entries is then one channel.
    """
    axes = [Axis() for _ in sizes]
    if axis.places is None:
        return axes
    grid = axis.places.reshape(sizes)
    long = [place for place, size in enumerate(sizes) if size > 1]
    alone = [place for place in long if (grid == _line(grid, place)).all()]
    chosen = alone or [place for place in long if adapts[place]]
    if not chosen:
        walk.ties.pin(axis)
        return axes
    place = chosen[0]
    line = _line(grid, place)
    if not alone:
        walk.ties.tie(np.broadcast_to(line, grid.shape).reshape(-1), grid.reshape(-1))
    axes[place] = Axis(line.reshape(-1), axis.zero)
    return axes


def _line(grid: Places, place: int) -> Places:
    """The entries of a grid along one of its axes, from the origin; of the grid's rank."""
    return grid[tuple(slice(None) if i == place else slice(0, 1) for i in range(grid.ndim))]


def _first(walk: Walk, node: torch.fx.Node) -> list[Value]:
    """An operation whose results all have the channels of its input."""
    first = node.meta["val"]
    x: Value = walk.value(node.args[0])
    return [Value(tuple(each.shape), list(x.axes)) for each in first]


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_rules(_linear, "linear"),
    **_rules(
        _convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
    ),
    **_rules(_batch_norm, "batch_norm"),
    **_rules(_layer_norm, "layer_norm rms_norm"),
    **_rules(_group_norm, "group_norm"),
    **_rules(_embedding, "embedding"),
    **_rules(_matmul, "matmul mm bmm"),
    **_rules(_addmm, "addmm"),
    **_rules(_attention, "scaled_dot_product_attention"),
    **_rules(
        _kept,
        "relu relu6 hardtanh gelu silu tanh leaky_relu elu selu celu mish hardswish dropout"
        " feature_dropout neg abs sqrt square clone contiguous detach alias to _to_copy sin sign"
        " native_dropout lift_fresh_copy type_as softsign tanhshrink",
    ),
    **_rules(
        _changed,
        "sigmoid hardsigmoid softplus exp cos rsqrt reciprocal log rsub",
    ),
    **_rules(_power, "pow"),
    **_rules(_sum, "add sub"),
    **_rules(_scaling, "mul div"),
    **_rules(_prelu, "prelu"),
    **_rules(_softmax, "softmax log_softmax _softmax _log_softmax"),
    **_rules(
        _pixels,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d"
        " adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d"
        " upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d",
    ),
    **_rules(_first, "max_pool2d_with_indices"),
    **_rules(_pad, "constant_pad_nd pad"),
    **_rules(_reduced, "mean sum"),
    **_rules(_concatenated, "cat concat"),
    **_rules(_parts, "chunk split"),
    **_rules(_item, "getitem"),
    **_rules(_slice, "slice narrow"),
    **_rules(_select, "select"),
    **_rules(_unbind, "unbind"),
    **_rules(_transposed, "transpose permute t numpy_T swapaxes"),
    **_rules(_expanded, "expand expand_as"),
    **_rules(_unsqueezed, "unsqueeze"),
    **_rules(_reshaped, "view reshape _unsafe_view flatten unflatten squeeze"),
}
