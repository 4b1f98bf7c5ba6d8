"""Adversarial training: every update is made on examples that attack the model as it is.

The baselines of Nikfam et al. (arXiv 2210.06888) and of everybody else, from a plain loop:

>>> import torch
>>> from repro.toolbox.attacks import PGD
>>> from repro.toolbox.adversarial import AdversarialTraining
>>> _ = torch.manual_seed(0)
>>> x = torch.rand(256, 10)
>>> y = (x[:, 0] > 0.5).long()
>>> model = torch.nn.Linear(10, 2)
>>> def loss_of(batch):
...     return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
>>> method = AdversarialTraining(PGD(eps=0.1, steps=5, rel_step=0.4))
>>> method.attach(model)
>>> optimizer = method.optimizer(model, lambda params: torch.optim.SGD(params, lr=1.0))
>>> for epoch in range(30):
...     for batch in zip(x.split(64), y.split(64)):
...         optimizer.zero_grad()
...         loss = method.backward(loss_of, batch, torch.Tensor.backward)
...         optimizer.step()
>>> attacked = PGD(eps=0.1)(model, x, y)
>>> (model(attacked).argmax(1) == y).float().mean().item() > 0.7
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repro.errors import UserError
from repro.knobs import Count, Fraction, NonNegative, checked
from repro.toolbox.attacks import PGD
from repro.toolbox.method import Batch, LossOf, Method, OptimizerFactory


class AdversarialTraining(Method):
    """Replaces each batch's inputs by adversarial ones (Madry et al., 2018, equation 2.1).

    With `FGSM` and half of the loss on clean examples this is Goodfellow et al. (2015, section 6);
    with one step of 1.25 eps from a random start it is fast adversarial training (Wong et al.,
    2020, arXiv 2001.03994, algorithm 3). The attack maximises the very loss that is trained, in the
    model's present mode.

    Args:
        attack: ascends the loss; its `loss` knob is not used here.
        clean: weight of the loss on the examples as they are, in [0, 1); the rest is that on
            adversarial ones.

    Raises:
        UserError: a knob is out of range.
    """

    METRICS: ClassVar = {
        "cost/gradients_per_epoch": "forward and backward passes of an example in an epoch",
    }

    @checked
    def __init__(self, attack: PGD, clean: Fraction = 0.0) -> None:
        self.attack, self.clean = attack, clean

    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """Attacks the inputs, the first tensor of the batch, then goes on as usual."""
        inputs, *rest = _real_valued(batch)
        attacked = self.attack.maximise(lambda z: loss_of((z, *rest)), inputs)
        if not self.clean:
            return super().backward(loss_of, (attacked, *rest), backward)

        def mixed(_: Batch) -> Tensor:
            on_attacked = (1 - self.clean) * loss_of((attacked, *rest))
            return on_attacked + self.clean * loss_of(batch)

        return super().backward(mixed, batch, backward)

    def metrics(self) -> dict[str, float]:
        """Forward and backward passes that an example costs in an epoch."""
        return {"cost/gradients_per_epoch": float(self.attack.steps + (2 if self.clean else 1))}


class FreeAdversarialTraining(Method):
    """Updates weights and perturbation from one backward pass (Shafahi et al., 2019, algorithm 1).

    Each batch is replayed `replays` times (m): the gradient g at ``x + d`` takes the weights one
    optimizer step down and the perturbation one step up, ``d <- clip(d + eps sign(g), -eps, eps)``.
    d starts at 0 and is carried over from batch to batch. Divide the epochs by m to spend what
    ordinary training spends.

    The first m - 1 updates of a batch happen inside `backward`, the last one in the caller's loop.

    Args:
        eps: largest change of an input value.
        replays: m, at least 1.
        bounds: least and largest value of an input, or None.

    Raises:
        UserError: a knob is out of range.
    """

    METRICS: ClassVar = {
        "cost/gradients_per_epoch": "forward and backward passes of an example in an epoch",
    }

    @checked
    def __init__(
        self, eps: NonNegative, replays: Count = 4, bounds: tuple[float, float] | None = (0.0, 1.0)
    ) -> None:
        PGD(eps, bounds=bounds)  # checks the bounds
        self.eps = eps
        self.replays = replays
        self.bounds = bounds
        self.delta: Tensor | None = None
        self.built: Optimizer | None = None

    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """Builds the optimizer and keeps it, for the updates within a batch."""
        self.built = super().optimizer(model, factory)
        return self.built

    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """Makes m - 1 updates and leaves the gradient of the last one."""
        assert self.built is not None, "call `optimizer` first"
        inputs, *rest = _real_valued(batch)
        if self.delta is None or self.delta.shape[1:] != inputs.shape[1:]:
            self.delta = torch.zeros_like(inputs)
        elif len(self.delta) < len(inputs):
            missing = torch.zeros_like(inputs[len(self.delta) :])
            self.delta = torch.cat([self.delta, missing])
        delta = self.delta[: len(inputs)]
        for replay in range(self.replays):
            moved = inputs + delta
            if self.bounds is not None:
                moved = moved.clamp(*self.bounds)
            moved.requires_grad_()
            loss = super().backward(loss_of, (moved, *rest), backward)
            assert moved.grad is not None
            # In place: a shorter batch moves the first rows of what longer ones carry on.
            delta.add_(self.eps * moved.grad.sign()).clamp_(-self.eps, self.eps)
            if replay < self.replays - 1:
                self.built.step()
                self.built.zero_grad()
        return loss

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> None:
        """Clipping would reach only the last of a batch's updates.

        Raises:
            UserError: clipping is switched on.
        """
        if max_norm is not None and self.replays > 1:
            raise UserError(
                "method=free_at updates several times a batch and cannot clip:"
                " set training.clip_norm=null."
            )
        super().clip(parameters, max_norm)

    def metrics(self) -> dict[str, float]:
        """Forward and backward passes that an example costs in an epoch."""
        return {"cost/gradients_per_epoch": float(self.replays)}

    def state_dict(self) -> dict[str, Any]:
        """The perturbation that the next batch starts from."""
        return {"delta": self.delta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the perturbation."""
        self.delta = state["delta"]


def _real_valued(batch: Batch) -> Batch:
    if not batch[0].is_floating_point():
        raise UserError(
            "Adversarial training changes real-valued inputs, but this data set's are"
            f" {batch[0].dtype}: choose another dataset or method."
        )
    return batch
