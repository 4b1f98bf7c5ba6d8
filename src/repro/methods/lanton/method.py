"""LANTON and its bases as a way to train any supervised model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from repro.errors import UserError
from repro.knobs import NonNegative, Positive, checked
from repro.methods.lanton.layers import layer_groups
from repro.methods.lanton.optimizer import Lanton
from repro.toolbox.lmo import NormBall
from repro.toolbox.method import Batch, LossOf, Method, OptimizerFactory


class LayerwiseRates(Method):
    """Trains with `Lanton`; kinds of layers without a ball go to the configured optimizer.

    With ``noise="independent"`` the first half of each batch is the other batch that gradients are
    compared with, and the second half is what is trained on.

    Args:
        lr: what all lengths of steps are multiplied by.
        hidden: ball of matrices, or None; likewise `embedding` (and the head), `positions` and
            `vector`, see `layer_groups`.
        embedding: see `hidden`.
        positions: see `hidden`.
        vector: see `hidden`.
        lengths: of steps, by role, before `lr`.
        wide_scale: likewise, for hidden matrices with more outputs than inputs.
        transposed: see `layer_groups`; likewise `fused`.
        fused: see `transposed`.
        knobs: of `Lanton`.

    Raises:
        UserError: a knob is out of range, or there is no ball at all.
    """

    accumulates = True
    METRICS: ClassVar = {
        "lanton/rate_*": "mean share of the rate that layers of a kind got in the last step",
        "lanton/least_rate_*": "the smallest such share",
        "lanton/flops_direction": "operations of a step in matrix products, for the directions",
        "lanton/flops_noise": "likewise for the noise",
    }

    @checked
    def __init__(
        self,
        lr: NonNegative,
        hidden: NormBall | None,
        embedding: NormBall | None,
        positions: NormBall | None,
        vector: NormBall | None,
        lengths: Mapping[str, Positive],
        wide_scale: Positive = 1.0,
        transposed: Sequence[str] = (),
        fused: Sequence[str] = (),
        **knobs: Any,
    ) -> None:
        balls = {"hidden": hidden, "embedding": embedding, "positions": positions, "vector": vector}
        self.balls = {role: ball for role, ball in balls.items() if ball is not None}
        self.lr = lr
        self.lengths = dict(lengths)
        self.wide_scale = wide_scale
        self.transposed = tuple(transposed)
        self.fused = tuple(fused)
        self.knobs = knobs
        if not self.balls:
            raise UserError("lanton: no kind of layer has a ball. For plain training: method=none.")
        anything = [{"params": [torch.zeros(1)], "role": next(iter(self.balls))}]
        Lanton(anything, lr, self.balls, **knobs)  # to hear of bad knobs now
        self.lanton: Lanton | None = None

    @override
    def attach(self, model: nn.Module) -> None:
        """Looks for what has no layers of its own.

        Raises:
            UserError: an embedding has sparse gradients, or many networks are stacked in one.
        """
        if any(getattr(module, "sparse", False) for module in model.modules()):
            raise UserError("lanton measures whole gradients: build embeddings with sparse=False.")
        if hasattr(model, "members"):
            raise UserError(
                "lanton takes each parameter for one layer, but this model stacks many networks in"
                " each: choose another method."
            )

    @override
    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """`Lanton` for all that has a ball, together with the configured optimizer for the rest."""
        groups = layer_groups(model, self.transposed, self.fused)
        ours = [group for group in groups if group["role"] in self.balls]
        for group in ours:
            group["scale"] = self.lengths.get(group["role"], 1.0)
            group["wide_scale"] = self.wide_scale if group["role"] == "hidden" else 1.0
        rest = [p for group in groups if group["role"] not in self.balls for p in group["params"]]
        self.lanton = Lanton(ours, self.lr, self.balls, **self.knobs)
        return Together(self.lanton, factory(rest)) if rest else self.lanton

    @override
    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """The gradient of the batch; before it, of an independent one where that is wanted.

        Raises:
            UserError: a batch of one example has no halves.
        """
        assert self.lanton is not None
        if self.lanton.noise == "independent":
            half = len(batch[0]) // 2
            if half == 0:
                raise UserError(
                    "lanton: noise=independent halves batches: set dataset.batch_size to 2 or more."
                )
            backward(loss_of(tuple(tensor[:half] for tensor in batch)))
            self.lanton.keep_reference()
            self.lanton.zero_grad()
            batch = tuple(tensor[half:] for tensor in batch)
        return super().backward(loss_of, batch, backward)

    @override
    def metrics(self) -> dict[str, float]:
        """The last step's rates, and what its matrix products cost."""
        if self.lanton is None:
            return {}
        moves, noise = self.lanton.flops()
        found = {"lanton/flops_direction": float(moves), "lanton/flops_noise": float(noise)}
        for role, rates_L in self.lanton.rates.items():
            found[f"lanton/rate_{role}"] = float(rates_L.mean())
            found[f"lanton/least_rate_{role}"] = float(rates_L.min())
        return found


class Together(Optimizer):
    """Several optimizers as one: schedules and checkpoints see all their groups.

    Args:
        optimizers: of different parameters.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for each in optimizers for group in each.param_groups], {})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update by each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for each in self.optimizers:
            each.step()
        return loss

    @override
    def state_dict(self) -> dict[str, Any]:
        """Those of all optimizers."""
        return {"optimizers": [each.state_dict() for each in self.optimizers]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        for each, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            each.load_state_dict(state)
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]
