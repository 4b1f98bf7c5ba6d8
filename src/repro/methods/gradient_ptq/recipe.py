"""The recipe: every choice that the paper varies, as one flat list of settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from repro.errors import UserError, did_you_mean
from repro.methods.gradient_ptq.allocation import ORDERS
from repro.methods.gradient_ptq.losses import loss_for
from repro.methods.gradient_ptq.variables import variable_for

ROUNDINGS = ("nearest", "gradient", "hessian")
AUGMENTS = ("none", "noise", "mixup", "drop")
SUBSETS = ("all", "near_half", "important", "random")
SCHEDULES = ("constant", "linear", "cosine")


class SignSGD(Optimizer):
    """``v ← v - η sign(∇)``, the update of SignRound."""

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves every parameter by the learning rate against its gradient's sign."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad.sign())


OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "sign_sgd": SignSGD,
}


@dataclass
class Mixed:
    """Mixed precision: bits by importance at a budget.

    Attributes:
        low: bits of what is not raised.
        high: bits of what is.
        budget: largest average number of bits.
        order: ``importance``, or a control: ``reversed``, ``random``, ``magnitude``.
        unit: what gets its own bits, ``layer`` or output ``channel``.
        steps: S of the importance; 0 is |W∘∇W|.
    """

    low: int = 2
    high: int = 4
    budget: float = 3.0
    order: str = "importance"
    unit: str = "layer"
    steps: int = 0

    def __post_init__(self) -> None:
        _one_of("mixed.order", self.order, ORDERS)
        _one_of("mixed.unit", self.unit, ("layer", "channel"))
        if self.steps < 0:
            raise UserError("method.mixed.steps is 0 or more.")


@dataclass
class Activations:
    """Quantised activations.

    Attributes:
        bits: of layer inputs and of attention probabilities inside blocks.
        together: learn the steps with the weights, as QDrop does; else in a second pass over the
            units with the weights fixed, as BRECQ does.
        keep: probability with which an element is quantised while weights are learned.
        lr: of Adam on the steps, falling along a cosine.
        iterations: of the second pass.
    """

    bits: int = 4
    together: bool = False
    keep: float = 1.0
    lr: float = 4e-4
    iterations: int = 5000

    def __post_init__(self) -> None:
        if self.bits < 2:
            raise UserError("method.activations.bits is 2 or more.")
        if not 0 < self.keep <= 1:
            raise UserError("method.activations.keep lies in (0, 1].")


@dataclass
class Recipe:
    """How a network's weights are rounded. Defaults are AdaRound's.

    Attributes:
        bits: of a weight.
        rounding: ``nearest``, ``gradient`` or ``hessian`` (Frantar et al.).
        unit: what is reconstructed at a time, ``layer`` or ``block``.
        skip: patterns of layer names to leave alone.
        edge_bits: bits of the first and the last layer, and of the latter's input; None: as others.
        quantizer: ``uniform`` or ``power``.
        exponent: of the power grid; None searches the best one of the network.
        per_channel: a scale per output channel.
        symmetric: uniform levels -2^(b-1) … 2^(b-1)-1.
        scale_search: ``mse`` or ``minmax``.
        variable: ``round_sigmoid``, ``free``, ``offset`` or ``tanh``.
        learn_scale: learn the scales, too.
        learn_bias: learn the biases, too.
        scale_lr: Adam's rate for scales (relative to their mean) and biases.
        loss: see `repro.methods.gradient_ptq.losses`.
        optimizer: ``adam``, ``adamax``, ``rmsprop``, ``sgd`` or ``sign_sgd``.
        lr: its rate.
        momentum: of SGD.
        schedule: of the rate: ``constant``, ``linear`` or ``cosine``.
        iterations: updates per unit.
        batch_size: calibration examples per update.
        regularisation: λ of AdaRound's regulariser.
        warmup: share of the iterations without it.
        beta: its exponent's first and last value, between which it moves linearly.
        augment: of the features: ``none``, ``noise``, ``mixup``, or ``drop`` between quantised and
            float inputs.
        augment_strength: noise: standard deviation relative to the features'; drop: probability of
            the float input; mixup: the largest share of the other example.
        subset: the weights that may move: ``all``, ``near_half`` (a fractional part within
            `subset_share` / 2 of ½), ``important`` or ``random`` (that share of each layer).
        subset_share: see `subset`.
        mixed: mixed precision instead of `bits`.
        activations: quantise activations.
    """

    bits: int = 4
    rounding: str = "gradient"
    unit: str = "layer"
    skip: Sequence[str] = ()
    edge_bits: int | None = None
    quantizer: str = "uniform"
    exponent: float | None = None
    per_channel: bool = True
    symmetric: bool = False
    scale_search: str = "mse"
    variable: str = "round_sigmoid"
    learn_scale: bool = False
    learn_bias: bool = False
    scale_lr: float = 1e-3
    loss: str = "l2"
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    schedule: str = "constant"
    iterations: int = 20000
    batch_size: int = 32
    regularisation: float = 0.01
    warmup: float = 0.2
    beta: Sequence[float] = field(default_factory=lambda: (20.0, 2.0))
    augment: str = "none"
    augment_strength: float = 0.5
    subset: str = "all"
    subset_share: float = 0.5
    mixed: Mixed | None = None
    activations: Activations | None = None

    def __post_init__(self) -> None:
        _one_of("rounding", self.rounding, ROUNDINGS)
        _one_of("unit", self.unit, ("layer", "block"))
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("augment", self.augment, AUGMENTS)
        _one_of("subset", self.subset, SUBSETS)
        _one_of("quantizer", self.quantizer, ("uniform", "power"))
        _one_of("scale_search", self.scale_search, ("mse", "minmax"))
        variable_for(self.variable)
        loss_for(self.loss)
        if self.rounding == "hessian" and self.unit != "layer":
            raise UserError("method.rounding=hessian goes layer by layer: method.unit=layer.")
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"method.{name} is 1 or more.")
        if not 0 < self.subset_share <= 1:
            raise UserError("method.subset_share lies in (0, 1].")
        if self.lr <= 0:
            raise UserError("method.lr is above zero.")

    def attach(self, model: nn.Module) -> None:
        """What `repro.training.supervised.Supervised` calls first of a method: refuses.

        Raises:
            UserError: always; there is nothing here that changes an update of training.
        """
        raise UserError(
            "Post-training quantisation starts where training ends: use it with paper=gradient_ptq."
        )

    def grid_settings(self) -> dict[str, Any]:
        """What `fit_grid` takes, but for the exponent."""
        return {
            "quantizer": self.quantizer,
            "per_channel": self.per_channel,
            "symmetric": self.symmetric,
            "search": self.scale_search,
        }

    def make_optimizer(self, parameters: list[Tensor]) -> Optimizer:
        """The optimizer of the variables."""
        extra = {"momentum": self.momentum} if self.optimizer == "sgd" else {}
        optimizer: Optimizer = OPTIMIZERS[self.optimizer](parameters, lr=self.lr, **extra)
        return optimizer

    def beta_at(self, progress: float) -> float | None:
        """The regulariser's exponent at a share of the iterations; None while there is none."""
        if progress < self.warmup:
            return None
        first, last = self.beta
        return first + (last - first) * (progress - self.warmup) / (1 - self.warmup)


def scheduler(optimizer: Optimizer, schedule: str, iterations: int) -> LambdaLR:
    """Multiplies rates by 1, by what is left of the iterations, or by half a cosine."""
    shapes = {
        "constant": lambda i: 1.0,
        "linear": lambda i: 1 - i / iterations,
        "cosine": lambda i: (1 + math.cos(math.pi * i / iterations)) / 2,
    }
    return LambdaLR(optimizer, shapes[schedule])


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    known = list(known)
    if value not in known:
        raise UserError(
            f"method.{name} is {', '.join(known)}; not {value}.{did_you_mean(value, known)}"
        )
