"""M copies of one network side by side: all learning rates of a sweep are trained at once.

The weights are one matrix (M, P). A layer of all copies is one batched product, an update of all of
them a few operations on the matrix, so that a sweep over rates of a small network costs little more
than its most expensive run. A copy that diverges disturbs no other.

>>> ensemble = Ensemble(torch.nn.Linear(4, 2), torch.tensor([0.1, 1.0]))
>>> x, y = torch.randn(8, 4), torch.randint(2, (8,))
>>> for step in range(10):
...     losses_M = ensemble.step((x, y))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from repro.toolbox.method import Batch, OptimizerFactory

Loss = Callable[[Tensor, Tensor], Tensor]
ACTIVATIONS = (nn.ELU, nn.GELU, nn.Identity, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Tanh)


class Layout:
    """Where each parameter of a network lies in the vector of all P of them.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.shapes = {name: each.shape for name, each in parameters.items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """That of a network's parameters."""
        return cls(dict(model.named_parameters()))

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of (…, P) as (…, *shape), by the parameter's name."""
        parts = zip(self.shapes.items(), theta.split(self.sizes, dim=-1), strict=True)
        return {name: part.unflatten(-1, shape) if shape else part.squeeze(-1)
                for (name, shape), part in parts}  # fmt: skip

    def join(self, tensors: Iterable[Tensor]) -> Tensor:
        """The (…, P) of tensors (…, *shape), in the order of the parameters."""
        shapes = self.shapes.values()
        flat = (
            each.flatten(-len(shape)) if shape else each.unsqueeze(-1)
            for each, shape in zip(tensors, shapes, strict=True)
        )
        return torch.cat(list(flat), dim=-1)

    def vector(self, model: nn.Module) -> Tensor:
        """A network's parameters (P,), detached."""
        return self.join(each.detach() for each in model.parameters())


def outputs(model: nn.Module, weights: dict[str, Tensor], x: Tensor, stacked: bool) -> Tensor:
    """What a network puts out with other weights; its buffers stay as they are.

    Args:
        model: lends its code and buffers.
        weights: its parameters; of M copies (M, *shape) where they are stacked.
        x: (B, …); where weights are stacked also (M, B, …), one more dimension, a batch for each.
        stacked: whether they are.

    Returns:
        (B, …), or (M, B, …).
    """
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    if stacked and len(x) == 1:  # batch normalisation that keeps averages cannot be stacked
        return outputs(model, {k: v.squeeze(0) for k, v in weights.items()}, x[0], False)[None]
    if not stacked:
        plain: Tensor = functional_call(model, (weights, buffers), (x,))
        return plain

    def one(own: dict[str, Tensor], inputs: Tensor) -> Tensor:
        output: Tensor = functional_call(model, (own, buffers), (inputs,))
        return output

    each: Tensor = vmap(one, in_dims=(0, 0), randomness="different")(weights, x)
    return each


def layer_by_layer(model: nn.Module, copies: Mapping[Tensor, Tensor], x: Tensor) -> Tensor:
    """What M copies of a network put out, (M, B, …), as `outputs` does, but in fewer operations.

    In a sequence a linear layer is one batched product, and an activation acts on all copies as on
    one; `vmap` takes two to three times as long for them. It is left with all other layers.

    Args:
        model: see `outputs`.
        copies: the weights (M, *shape) that stand for each of its parameters.
        x: (M, B, …).
    """
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        for layer in model:
            x = layer_by_layer(layer, copies, x)
        return x
    if type(model) is nn.Linear and model.bias is not None and x.ndim == 3:
        return torch.baddbmm(copies[model.bias][:, None], x, copies[model.weight].mT)
    if type(model) in ACTIVATIONS:
        activated: Tensor = model(x)
        return activated
    weights = {name: copies[each] for name, each in model.named_parameters()}
    return outputs(model, weights, x, stacked=True)


def cross_entropies(z: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropies (M,) of logits (M, B, classes, …).

    Copies are the examples of PyTorch's loss, and the batch are positions in them: with the classes
    in the last dimension it takes ten times as long for few of them.
    """
    return F.cross_entropy(z.movedim(2, 1), y, reduction="none").flatten(1).mean(1)


def for_each(batch: Batch, members: int) -> Batch:
    """A batch that M copies share, as (M, B, …): views, not copies."""
    return tuple(each.expand(members, *each.shape) for each in batch)


class Ensemble:
    """M copies of a network that start alike, each with its own learning rate.

    Args:
        model: the start of all; it is left as it is. Buffers must not change in training (batch
            normalisation that keeps averages does).
        rates_M: learning rates, all of them at least 0.
        optimizer: called with parameters and ``lr=1``; any whose update is proportional to its
            rate, such as SGD, with momentum or not, Adam and RMSprop.
        losses: of outputs and targets (M, B, …): the mean loss of each copy, (M,).
    """

    def __init__(
        self,
        model: nn.Module,
        rates_M: Tensor,
        optimizer: OptimizerFactory = torch.optim.SGD,
        losses: Loss = cross_entropies,
    ) -> None:
        self.model, self.losses_of = model, losses
        self.layout = Layout.of(model)
        start_P = self.layout.vector(model)
        self.rates_M = rates_M.to(start_P)
        self.theta_MP = nn.Parameter(start_P.repeat(len(rates_M), 1))
        self.optimizer = optimizer([self.theta_MP], lr=1.0)

    def losses(self, weights: dict[str, Tensor], batch: Batch) -> Tensor:
        """The mean losses (M,) of given weights on a batch that all copies share."""
        x, y = for_each(batch, len(self.rates_M))
        copies: dict[Tensor, Tensor] = dict(
            zip(self.model.parameters(), weights.values(), strict=True)
        )
        return self.losses_of(layer_by_layer(self.model, copies, x), y)

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses (M,) and gradients (M, P) on a batch that all copies share."""
        weights = self.layout.split(self.theta_MP.detach())
        leaves = {name: each.requires_grad_() for name, each in weights.items()}
        losses_M = self.losses(leaves, batch)
        gradients = torch.autograd.grad(losses_M.sum(), list(leaves.values()))
        return losses_M.detach(), self.layout.join(gradients)

    def step(self, batch: Batch) -> Tensor:
        """One update of all copies; returns their losses (M,) before it."""
        losses_M, self.theta_MP.grad = self.gradients(batch)
        before_MP = self.theta_MP.detach().clone()
        self.optimizer.step()
        self.theta_MP.data = before_MP.lerp_(self.theta_MP.detach(), self.rates_M[:, None])
        return losses_M

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Losses (M,) on a batch; what is not a number is infinite."""
        losses_M = self.losses(self.layout.split(self.theta_MP.detach()), batch)
        return losses_M.nan_to_num(torch.inf, torch.inf)
