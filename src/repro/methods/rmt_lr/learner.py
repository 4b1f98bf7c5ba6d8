"""Steps that follow the measured curvature: on-the-fly rates and momentum, and damped steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repro.errors import UserError
from repro.knobs import Count, Share, checked
from repro.methods.rmt_lr.theory import heavy_ball_optimum
from repro.toolbox.ensembles import Layout
from repro.toolbox.linear_algebra.curvature import hessian_product
from repro.toolbox.linear_algebra.lanczos import Product, Ritz, lanczos
from repro.toolbox.method import Batch, LossOf, Method, OptimizerFactory


def low_curvature(ritz: Ritz, share: float) -> float:
    """A small positive curvature: the weighted quantile of the positive Ritz values.

    Args:
        ritz: of one operator.
        share: of the weight of all positive values, in [0, 1].

    Returns:
        The value; 0 where none is positive.
    """
    positive = ritz.values > 0
    values, weights = ritz.values[positive], ritz.weights[positive]
    if not len(values):
        return 0.0
    before = int((weights.cumsum(0) < share * weights.sum()).sum())
    return float(values[min(before, len(values) - 1)])


def line_search_rate(product: Product, gradient_P: Tensor) -> float:
    """The step to the minimum of the quadratic along the gradient, gᵀg / gᵀHg.

    Infinite where the loss curves down.
    """
    bend = float(gradient_P @ product(gradient_P))
    return float(gradient_P @ gradient_P) / bend if bend > 0 else torch.inf


def damped_step(g: Tensor, values: Tensor, vectors: Tensor, damping: Tensor) -> Tensor:
    """The gradient over the damped curvature: 1/(abs(λ_i) + δ) along v_i, 1/δ elsewhere.

    Args:
        g: gradients (…, P).
        values: λ (…, k).
        vectors: orthonormal v (…, k, P).
        damping: δ (…), positive.

    Returns:
        (…, P), Σ_i [1/(abs(λ_i) + δ) - 1/δ] (v_iᵀ g) v_i + g/δ.
    """
    delta = damping.unsqueeze(-1)
    along = (vectors @ g.unsqueeze(-1)).squeeze(-1)
    change = (1 / (values.abs().to(g.dtype) + delta) - 1 / delta) * along
    return (change.unsqueeze(-2) @ vectors).squeeze(-2) + g / delta


class SpectralRates(Method):
    """Sets rate and momentum of SGD from the curvature of the batch, every so many steps.

    A few steps of Lanczos on the batch that is trained on give its largest eigenvalue L and a small
    positive one μ; the optimizer takes on what is best for a quadratic between the two
    (`heavy_ball_optimum`). Nothing is tuned.

    Args:
        every: steps between measurements.
        lanczos_steps: m; each is one Hessian product.
        share: see `low_curvature`.
        rule: ``spectrum`` as above | ``line_search``: the rate of `line_search_rate`, no momentum.
        seed: of the start vectors.
    """

    METRICS: ClassVar = {
        "learner/rate": "learning rate in use",
        "learner/momentum": "momentum in use",
        "learner/products": "Hessian products so far",
    }

    @checked
    def __init__(
        self,
        every: Count = 10,
        lanczos_steps: Count = 10,
        share: Share = 0.5,
        rule: Literal["spectrum", "line_search"] = "spectrum",
        seed: int = 0,
    ) -> None:
        self.every, self.lanczos_steps, self.share, self.rule = every, lanczos_steps, share, rule
        self.seed = seed
        self.rate = self.momentum = 0.0
        self.steps = self.products = 0
        self.trained: dict[str, nn.Parameter] = {}
        self.sgd: Optimizer | None = None

    def attach(self, model: nn.Module) -> None:
        """Notes what is trained."""
        self.trained = {k: each for k, each in model.named_parameters() if each.requires_grad}

    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """The configured SGD, whose rate and momentum are set as training goes.

        Raises:
            UserError: it is another optimizer.
        """
        self.sgd = super().optimizer(model, factory)
        if not isinstance(self.sgd, torch.optim.SGD):
            raise UserError(
                "rmt_lr's learner sets the rate and the momentum of SGD: optimizer=plain_sgd."
            )
        return self.sgd

    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """The plain gradient; before it, where it is due, a look at the batch's curvature."""
        if self.steps % self.every == 0:
            self._measure(loss_of(batch))
        return super().backward(loss_of, batch, backward)

    def before_step(self, model: nn.Module) -> None:  # noqa: ARG002 - a hook
        """Hands rate and momentum to the optimizer."""
        assert self.sgd is not None
        for group in self.sgd.param_groups:
            group["lr"], group["momentum"] = self.rate, self.momentum
        self.steps += 1

    def _measure(self, loss: Tensor) -> None:
        layout, weights = Layout(self.trained), list(self.trained.values())
        product = hessian_product(loss, weights, layout)
        if self.rule == "line_search":
            slopes = torch.autograd.grad(loss, weights, retain_graph=True)
            rate = line_search_rate(product, layout.join(slopes))
            self.products += 1
            self.rate = self.rate if rate == torch.inf else rate
            return
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.steps)
        start = torch.randn(sum(layout.sizes), generator=generator).to(weights[0])
        ritz = lanczos(product, start, self.lanczos_steps)
        self.products += ritz.values.shape[-1]
        if ritz.top > 0:
            self.rate, self.momentum = heavy_ball_optimum(
                float(ritz.top), low_curvature(ritz, self.share)
            )

    def metrics(self) -> dict[str, float]:
        """Rate, momentum and products so far."""
        return {
            "learner/rate": self.rate,
            "learner/momentum": self.momentum,
            "learner/products": float(self.products),
        }

    def state_dict(self) -> dict[str, Any]:
        """Rate, momentum and counts."""
        names = ("rate", "momentum", "steps", "products")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them."""
        for name, value in state.items():
            setattr(self, name, value)
