"""Supervised training that counts what local rules promise: memory, work, epochs to an accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from repro.knobs import Count, Share, checked
from repro.methods.tpsgd import TargetProjection
from repro.models import MLP
from repro.toolbox.costs import CountOperations, PeakMemory, SavedForBackward
from repro.toolbox.method import Batch, Method
from repro.training.procedure import Number
from repro.training.supervised import Supervised

COUNTED_STEP = 1  # the second: all that a rule makes once is there by then
MOST_FOR_MEANS = 5000  # training examples that class means are taken of


class LocalRules(Supervised):
    """Adds to `Supervised` what claims about local rules read.

    Args:
        *args: see `Supervised`.
        target_accuracy: validation accuracy to whose first epoch is counted.
        meter: the run's method once more, for measuring memory on networks of other depths.
        memory_depths: hidden layers of these networks; empty: memory is not measured.
        memory_width: width of these layers.
        memory_batch: examples of the batch they are trained on.
        **kwargs: see `Supervised`.

    Raises:
        UserError: a knob is out of range.
    """

    METRICS: ClassVar = {
        "val/epochs_to_target": "epochs until validation first shows the target accuracy; one more "
        "than there are where it never does",
        "val/reached_target": "1 if it does, else 0",
        "cost/multiplications": "of a training step, linear layers and elementwise products "
        "(networks without convolutions)",
        "memory/saved_kb_depth_*": "most that autograd keeps at one time of a step, without "
        "parameters, of a perceptron with so many hidden layers",
        "memory/peak_kb_depth_*": "peak of all tensor memory that a step adds to parameters and "
        "batch, likewise; the allocator's on a GPU",
        "memory/saved_exponent": "slope of log saved bytes against log depth",
        "memory/peak_exponent": "slope of log peak bytes against log depth",
    }
    KEPT: ClassVar = ("counts", "reached_epoch")

    @checked
    def __init__(
        self,
        *args: Any,
        target_accuracy: Share,
        meter: Method,
        memory_depths: Sequence[Count],
        memory_width: Count,
        memory_batch: Count,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.target_accuracy = target_accuracy
        self.meter = meter
        self.memory_depths = list(memory_depths)
        self.memory_width = memory_width
        self.memory_batch = memory_batch
        self.counts: dict[str, float] = {}
        self.reached_epoch: int | None = None

    def on_train_start(self) -> None:
        """Gives the method its class means if it asks for them, and measures memory."""
        super().on_train_start()
        method = self.method
        if isinstance(method, TargetProjection) and method.lacks_targets:
            x, labels = (part[:MOST_FOR_MEANS] for part in self.data.splits["train"])
            x = x if self.data.normalise is None else self.data.normalise(x)
            method.fit_targets(x.to(self.device), labels.to(self.device))
        if self.memory_depths and not self.counts:
            self.counts = self.memory()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update; the second one is counted."""
        convolves = any(isinstance(part, nn.Conv2d) for part in self.model.modules())
        if self.global_step != COUNTED_STEP or convolves:
            return super().training_step(batch, batch_idx)
        with CountOperations() as counted:
            outputs = super().training_step(batch, batch_idx)
        self.counts["cost/multiplications"] = counted.multiplications
        return outputs

    def on_train_epoch_end(self) -> None:
        """Logs what was counted with the epoch's measures."""
        super().on_train_epoch_end()
        self.log_dict(self.counts)

    def log_measured(self) -> Mapping[str, Number]:
        """Notes the first validation that shows the target accuracy."""
        measured = super().log_measured()
        if self.split == "val" and "accuracy" in measured:
            epoch = self.current_epoch + 1
            if self.reached_epoch is None and measured["accuracy"] >= self.target_accuracy:
                self.reached_epoch = epoch
            reached = self.reached_epoch is not None
            self.log("val/reached_target", float(reached))
            self.log("val/epochs_to_target", float(self.reached_epoch or epoch + 1))
        return measured

    def memory(self) -> dict[str, float]:
        """What a step takes, for perceptrons of all depths; on the run's device."""
        measured: dict[str, float] = {}
        for name in ("saved", "peak"):
            sizes = []
            for depth in self.memory_depths:
                size = self._step_bytes(depth)[name]
                measured[f"memory/{name}_kb_depth_{depth}"] = size / 1024
                sizes.append(size)
            if len(sizes) > 1:
                slope = np.polyfit(np.log(self.memory_depths), np.log(sizes), 1)[0]
                measured[f"memory/{name}_exponent"] = float(slope)
        return measured

    def _step_bytes(self, depth: int) -> dict[str, int]:
        """Bytes of the second step: ``saved`` for backward passes, and ``peak`` of all it adds."""
        width = self.memory_width
        with torch.random.fork_rng(devices=[]):  # the run's own numbers stay what they were
            torch.manual_seed(0)
            model = MLP([width], 10, [width] * depth, "tanh").to(self.device)
            x = torch.randn(self.memory_batch, width, device=self.device)
            labels = torch.arange(self.memory_batch, device=self.device) % 10
        self.meter.attach(model)
        if isinstance(self.meter, TargetProjection) and self.meter.targets == "class_means":
            self.meter.fit_targets(x, labels)
        optimizer = self.meter.optimizer(model, lambda groups: torch.optim.SGD(groups, lr=1e-3))

        def loss_of(batch: Batch) -> Tensor:
            return self.training_loss(model(batch[0]), batch[1])

        def step() -> None:
            optimizer.zero_grad()
            self.meter.backward(loss_of, (x, labels), Tensor.backward)
            optimizer.step()
            optimizer.zero_grad()

        step()  # draws projections
        there = [*model.parameters(), x, labels]
        with SavedForBackward(there) as saved:
            step()
        before = 0
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.device)
        with PeakMemory(self.device) as memory:
            step()
        return {"saved": saved.peak, "peak": memory.peak - before}
