"""Training behind masks that a policy draws, and the policy's own training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from typing_extensions import override

from repro.data.base.iterators import process_rank
from repro.errors import UserError
from repro.knobs import Count, Natural, Positive, checked
from repro.methods.noise_mask.masks import (
    BetaLogits,
    SmoothUpsampling,
    flat_loss_scale,
    generator_of_step,
    log_sum_density,
)
from repro.methods.noise_mask.policy import MaskPolicy
from repro.toolbox.method import Batch, LossOf, Method, OptimizerFactory
from repro.toolbox.score_function import MovingBaseline, surrogate


class NoiseMask(Method):
    """Trains a classifier on images times random masks, and the policy that draws these masks.

    A step of ``objective="code"`` descends ``L = CE · mean_i log Σ_j p_ij``, a product of two batch
    means, as the authors' ``train_one_epoch.py`` does. Its gradient is written as a sum::

        classifier:  mean LSE · ∇CE            policy:  CE · ∇ mean LSE

    so the classifier learns at about ``log G²`` times its rate. ``reinforce`` is the textbook's:
    each image's cost times the sum of its cells' log densities; ``reinforce_baseline`` subtracts a
    moving average of the costs. There the classifier's factor is the same mean LSE.

    Args:
        policy: a `MaskPolicy`; it is trained in place, and is no part of the model.
        kernel: pixels of the masks' blur, odd.
        sigma: its standard deviation in pixels.
        objective: ``code``, ``reinforce`` or ``reinforce_baseline``; the last two take a
            classifier of one label an image.
        learns: False leaves the policy's weights as they are; its bases and norms still move.
        source: ``policy``, or ``bases``: masks from the bases alone, which then stay.
        loss_scale: the classifier's factor: ``code``, mean LSE; ``normalised``, all of L over
            ``log G²``; ``none``, 1.
        policy_rate: of the policy's optimizer, as a share of the classifier's rate.
        epochs: after which a half cosine has taken the policy's rate to zero; None: it stays.
        seed: of the masks.

    Raises:
        UserError: a knob is out of range, or the policy is no `MaskPolicy`.
    """

    METRICS: ClassVar = {
        "mask/lse": "mean log-sum of cell densities, the factor on the loss, in the last step",
        "mask/mean": "mean of the masks, in [0, 1]",
        "mask/std": "standard deviation of a mask's pixel over the images of a batch",
        "mask/base_spread": "standard deviation over cells of the masks' means by the bases alone",
        "mask/policy_gradient": "norm of the policy's gradient",
    }

    @checked
    def __init__(
        self,
        policy: Any,
        kernel: Count = 13,
        sigma: Positive = 6.0,
        objective: Literal["code", "reinforce", "reinforce_baseline"] = "code",
        learns: bool = True,
        source: Literal["policy", "bases"] = "policy",
        loss_scale: Literal["code", "normalised", "none"] = "code",
        policy_rate: Positive = 0.1,
        epochs: Count | None = None,
        seed: Natural = 0,
    ) -> None:
        if not isinstance(policy, MaskPolicy):
            raise UserError(f"method.policy is a MaskPolicy, not a {type(policy).__name__}.")
        if loss_scale == "normalised" and policy.grid == 1:
            raise UserError("method.loss_scale=normalised divides by log G²: take a grid above 1.")
        self.policy, self.kernel, self.sigma = policy, kernel, sigma
        self.objective, self.source, self.loss_scale = objective, source, loss_scale
        self.learns = learns and source == "policy"
        self.policy_rate, self.epochs, self.seed = policy_rate, epochs, seed
        self.baseline = MovingBaseline()
        self.step = 0
        self.measured: dict[str, Tensor] = {}
        self.model: nn.Module | None = None
        self.policy_optimizer: Optimizer | None = None
        self.policy_lr: list[float] = []
        self.upsampling: SmoothUpsampling | None = None

    # -- Before training --------------------------------------------------------------------------

    @override
    def attach(self, model: nn.Module) -> None:
        self.model = model
        device = next(model.parameters()).device
        self.policy.to(device).train()
        self.baseline.to(device)

    @override
    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """The classifier's; the policy gets another one of the same kind, which this keeps."""
        self.policy_optimizer = factory(self.policy.parameters())
        for group in self.policy_optimizer.param_groups:
            group["lr"] *= self.policy_rate
        self.policy_lr = [group["lr"] for group in self.policy_optimizer.param_groups]
        return factory(model.parameters())

    @override
    def start_epoch(self, epoch: int) -> None:
        """Sets the policy's rate."""
        if self.epochs is None or self.policy_optimizer is None:
            return
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / self.epochs)))
        for group, lr in zip(self.policy_optimizer.param_groups, self.policy_lr, strict=True):
            group["lr"] = factor * lr

    # -- A step -----------------------------------------------------------------------------------

    @override
    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """Fills the gradients of classifier and policy; returns the loss behind masks.

        A `UserError` says so if the inputs are no images, the objective needs labels, or the factor
        on the loss is not positive, so that the classifier would climb.
        """
        x, *rest = batch
        logits = self._logits(x)
        mask_BC = logits.sample(generator_of_step(self.seed, self.step, x.device))
        pictures = self._upsampled(mask_BC, x)
        log_density_BC = logits.log_density(mask_BC)
        lse = log_sum_density(log_density_BC).mean()
        self._check_positive(lse)

        if self.objective == "code":
            loss = loss_of((x * pictures, *rest))
            policy_loss = loss.detach() * lse
        else:
            cost_B = self._costs(x * pictures, *rest)
            loss = cost_B.mean()
            policy_loss = surrogate(log_density_BC.sum(1), self._advantages(cost_B))
        total = loss if self.loss_scale == "none" else lse.detach() * loss
        if self.learns:
            total = total + policy_loss
        if self.loss_scale == "normalised":
            total = total / flat_loss_scale(self.policy.grid)
        backward(total)
        self.measured |= {
            "mask/lse": lse.detach(),
            "mask/mean": pictures.mean(),
            "mask/std": pictures.std(0, correction=0).mean(),
            "mask/base_spread": self.policy.base_spread(),
        }
        return loss.detach()

    @override
    def before_step(self, model: nn.Module) -> None:
        """Averages the policy's gradient over processes and lets it take its step."""
        self.step += 1
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        _average([*gradients, self.policy.base_alpha, self.policy.base_beta])
        if not self.learns:
            return
        assert self.policy_optimizer is not None, "call optimizer(model, factory) first"
        self.measured["mask/policy_gradient"] = nn.utils.get_total_norm(gradients)
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad()

    def _logits(self, x: Tensor) -> BetaLogits:
        if x.dim() != 4:
            raise UserError(
                f"noise_mask masks images (channels, height, width), not inputs of the shape"
                f" {list(x.shape[1:])}."
            )
        if self.source == "bases":
            return self.policy.bases(len(x))
        with torch.set_grad_enabled(self.learns):
            return self.policy(x)

    def _upsampled(self, mask_BC: Tensor, x: Tensor) -> Tensor:
        if self.upsampling is None:
            size = (x.shape[2], x.shape[3])
            self.upsampling = SmoothUpsampling(self.policy.grid, size, self.kernel, self.sigma)
            self.upsampling.to(x.device)
        pictures: Tensor = self.upsampling(mask_BC)
        return pictures

    def _costs(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The cross-entropy (B,) of each image.

        Raises:
            UserError: there is not one label for each.
        """
        assert self.model is not None
        labels = rest[0]
        if labels.is_floating_point() or labels.dim() != 1:
            raise UserError(
                f"noise_mask: objective={self.objective} weighs each image's cross-entropy and"
                " needs a label for each; choose method.objective=code."
            )
        return F.cross_entropy(self.model(x), labels, reduction="none")

    def _advantages(self, cost_B: Tensor) -> Tensor:
        if self.objective == "reinforce":
            return cost_B
        return cost_B - self.baseline(cost_B.detach())

    def _check_positive(self, lse: Tensor) -> None:
        if self.loss_scale != "none" and not lse > 0:
            raise UserError(
                f"noise_mask: the masks' densities make a factor of {lse.item():.3g} on the loss,"
                " and the classifier would climb: lower optimizer.lr, or set"
                " method.loss_scale=none."
            )

    # -- State ------------------------------------------------------------------------------------

    @override
    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.measured.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        optimizer = self.policy_optimizer
        return {
            "step": self.step,
            "policy": dict(self.policy.state_dict()),
            "baseline": dict(self.baseline.state_dict()),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "measured": dict(self.measured),
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.measured = state["step"], dict(state["measured"])
        self.policy.load_state_dict(state["policy"])
        self.baseline.load_state_dict(state["baseline"])
        if self.policy_optimizer is not None and state["optimizer"] is not None:
            self.policy_optimizer.load_state_dict(state["optimizer"])


def _average(tensors: list[Tensor]) -> None:
    """Means over all processes, in place: the policy is not in anybody's data-parallel wrapper."""
    _, processes = process_rank()
    if processes > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= processes
