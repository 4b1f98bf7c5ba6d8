"""What pruning looks at: second moments of inputs, and norms of per-sequence gradients.

Both are collected by hooks on linear layers while the caller runs the model, and work on any
module. The first dimension of every layer's input counts sequences (or examples).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repro.errors import UserError
from repro.internals import version
from repro.knobs import checked

# Elements of per-sequence gradients made at a time: few enough to stay in a processor's cache.
CHUNK = 2**20


def layers_of(module: nn.Module, prefix: str = "") -> dict[str, nn.Linear]:
    """All linear layers of a module, by name, in the order in which they stand in it.

    `torch.nn.MultiheadAttention` keeps its three input projections as one parameter, and not as
    layers: they are not among these, and stay as they are.
    """
    return {
        prefix + name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)
    }


@dataclass
class LayerStatistics:
    """What a pruner is told about one layer.

    Attributes:
        input_norm: A (inputs,): root of the mean over sequences of the sum over tokens of squares.
        hessian: (inputs, inputs): ``2/N Σ XᵀX``, for SparseGPT.
        gradient: (outputs, inputs): norm over sequences of the gradient, not scaled yet.
        sequences: N, over which `gradient` runs.
    """

    input_norm: Tensor
    hessian: Tensor | None = None
    gradient: Tensor | None = None
    sequences: int = 1


class InputMoments:
    """Sums of squares of each layer's inputs, or of all products of two inputs.

    Use it as a context around forward passes. Layers that are handed the very same tensor (queries,
    keys and values) are counted once and share the result. Sums are float32 at least.

    Args:
        layers: by name.
        products: also collect what `LayerStatistics.hessian` needs.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], products: bool = False) -> None:
        self.layers = dict(layers)
        self.products = products
        self.sums: dict[str, Tensor] = {}
        self.sequences: dict[str, int] = {}
        # The latest input, how often it had been changed in place by then, and whose it was.
        self._last: tuple[Tensor, int, str] | None = None
        self._hooks = ExitStack()

    def __enter__(self) -> InputMoments:
        for name, layer in self.layers.items():
            self._hooks.callback(layer.register_forward_pre_hook(self._hook(name)).remove)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.close()
        self._last = None

    def of(
        self, name: str, gradient: Tensor | None = None, sequences: int | None = None
    ) -> LayerStatistics:
        """The statistics of a layer, joined with its gradient where there is one.

        Args:
            name: of the layer.
            gradient: from `GradientNorms.norm`.
            sequences: over which the gradient runs; by default as many as were seen here.

        Raises:
            UserError: no input of this layer was seen.
        """
        if name not in self.sums:
            raise UserError(f"Layer '{name}' took no part in the calibration passes.")
        sums, count = self.sums[name], self.sequences[name]
        squares = sums.diagonal() if self.products else sums
        return LayerStatistics(
            input_norm=(squares / count).sqrt(),
            hessian=2 / count * sums if self.products else None,
            gradient=gradient,
            sequences=count if sequences is None else sequences,
        )

    def _hook(self, name: str) -> Any:
        def see(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            changes = version(x)
            if self._last is not None and self._last[0] is x and self._last[1] == changes:
                twin = self._last[2]
                self.sums[name], self.sequences[name] = self.sums[twin], self.sequences[twin]
                return
            self._last = (x, changes, name)
            self._add(name, x.detach())

        return see

    def _add(self, name: str, x: Tensor) -> None:
        rows = _wide(x.flatten(0, -2))
        if name not in self.sums:
            size = rows.shape[1]
            self.sums[name] = rows.new_zeros((size, size) if self.products else size)
        if self.products:
            self.sums[name].addmm_(rows.mT, rows)
        else:
            self.sums[name] += rows.square().sum(0)
        self.sequences[name] = self.sequences.get(name, 0) + len(x)


class GradientNorms:
    """Norms over sequences of the gradient of each sequence's own loss, for every layer.

    Use it as a context around backward passes of losses that are *summed* over the sequences of a
    batch. A hook on each layer's output multiplies what comes back by the layer's input, for each
    sequence: g_s = D_sᵀ X_s. The signed mean, in which gradients at an optimum cancel, is never
    formed. Parameters are frozen meanwhile, since their ordinary gradients are not wanted: this
    costs one forward and one backward pass, and no more.

    Args:
        model: all of its parameters are frozen inside the context.
        layers: of the model, by name; each is used once in a forward pass.
        norm: ``l1`` (Σ_s |g_s|) or ``l2`` (sqrt Σ_s g_s²).
        store: device of the sums; None: where the gradients arise.

    Raises:
        UserError: unknown norm.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Linear],
        norm: Literal["l1", "l2"] = "l1",
        store: torch.device | None = None,
    ) -> None:
        self.model = model
        self.layers = dict(layers)
        self.kind = norm
        self.store = store
        self.sums: dict[str, Tensor] = {}
        self.sequences: dict[str, int] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> GradientNorms:
        for parameter in self.model.parameters():
            self._hooks.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for name, layer in self.layers.items():
            self._hooks.callback(layer.register_forward_hook(self._hook(name)).remove)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.close()

    def norm(self, name: str) -> Tensor:
        """The norm over sequences for a layer, (outputs, inputs).

        Raises:
            UserError: no gradient reached it, or it was used more than once in a pass.
        """
        if name not in self.sums:
            raise UserError(f"No gradient reached layer '{name}'.")
        if self.sequences[name] != self.count:
            raise UserError(f"Layer '{name}' is used more than once in a forward pass.")
        return self.sums[name] if self.kind == "l1" else self.sums[name].sqrt()

    @property
    def count(self) -> int:
        """N, the sequences that were seen."""
        return min(self.sequences.values(), default=0)

    def _hook(self, name: str) -> Any:
        def watch(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            x = inputs[0].detach()
            if output.requires_grad:
                output.register_hook(lambda d: self._add(name, x, d))
                return None
            # All before this layer is frozen, so the backward pass begins (or ends) here.
            start = output.detach().requires_grad_()
            start.register_hook(lambda d: self._add(name, x, d))
            return start.view_as(start)

        return watch

    def _add(self, name: str, x: Tensor, d: Tensor) -> None:
        x_BTI, d_BTO = (t.flatten(1, -2) if t.dim() > 2 else t[:, None] for t in (x, d.detach()))
        part = self._summed(x_BTI, d_BTO)
        if self.store is not None:
            part = part.to(self.store)
        self.sums[name] = self.sums[name].add_(part) if name in self.sums else part
        self.sequences[name] = self.sequences.get(name, 0) + len(x)

    def _summed(self, x_BTI: Tensor, d_BTO: Tensor) -> Tensor:
        """Σ_s |g_s| or Σ_s g_s², a few sequences at a time."""
        at_once = max(1, CHUNK // (x_BTI.shape[2] * d_BTO.shape[2]))
        pairs: Iterable[tuple[Tensor, Tensor]]
        pairs = zip(x_BTI.split(at_once), d_BTO.split(at_once), strict=True)
        total: Tensor | None = None
        for x, d in pairs:
            g_BOI = _wide(torch.bmm(d.mT, x))
            g_OI = (g_BOI.abs_() if self.kind == "l1" else g_BOI.square_()).sum(0)
            total = g_OI if total is None else total.add_(g_OI)
        assert total is not None
        return total


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: sums of squares of half precision would overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
