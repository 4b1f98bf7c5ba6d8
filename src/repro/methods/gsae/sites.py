"""A place in a model: read what passes there, its gradient, or put something else in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.errors import UserError, did_you_mean
from repro.knobs import Natural, checked


class Site:
    """What goes into, or comes out of, one module of a model, a vector for each token.

    Args:
        model: any model; it is not changed.
        module: dotted name of the module, as in ``model.named_modules()``; ``""`` is the model.
        side: ``input`` (its first positional argument) or ``output`` (the first, if it is a tuple).
        skip: leading positions of every sequence that are left alone; activations are then
            (batch, position, d).

    Raises:
        UserError: there is no such module, side or number of positions.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        module: str,
        side: Literal["input", "output"] = "output",
        skip: Natural = 0,
    ) -> None:
        names = dict(model.named_modules())
        if module not in names:
            raise UserError(
                f"The model has no module '{module}' to hook.{did_you_mean(module, names)}"
            )
        self.model, self.module, self.side, self.skip = model, names[module], side, skip

    @contextmanager
    def replace(self, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While open, the model goes on with ``function`` of the activations.

        Args:
            function: maps (tokens, d) to (tokens, d); skipped positions do not reach it.
        """

        def changed(x: Tensor) -> Tensor:
            kept = x[:, self.skip :] if self.skip else x
            new = function(kept.reshape(-1, kept.shape[-1])).view_as(kept)
            return torch.cat([x[:, : self.skip], new], dim=1) if self.skip else new

        with self._hooked(changed):
            yield

    @contextmanager
    def _hooked(self, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While open, the activations, of whatever shape, go through a function."""

        def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (function(args[0]), *args[1:])

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (function(output[0]), *output[1:])
            return function(output)

        if self.side == "input":
            handle = self.module.register_forward_pre_hook(before)
        else:
            handle = self.module.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """The activations were read, and the rest of the model need not run."""


@torch.no_grad()
def read(site: Site, inputs: Tensor) -> Tensor:
    """The activations (tokens, d) at the site; what follows it in the model does not run.

    Raises:
        ValueError: the model does not pass the site.
    """
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        raise _Enough

    try:
        with site.replace(note):
            site.model(inputs)
    except _Enough:
        return found[0]
    raise ValueError("the model does not pass the site")


def trace(site: Site, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Runs the model on inputs and cuts its graph at the site.

    Only what follows the site is differentiated, so freeze the parameters (``requires_grad_``) to
    keep what precedes it out of the graph.

    Args:
        site: where to cut.
        inputs: of the model.

    Returns:
        The model's output, and the activations x (tokens, d) that it depends on, a leaf.

    Raises:
        ValueError: the site was not passed exactly once.
    """
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        leaves.append(x.detach().flatten(0, -2).requires_grad_())
        return leaves[-1]

    with torch.enable_grad(), site.replace(leaf):
        output: Tensor = site.model(inputs)
    if len(leaves) != 1:
        raise ValueError(f"the site was passed {len(leaves)} times; exactly once is needed")
    return output, leaves[0]


def gradient_of(output: Tensor, target: Tensor, x: Tensor, keep_graph: bool = False) -> Tensor:
    """Gradient at x of the cross-entropy summed over tokens: (tokens, d).

    The sum and not the mean, so that a token's gradient does not depend on how many others there
    are; it includes what the token does to later ones.

    Args:
        output: logits (…, classes) that depend on x.
        target: classes (…).
        x: what to differentiate by.
        keep_graph: whether another gradient is to follow.
    """
    with torch.enable_grad():
        loss = F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="sum")
        return torch.autograd.grad(loss, x, retain_graph=keep_graph)[0]
