"""Supervised training that also measures how much memory one of its steps takes."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from repro.methods.man import LocalLearning
from repro.toolbox.costs import PeakMemory
from repro.toolbox.method import Batch
from repro.training.supervised import Supervised

MEASURED_STEP = 1  # the second: the optimizer's state exists by then


class LocalTraining(Supervised):
    """Adds ``memory/*`` to `Supervised`, measured during its second training step.

    Args:
        *args: see `Supervised`.
        **kwargs: see `Supervised`.
    """

    METRICS: ClassVar = {
        "memory/peak_mb": "peak of all tensor memory within the step: parameters, optimizer state, "
        "gradients, activations, auxiliary nets and copies (`PeakMemory`)",
        "memory/kept_mb": "what of it is there before the step begins (parameters, optimizer "
        "state, the batch)",
    }
    KEPT: ClassVar = ("memory",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory: dict[str, float] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update; the second one is measured."""
        if self.global_step != MEASURED_STEP:
            return super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        kept = self._kept(batch)
        with PeakMemory(self.device, kept) as memory:
            outputs = super().training_step(batch, batch_idx)
        kept_bytes = sum(tensor.nbytes for tensor in kept)
        self.memory = {
            "memory/peak_mb": memory.peak / 2**20,
            "memory/kept_mb": kept_bytes / 2**20,
        }
        return outputs

    def on_train_epoch_end(self) -> None:
        """Logs the memory with the epoch's measures."""
        super().on_train_epoch_end()
        self.log_dict(self.memory)

    def _kept(self, batch: Batch) -> list[Tensor]:
        """All tensors that outlive a step."""
        optimizer: Any = self.optimizers()
        states = [value for state in optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *batch, *states]
        if isinstance(self.method, LocalLearning):
            tensors += [*self.method.auxiliary.parameters(), *self.method.auxiliary.buffers()]
        return [tensor for tensor in tensors if isinstance(tensor, Tensor)]
