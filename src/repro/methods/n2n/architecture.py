"""Architectures as data: read off a trained network, edited, and built anew with fresh weights.

An architecture is a tuple of layers and residual blocks. A layer says how many outputs it has and
never how many inputs: these are refitted to whatever arrives when a network is built, so that any
layer may be removed or shrunk without looking at its neighbours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.models.parts.residual import BasicBlock

Shape = tuple[int, ...]
# The places of kinds in the released list of types, which is what its policies read.
KINDS = {
    "conv": 1,
    "max_pool": 2,
    "relu": 3,
    "batch_norm": 4,
    "linear": 5,
    "dropout": 6,
    "avg_pool": 8,
}
MOST_INPUTS = 50_000  # of a linear layer, in the released code


class InvalidArchitectureError(ValueError):
    """No network can be built: a window larger than its image, too many inputs, …."""


@dataclass(frozen=True)
class Layer:
    """One layer; what does not apply to its kind is zero.

    Attributes:
        kind: one of `KINDS`, or ``flatten``.
        outputs: features or channels; 0 where the layer keeps those that arrive.
        kernel: height and width of the window; 0 for an average over the whole image.
        stride: of the window.
        padding: of the window.
        bias: whether there is one.
        rate: of dropout.
    """

    kind: str
    outputs: int = 0
    kernel: int = 0
    stride: int = 0
    padding: int = 0
    bias: bool = True
    rate: float = 0.0


@dataclass(frozen=True)
class Block:
    """``relu(shortcut(x) + body(x))``.

    Attributes:
        body: its layers; without any, the block is its shortcut.
        shortcut: none for the identity, or a projection.
        doubled: an emptied block gives ``relu(2 x)``, as in the released code, where ``y += x``
            adds a tensor to itself.
    """

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()
    doubled: bool = False


Part = Layer | Block
Architecture = tuple[Part, ...]


@dataclass(frozen=True)
class Row:
    """A layer as a policy meets it, and where it stands.

    Attributes:
        layer: the layer.
        part: index in the architecture.
        place: index in the block's body or shortcut; 0 outside blocks.
        to_end: layers of the body behind this one; 0 outside blocks.
        in_block: whether it is part of a block.
        in_shortcut: whether it is part of a block's projection.
    """

    layer: Layer
    part: int
    place: int = 0
    to_end: int = 0
    in_block: bool = False
    in_shortcut: bool = False


def rows(architecture: Architecture) -> list[Row]:
    """All layers in order, a block's projection behind its body; flattening is no layer here."""
    return [row for row in _rows(architecture) if row.layer.kind != "flatten"]


def _rows(architecture: Architecture) -> Iterator[Row]:
    for index, part in enumerate(architecture):
        if isinstance(part, Layer):
            yield Row(part, index)
            continue
        for in_shortcut, layers in ((False, part.body), (True, part.shortcut)):
            for place, layer in enumerate(layers):
                yield Row(layer, index, place, len(layers) - 1 - place, True, in_shortcut)


# -- Reading -------------------------------------------------------------------------------------


def read(model: nn.Module) -> Architecture:
    """The architecture of a network; a layer that is unknown here is a `UserError`.

    Args:
        model: made of `torch.nn` layers and `repro.models.parts.residual.BasicBlock` in a row: an
            `nn.Sequential`, or a model with ``chain()``.
    """
    return tuple(_read(model))


def _read(module: nn.Module) -> Iterator[Part]:
    if isinstance(module, BasicBlock):
        inside = (module.conv1, module.bn1, module.relu1, module.conv2, module.bn2)
        body = (part for each in inside for part in _read(each))
        yield Block(tuple(body), tuple(_read(module.downsample)))  # type: ignore[arg-type]
    elif hasattr(module, "chain"):
        chain = module.chain()  # type: ignore[operator]
        for piece in (chain.stem, *chain.units, chain.head):
            yield from _read(piece)
    elif isinstance(module, nn.Sequential):
        for piece in module:
            yield from _read(piece)
    elif not isinstance(module, nn.Identity):
        yield _read_layer(module)


def _read_layer(module: nn.Module) -> Layer:
    for kind, reader in READERS.items():
        if isinstance(module, kind):
            layer: Layer = reader(module)
            return layer
    raise UserError(
        f"n2n knows no layer {type(module).__name__}: it compresses networks of convolutions, "
        "linear layers, batch norm, ReLU, pooling, dropout and basic residual blocks."
    )


def _window(kind: str, module: Any, **facts: Any) -> Layer:
    sizes = (module.kernel_size, module.stride, module.padding)
    kernel, stride, padding = (size if isinstance(size, int) else size[0] for size in sizes)
    return Layer(kind, kernel=kernel, stride=stride, padding=padding, **facts)


READERS: Mapping[Any, Callable[[Any], Layer]] = {
    nn.Conv2d: lambda m: _window("conv", m, outputs=m.out_channels, bias=m.bias is not None),
    nn.Linear: lambda m: Layer("linear", m.out_features, bias=m.bias is not None),
    nn.MaxPool2d: lambda m: _window("max_pool", m),
    nn.AvgPool2d: lambda m: _window("avg_pool", m),
    nn.AdaptiveAvgPool2d: lambda _: Layer("avg_pool"),
    nn.BatchNorm1d: lambda _: Layer("batch_norm"),
    nn.BatchNorm2d: lambda _: Layer("batch_norm"),
    nn.ReLU: lambda _: Layer("relu"),
    nn.Dropout: lambda m: Layer("dropout", rate=m.p),
    nn.Flatten: lambda _: Layer("flatten"),
}


