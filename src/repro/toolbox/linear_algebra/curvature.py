"""Products with the Hessian or the generalised Gauss-Newton matrix of a mean loss.

With outputs z(θ) on a batch and a loss L, the mean over the batch, J = dz/dθ::

    H = d²L/dθ²        G = Jᵀ (d²L/dz²) J

(Pearlmutter 1994; Schraudolph 2002). Neither is ever formed: a product is one more pass backwards
through the graph of the gradient. At fixed weights that graph does not change, so it is kept, and
a product costs half of what building it anew each time would. M batches are M operators at once,
which act on vectors (M, P).

>>> curvature = Curvature(torch.nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,)))])
>>> curvature(torch.randn(10)).shape
torch.Size([10])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from repro.knobs import checked
from repro.toolbox.ensembles import Layout, Loss, outputs
from repro.toolbox.linear_algebra.lanczos import Product
from repro.toolbox.method import Batch

Kind = Literal["hessian", "ggn"]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Curvature:
    """The curvature of the mean loss over some examples at fixed weights: v ↦ H v.

    Args:
        model: a network. How its layers behave is up to its mode; see `at_rest`.
        batches: the examples (B, …), in parts of any size. Where ``theta`` is a matrix (M, P), one
            part, and one batch for each row: (M, B, …).
        kind: ``hessian`` or ``ggn``.
        loss: of outputs and targets, a mean over examples.
        theta: the weights, (P,) or (M, P); None: the network's own.
        keep: keep the graph of every part: twice as fast, at the price of memory in proportion to
            all examples.

    Attributes:
        products: how many were formed so far, of all examples.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        kind: Kind = "hessian",
        loss: Loss = F.cross_entropy,
        theta: Tensor | None = None,
        keep: bool = True,
    ) -> None:
        self.model, self.batches, self.kind, self.loss = model, batches, kind, loss
        self.layout = Layout.of(model)
        self.theta = self.layout.vector(model) if theta is None else theta.detach()
        self.stacked = self.theta.ndim == 2
        self.products = 0
        self.kept = [self._product(batch) for batch in batches] if keep else None

    @property
    def size(self) -> int:
        """P."""
        return self.theta.shape[-1]

    def __call__(self, v: Tensor) -> Tensor:
        """The product with a vector (P,), or with (M, P) row by row."""
        self.products += 1
        if self.stacked:
            (product,) = self.kept or [self._product(self.batches[0])]
            return product(v)
        total = torch.zeros_like(v)
        examples = sum(len(batch[0]) for batch in self.batches)
        for index, batch in enumerate(self.batches):
            product = self.kept[index] if self.kept else self._product(batch)
            total += product(v) * (len(batch[0]) / examples)
        return total

    def matrix(self) -> Tensor:
        """The whole (P, P), column by column; for small networks."""
        return torch.stack([self(row) for row in torch.eye(self.size, dtype=self.theta.dtype)], 1)

    @torch.enable_grad()
    def _product(self, batch: Batch) -> Product:
        x, y = batch
        leaves = {k: each.requires_grad_() for k, each in self.layout.split(self.theta).items()}
        z = outputs(self.model, leaves, x, self.stacked)
        if self.kind == "hessian":
            return hessian_product(self._mean_loss(z, y), list(leaves.values()), self.layout)
        return ggn_product(
            z, lambda logits: self._mean_loss(logits, y), list(leaves.values()), self.layout
        )

    def _mean_loss(self, z: Tensor, y: Tensor) -> Tensor:
        """The batch's loss; of M batches their sum, whose curvature has M blocks."""
        return vmap(self.loss)(z, y).sum() if self.stacked else self.loss(z, y)


def hessian_product(loss: Tensor, weights: Sequence[Tensor], layout: Layout) -> Product:
    """Products (…, P) with the Hessian of a scalar that was computed from weights (…, *shape)."""
    slopes = torch.autograd.grad(loss, weights, create_graph=True)

    def product(v: Tensor) -> Tensor:
        along = list(layout.split(v).values())
        rows = torch.autograd.grad(
            slopes, weights, along, retain_graph=True, materialize_grads=True
        )
        return layout.join(rows)

    return product


def ggn_product(
    z: Tensor, loss: Callable[[Tensor], Tensor], weights: Sequence[Tensor], layout: Layout
) -> Product:
    """Products (…, P) with the Gauss-Newton matrix of ``loss(z)``, z computed from weights."""
    logits = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(logits), logits, create_graph=True)
    # Jᵀu is linear in u, so its derivative along v by u is J v.
    u = torch.zeros_like(z, requires_grad=True)
    pulled = torch.autograd.grad(z, weights, u, create_graph=True)

    def product(v: Tensor) -> Tensor:
        along = list(layout.split(v).values())
        (Jv,) = torch.autograd.grad(pulled, u, along, retain_graph=True)
        (bent,) = torch.autograd.grad(slope, logits, Jv, retain_graph=True)
        return layout.join(torch.autograd.grad(z, weights, bent, retain_graph=True))

    return product


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Nothing random (dropout off), but batch normalisation by the batch's own statistics."""
    modes = [(each, each.training) for each in model.modules()]
    for each, _ in modes:
        each.training = isinstance(each, NORMS)
    yield
    for each, mode in modes:
        each.training = mode
