"""Feedback through fixed random weights: feedback alignment, layer by layer and direct.

Sources: Lillicrap et al. 2016 (FA), Nøkland 2016, arXiv 1609.01596 (DFA).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from typing_extensions import override

from repro.data.base.iterators import generator_for
from repro.knobs import Positive, checked
from repro.methods.tpsgd.chained import Backprop, checked_labels, is_trained, run_alone
from repro.methods.tpsgd.projections import Kind, Projections, draw, positions
from repro.toolbox.method import Batch, LossOf


class _Route(torch.autograd.Function):
    """The identity of a layer's output, whose gradient also reaches the input, by other weights."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, weight: Tensor, layer: nn.Linear | nn.Conv2d
    ) -> Tensor:
        """Returns the output."""
        ctx.layer, ctx.weight, ctx.shape = layer, weight, x.shape
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The output's gradient as it is, and through the feedback weights to the input."""
        (gradient,), weight, layer = gradients, ctx.weight, ctx.layer
        if isinstance(layer, nn.Linear):
            routed = gradient @ weight
        else:
            routed = conv2d_input(
                ctx.shape,
                weight,
                gradient,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
            )
        return gradient, routed, None, None


class FeedbackAlignment(Backprop):
    """Back-propagation whose errors go down through fixed random weights (FA).

    ``delta_{i-1} = (B_i^T delta_i) * sigma'`` with a fixed B_i in the place of W_i, for every
    linear layer and convolution, the output layer and recurrent weights included; each layer's own
    gradient, also that of the output layer, is made of its delta and its input as always.

    Args:
        kind: of the feedback weights, see `repro.methods.tpsgd.draw`; fan is a layer's inputs.
        scale: of the feedback weights.
        seed: of the feedback weights.
        knobs: see `Backprop`.
    """

    @checked
    def __init__(
        self, kind: Kind = "kaiming", scale: Positive = 1.0, seed: int = 0, **knobs: Any
    ) -> None:
        super().__init__(**knobs)
        self.kind: Kind = kind
        self.scale = scale
        self.seed = seed
        self.feedback: dict[nn.Module, Tensor] = {}

    def attach(self, model: nn.Module) -> None:
        """Draws the feedback weights; see `Backprop.attach`."""
        super().attach(model)
        self.feedback = {}
        layers = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        for number, layer in enumerate(layers):
            weight, generator = layer.weight, generator_for(self.seed, number)
            fan = weight[0].numel()
            drawn = draw(weight.shape, fan, self.kind, self.scale, generator)
            self.feedback[layer] = drawn.to(weight)

    @override
    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """One backward pass through the feedback weights; see `Backprop.backward`."""
        with ExitStack() as stack:
            for layer, weight in self.feedback.items():
                for handle in _route(layer, weight):
                    stack.callback(handle.remove)
            return super().backward(loss_of, batch, backward)


def _route(layer: nn.Module, weight: Tensor) -> list[Any]:
    """Lets errors pass a layer through other weights than its own, until the hooks are removed."""
    inputs: list[Tensor] = []

    def cut(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        inputs.append(args[0])
        return (args[0].detach(),)

    def join(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        x = inputs.pop()
        return _Route.apply(output, x, weight, layer) if x.requires_grad else output

    return [layer.register_forward_pre_hook(cut), layer.register_forward_hook(join)]


class DirectFeedback(Backprop):
    """The error of the output, projected straight to every hidden layer (DFA, sDFA).

    The gradient at a hidden layer's output is ``B_i e`` with ``e = dL/dlogits``, for ``signed`` the
    signs of e over the batch size. It is known only after the whole forward pass: every layer's
    graph is kept until then. Of a recurrent layer the last state is trained, the one before held
    constant.

    Args:
        signed: whether only the signs of the error are fed back.
        kind: of the feedback matrices, see `Projections`.
        scale: of the feedback matrices.
        spread: of the feedback matrices, likewise.
        seed: of the feedback matrices.
        position_mean: whether a convolution's signal is divided by its pixels.
        knobs: see `Backprop`.
    """

    @checked
    def __init__(
        self,
        signed: bool = False,
        kind: Kind = "kaiming",
        scale: Positive = 1.0,
        spread: Literal["full", "channel"] = "full",
        seed: int = 0,
        position_mean: bool = True,
        **knobs: Any,
    ) -> None:
        super().__init__(**knobs)
        self.signed = signed
        self.projections = Projections(kind, scale, spread, seed)
        self.position_mean = position_mean

    @override
    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """One forward pass, then the error to all layers; see `Backprop.backward`."""
        x, labels = checked_labels(batch)
        outputs: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers):
            if is_trained(layer):
                x, _, (outputs[number],) = run_alone(layer, x, times="last")
            else:
                with torch.no_grad():
                    x = layer(x)
        logits_BC = self.head(x)
        loss = self.loss(logits_BC, labels)
        (error_BC,) = torch.autograd.grad(loss, logits_BC, retain_graph=True)
        backward(loss)
        if self.signed:
            error_BC = error_BC.sign() / len(error_BC)
        for number, output in outputs.items():
            table = self.projections.of(number, self.classes, output).expand(-1, *output.shape[1:])
            signal = (error_BC @ table.flatten(1)).view_as(output)
            if self.position_mean:
                signal = signal / positions(output)
            backward((output * signal).sum())  # whose gradient at the output is the signal
        return loss.detach()