# -- Building ------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A `Block` as a network.

    Args:
        body: maps x to the residual; empty for none.
        shortcut: maps x to the residual's shape.
        doubled: see `Block`.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential, doubled: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.doubled = body, shortcut, doubled

    def forward(self, x: Tensor) -> Tensor:
        """Adds the residual to the shortcut."""
        if not len(self.body):
            return F.relu(2 * self.shortcut(x) if self.doubled else self.shortcut(x))
        return F.relu(self.shortcut(x) + self.body(x))


def build(
    architecture: Architecture, input_shape: Sequence[int], least_inputs: int = 1
) -> nn.Sequential:
    """A network with PyTorch's own fresh weights, every layer refitted to what arrives.

    An `InvalidArchitectureError` says so if no such network is possible, or a linear layer would
    have fewer than ``least_inputs`` or more than `MOST_INPUTS`.

    Args:
        architecture: what to build.
        input_shape: of one example.
        least_inputs: of a linear layer.
    """
    modules, _ = _build(architecture, tuple(input_shape), least_inputs)
    return modules


def count_parameters(
    architecture: Architecture, input_shape: Sequence[int], least_inputs: int = 1
) -> int:
    """The number of parameters of what `build` builds, with its errors; nothing is allocated."""
    with torch.device("meta"):
        network = build(architecture, input_shape, least_inputs)
    return sum(parameter.numel() for parameter in network.parameters())


def _build(
    parts: Sequence[Part], shape: Shape, least_inputs: int = 1
) -> tuple[nn.Sequential, Shape]:
    modules = []
    for part in parts:
        if isinstance(part, Block):
            module, shape = _build_block(part, shape)
        elif part.kind == "linear" and not least_inputs <= shape[0] <= MOST_INPUTS:
            raise InvalidArchitectureError(f"a linear layer of {shape[0]} inputs")
        else:
            module, shape = BUILDERS[part.kind](part, shape)
        modules.append(module)
    return nn.Sequential(*modules), shape


def _build_block(block: Block, shape: Shape) -> tuple[nn.Module, Shape]:
    body, after = _build(block.body, shape)
    shortcut, aside = _build(block.shortcut, shape)
    if block.body and after != aside:
        raise InvalidArchitectureError(f"a block whose paths end in {after} and {aside}")
    return Residual(body, shortcut, block.doubled), aside


def _build_conv(layer: Layer, shape: Shape) -> tuple[nn.Module, Shape]:
    after = _slid(layer, shape)
    module = nn.Conv2d(
        shape[0], layer.outputs, layer.kernel, layer.stride, layer.padding, bias=layer.bias
    )
    return module, (layer.outputs, *after[1:])


def _build_linear(layer: Layer, shape: Shape) -> tuple[nn.Module, Shape]:
    if len(shape) != 1:
        raise InvalidArchitectureError(f"a linear layer on images {shape}")
    return nn.Linear(shape[0], layer.outputs, bias=layer.bias), (layer.outputs,)


def _build_avg_pool(layer: Layer, shape: Shape) -> tuple[nn.Module, Shape]:
    if not layer.kernel:
        return nn.AdaptiveAvgPool2d(1), (shape[0], 1, 1)
    return nn.AvgPool2d(layer.kernel, layer.stride, layer.padding), _slid(layer, shape)


def _build_max_pool(layer: Layer, shape: Shape) -> tuple[nn.Module, Shape]:
    return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding), _slid(layer, shape)


def _build_batch_norm(_: Layer, shape: Shape) -> tuple[nn.Module, Shape]:
    return (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(shape[0]), shape


BUILDERS: Mapping[str, Callable[[Layer, Shape], tuple[nn.Module, Shape]]] = {
    "conv": _build_conv,
    "linear": _build_linear,
    "avg_pool": _build_avg_pool,
    "max_pool": _build_max_pool,
    "batch_norm": _build_batch_norm,
    "relu": lambda _, shape: (nn.ReLU(), shape),
    "dropout": lambda layer, shape: (nn.Dropout(layer.rate), shape),
    "flatten": lambda _, shape: (nn.Flatten(), (math.prod(shape),)),
}


def _slid(layer: Layer, shape: Shape) -> Shape:
    """The shape that a window leaves.

    Raises:
        InvalidArchitectureError: nothing is left.
    """
    if len(shape) != 3:
        raise InvalidArchitectureError(f"a {layer.kind} layer on what is no image, {shape}")
    sides = tuple(
        (side + 2 * layer.padding - layer.kernel) // layer.stride + 1 for side in shape[1:]
    )
    too_padded = layer.kind != "conv" and 2 * layer.padding > layer.kernel
    if min(sides) < 1 or too_padded:
        raise InvalidArchitectureError(f"a window of {layer.kernel} on images {shape}")
    return (shape[0], *sides)


# -- On disk -------------------------------------------------------------------------------------


def dump(architecture: Architecture) -> list[dict[str, Any]]:
    """The same in lists, dictionaries, numbers and strings."""
    return [dataclasses.asdict(part) for part in architecture]


def load(plain: Sequence[Mapping[str, Any]]) -> Architecture:
    """What was dumped."""
    return tuple(_load_block(part) if "body" in part else Layer(**part) for part in plain)


def _load_block(plain: Mapping[str, Any]) -> Block:
    body, shortcut = (tuple(Layer(**each) for each in plain[name]) for name in ("body", "shortcut"))
    return Block(body, shortcut, plain["doubled"])
