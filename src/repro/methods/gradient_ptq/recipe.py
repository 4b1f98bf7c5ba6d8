"""The recipe: every choice that the paper varies, as one flat list of settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import Count, Fraction, Known, Natural, Positive, Share, checked
from repro.methods.gradient_ptq.allocation import Order
from repro.toolbox.reconstruction.losses import LOSSES
from repro.toolbox.reconstruction.variables import VARIABLES

Bits = Annotated[int, Ge(2)]
Schedule = Literal["constant", "linear", "cosine"]


class SignSGD(Optimizer):
    """``v ← v - η sign(∇)``, the update of SignRound."""

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @override
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


@checked
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

    low: Bits = 2
    high: Bits = 4
    budget: Positive = 3.0
    order: Order = "importance"
    unit: Literal["layer", "channel"] = "layer"
    steps: Natural = 0


@checked
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

    bits: Bits = 4
    together: bool = False
    keep: Share = 1.0
    lr: Positive = 4e-4
    iterations: Count = 5000


@checked
@dataclass
class Recipe:
    """How a network's weights are rounded. Defaults are AdaRound's.

    Attributes:
        bits: of a weight.
        rounding: ``nearest``, ``gradient`` or ``hessian`` (Frantar et al.).
        unit: what is reconstructed at a time, ``layer`` or ``block``.
        include_activation: compare a layer's outputs behind the activation that takes them, as
            AdaRound (its equation 25), BRECQ and QDrop do; false: in front of it.
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
        loss: see `repro.toolbox.reconstruction.losses`.
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

    bits: Bits = 4
    rounding: Literal["nearest", "gradient", "hessian"] = "gradient"
    unit: Literal["layer", "block"] = "layer"
    include_activation: bool = True
    skip: Sequence[str] = ()
    edge_bits: Bits | None = None
    quantizer: Literal["uniform", "power"] = "uniform"
    exponent: float | None = None
    per_channel: bool = True
    symmetric: bool = False
    scale_search: Literal["mse", "minmax"] = "mse"
    variable: Annotated[str, Known(tuple(VARIABLES))] = "round_sigmoid"
    learn_scale: bool = False
    learn_bias: bool = False
    scale_lr: Positive = 1e-3
    loss: Annotated[str, Known(tuple(LOSSES))] = "l2"
    optimizer: Annotated[str, Known(tuple(OPTIMIZERS))] = "adam"
    lr: Positive = 1e-3
    momentum: Fraction = 0.9
    schedule: Schedule = "constant"
    iterations: Count = 20000
    batch_size: Count = 32
    regularisation: float = 0.01
    warmup: Fraction = 0.2
    beta: Sequence[float] = field(default_factory=lambda: (20.0, 2.0))
    augment: Literal["none", "noise", "mixup", "drop"] = "none"
    augment_strength: float = 0.5
    subset: Literal["all", "near_half", "important", "random"] = "all"
    subset_share: Share = 0.5
    mixed: Mixed | None = None
    activations: Activations | None = None

    def __post_init__(self) -> None:
        if self.rounding == "hessian" and self.unit != "layer":
            raise UserError("method.rounding=hessian goes layer by layer: method.unit=layer.")

    def attach(self, _model: nn.Module) -> None:
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


def scheduler(optimizer: Optimizer, schedule: Schedule, iterations: int) -> LambdaLR:
    """Multiplies rates by 1, by what is left of the iterations, or by half a cosine."""
    shapes = {
        "constant": lambda _i: 1.0,
        "linear": lambda i: 1 - i / iterations,
        "cosine": lambda i: (1 + math.cos(math.pi * i / iterations)) / 2,
    }
    return LambdaLR(optimizer, shapes[schedule])
