"""A model as units that are reconstructed one after the other, and what flows into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError
from repro.knobs import checked

WEIGHTED = (nn.Linear, nn.Conv2d)
# What is applied element by element.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh)


@dataclass
class Unit:
    """Layers whose weights are learned together.

    Attributes:
        name: of the module in the model; its forward maps the unit's input to its output.
        layers: names of the weight layers inside, in forward order (``[name]`` for a layer).
    """

    name: str
    layers: list[str]

    def inside(self, layer: str) -> str:
        """A layer's name as the unit's module knows it ("" for the unit itself)."""
        return layer.removeprefix(self.name).removeprefix(".") if self.name else layer


def following_activation(model: nn.Module, layer: str, x: Tensor) -> nn.Module | None:
    """The activation module that takes a layer's output as it is; None where there is none.

    Identities between the two, such as folded batch norms, do not matter; activations that are
    called as functions are not seen.

    Args:
        model: in evaluation mode.
        layer: name of a layer.
        x: one batch of inputs.
    """
    outputs: list[Tensor] = []
    found: list[nn.Module] = []

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        if any(args[0] is output for output in outputs):
            found.append(module)

    hooks = [
        model.get_submodule(layer).register_forward_hook(
            lambda _module, _args, output: outputs.append(output)
        ),
        *(
            module.register_forward_pre_hook(look)
            for module in model.modules()
            if isinstance(module, ACTIVATIONS)
        ),
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def input_matrix(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's inputs as rows (…, in) that its flattened weight (out, in) multiplies.

    Args:
        layer: linear (x: (N, …, in)) or a convolution without groups (x: (N, C, H, W)).
        x: its inputs.

    Raises:
        UserError: a convolution with groups.
    """
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            raise UserError(
                "This method takes no convolutions with groups: name them in method.skip."
            )
        assert not isinstance(layer.padding, str)
        columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        x = columns.transpose(1, 2)
    return x.flatten(0, -2)


@dataclass
class Flow:
    """What flows into a unit, and out of it.

    Attributes:
        x: (N, …) first argument, all calibration examples.
        rest: further positional arguments, taken from the first batch.
        named: keyword arguments, likewise.
        output: (N, …) output, if it was asked for.
    """

    x: Tensor
    rest: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    output: Tensor | None = None


class _Stop(Exception):  # noqa: N818 - a signal: what follows the unit need not be computed
    pass


def weight_layers(model: nn.Module, x: Tensor, skip: Sequence[str] = ()) -> list[str]:
    """Names of the linear and convolutional layers, in the order in which they run.

    Args:
        model: in evaluation mode.
        x: one batch of inputs.
        skip: patterns such as ``lm_head`` or ``*.downsample.*`` of layers to leave alone.
    """
    order: dict[str, None] = {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, WEIGHTED)}
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in order if not any(fnmatch(name, pattern) for pattern in skip)]


def blocks_of(model: nn.Module) -> list[str]:
    """Names of the blocks: the units of ``model.chain()``, else the members of module lists."""
    if hasattr(model, "chain"):
        chain: Any = model.chain
        wanted = {id(module) for module in chain().units}
        return [name for name, module in model.named_modules() if id(module) in wanted]
    return [
        f"{name}.{member}" if name else member
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for member, _ in module.named_children()
    ]


@checked
def units_of(
    model: nn.Module, layers: Sequence[str], unit: Literal["layer", "block"]
) -> list[Unit]:
    """Groups layers into units, in forward order.

    Args:
        model: the model.
        layers: from `weight_layers`.
        unit: ``layer``, or ``block`` for whole blocks; layers outside blocks are units themselves.

    Raises:
        UserError: another unit, or a model without blocks.
    """
    if unit == "layer":
        return [Unit(name, [name]) for name in layers]
    blocks = blocks_of(model)
    if not blocks:
        raise UserError(
            f"{type(model).__name__} has no blocks (a chain() or module lists): "
            "set method.unit=layer."
        )
    units: dict[str, Unit] = {}
    for layer in layers:
        owner = next((b for b in blocks if layer == b or layer.startswith(f"{b}.")), layer)
        units.setdefault(owner, Unit(owner, [])).layers.append(layer)
    return list(units.values())


@torch.no_grad()
def capture(model: nn.Module, name: str, x: Tensor, batch: int, output: bool = False) -> Flow:
    """Runs calibration inputs through a model up to one of its modules and keeps what flows there.

    Args:
        model: in evaluation mode.
        name: of the module.
        x: (N, …) inputs of the model.
        batch: examples at a time.
        output: also keep the module's output.
    """
    module = model.get_submodule(name)
    flow: dict[str, Any] = {"x": [], "output": []}

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first, *rest = args
        flow["x"].append(first)
        flow.setdefault("rest", tuple(rest))
        flow.setdefault("named", kwargs)
        if not output:
            raise _Stop

    def after(_: nn.Module, _args: Any, result: Tensor) -> None:
        flow["output"].append(result)
        raise _Stop

    # First of the hooks: what the prefix delivers, before the module's own quantiser sees it.
    hooks = [module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)]
    if output:
        hooks.append(module.register_forward_hook(after))
    try:
        for part in x.split(batch):
            with _until_stopped():
                model(part)
    finally:
        for hook in hooks:
            hook.remove()
    return Flow(
        torch.cat(flow["x"]),
        flow["rest"],
        flow["named"],
        torch.cat(flow["output"]) if output else None,
    )


@contextmanager
def _until_stopped() -> Iterator[None]:
    try:
        yield
    except _Stop:
        return


def output_gradients(
    model: nn.Module,
    name: str,
    x: Tensor,
    task_loss: Callable[[Tensor, slice], Tensor],
    batch: int,
    activation: nn.Module | None = None,
) -> Tensor:
    """Gradients (N, …) of the task's loss with respect to a module's output.

    Args:
        model: in evaluation mode.
        name: of the module.
        x: (N, …) inputs.
        task_loss: maps the model's output for a slice of the inputs to their *summed* loss.
        batch: examples at a time.
        activation: see `following_activation`: the gradients are with respect to its output then.
    """
    outputs: list[Tensor] = []  # the module's latest
    kept: list[Tensor] = []

    def leaf_of(result: Tensor) -> Tensor:
        # Nothing before it needs a backward pass.
        leaf = result.detach().requires_grad_()
        kept.append(leaf)
        return leaf

    def after(_: nn.Module, _args: Any, result: Tensor) -> Tensor | None:
        outputs[:] = [result]
        return leaf_of(result) if activation is None else None

    def after_activation(_: nn.Module, args: Any, result: Tensor) -> Tensor | None:
        # A model may use one activation in several places.
        return leaf_of(result) if outputs and args[0] is outputs[0] else None

    hooks = [model.get_submodule(name).register_forward_hook(after)]
    if activation is not None:
        hooks.append(activation.register_forward_hook(after_activation))
    gradients = []
    try:
        with torch.enable_grad():
            for start in range(0, len(x), batch):
                part = slice(start, start + batch)
                loss = task_loss(model(x[part]), part)
                gradients.append(torch.autograd.grad(loss, kept.pop())[0])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(gradients)
