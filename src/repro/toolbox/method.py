"""The contract between a training-time method and whoever runs the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Batch = tuple[Tensor, ...]
LossOf = Callable[[Batch], Tensor]
OptimizerFactory = Callable[..., Optimizer]


class Method:
    """How a batch becomes an update. This class changes nothing: plain mini-batch training.

    A loop (`repro.training.supervised.Supervised` is one) calls the hooks in the order in which
    they stand here; steps 3 to 6 repeat for every batch::

        method.attach(model)                                   # 1
        optimizer = method.optimizer(model, factory)           # 2
        optimizer.zero_grad()
        loss = method.backward(loss_of, batch, Tensor.backward)  # 3
        method.clip(model.parameters(), clip_norm)             # 4
        method.before_step(model)                              # 5
        optimizer.step()
        method.after_step(model)                               # 6

    A subclass overrides what its paper changes, and nothing else.

    Attributes:
        METRICS: what `metrics` returns, by name (or pattern with ``*``), with unit and meaning.
        accumulates: a `backward` of its own calls the loss of a batch once and goes back once from
            it, so that the loss may do both for parts of the batch (``hardware.accumulate``).
    """

    METRICS: ClassVar[Mapping[str, str]] = {}
    accumulates: ClassVar[bool] = False

    def attach(self, model: nn.Module) -> None:
        """Looks at the model once, before training.

        Raises:
            UserError: the method cannot train this model; the message says why in one line.
        """

    def optimizer(self, model: nn.Module, factory: OptimizerFactory) -> Optimizer:
        """Builds the optimizer from the configured factory, e.g. ``partial(SGD, lr=0.1)``."""
        return factory(model.parameters())

    def register(self, ddp_model: nn.Module) -> None:
        """Told the `DistributedDataParallel` wrapper, when several processes train together."""

    def start_epoch(self, epoch: int) -> None:
        """Told the zero-based epoch before its first batch (warm-ups, annealing)."""

    def backward(self, loss_of: LossOf, batch: Batch, backward: Callable[[Tensor], Any]) -> Tensor:
        """Fills ``.grad`` of the parameters and returns the detached mean loss of the batch.

        Args:
            loss_of: maps a batch to the mean loss over its first dimension.
            batch: tensors that share their first dimension.
            backward: what to call on a loss instead of ``loss.backward()`` (mixed precision and
                data-parallel strategies need their own).
        """
        loss = loss_of(batch)
        backward(loss)
        return loss.detach()

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float | None) -> None:
        """Clips the global gradient norm; ``None`` leaves gradients alone."""
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    def before_step(self, model: nn.Module) -> None:
        """Last look at the gradients before the optimizer uses them."""

    def after_step(self, model: nn.Module) -> None:
        """First look at the parameters after the optimizer moved them."""

    def metrics(self) -> dict[str, float]:
        """Scalars worth logging at the end of an epoch, named like ``comm/bytes_per_step``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs: tensors, numbers, strings, lists and dicts only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
