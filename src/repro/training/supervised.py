"""Supervised training as one readable step: loss, backward, clip, method, update, schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from repro.errors import UserError, did_you_mean
from repro.toolbox.method import Batch, Method, OptimizerFactory
from repro.training.procedure import Evaluated, ScheduleFactory

Measures = Callable[[Tensor, Tensor], dict[str, Tensor]]


def regression_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of outputs against targets of the same number of elements."""
    return F.mse_loss(output, target.view_as(output))


def language_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy per token of logits (B, T, V) against next tokens (B, T)."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def classification(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of logits (B, C) and top-1 accuracy against labels (B,)."""
    hits = (output.argmax(1) == target).float().mean()
    return {"loss": F.cross_entropy(output, target), "accuracy": hits}


def regression(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The mean squared error."""
    return {"loss": regression_loss(output, target)}


def language(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The cross-entropy per token."""
    return {"loss": language_loss(output, target)}


TASKS: dict[str, Measures] = {
    "classification": classification,
    "regression": regression,
    "language": language,
}
# What training minimises, without the measures that cost time at every step.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classification": F.cross_entropy,
    "regression": regression_loss,
    "language": language_loss,
}


class Supervised(Evaluated):
    """Trains a model on (input, target) batches, with a method that may change the update.

    Optimisation is manual, in the Lightning sense: the step below is the whole story.

    Args:
        model: maps a batch of inputs to outputs.
        method: what changes about the update (`repro.toolbox.method.Method` changes nothing).
        optimizer: called with parameters, returns an optimizer.
        schedule: called with the optimizer and the number of steps, returns a scheduler.
        task: ``classification``, ``regression`` or ``language``.
        clip_norm: largest global gradient norm, or None.
        log_every: steps between rows of the training loss.

    Raises:
        UserError: there is no such task, or ``clip_norm`` is not positive.
    """

    METRICS: ClassVar = {
        "train/loss": "mean training loss of the epoch",
        "val/loss": "mean validation loss",
        "test/loss": "mean test loss",
        "val/accuracy": "share of right validation examples, in [0, 1] (classification)",
        "test/accuracy": "share of right test examples, in [0, 1] (classification)",
        "val/perplexity": "exponential of the validation loss (language)",
        "test/perplexity": "exponential of the test loss (language)",
    }

    optimizer_factory: OptimizerFactory
    parts = 1  # of a batch, see `repro.training.speed.accumulate`

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        task: str = "classification",
        clip_norm: float | None = None,
        log_every: int = 50,
    ) -> None:
        super().__init__(optimizer, schedule, clip_norm, log_every)
        if task not in TASKS:
            raise UserError(f"There is no task '{task}'.{did_you_mean(task, TASKS)}")
        self.model = model
        self.method = method
        self.measure = TASKS[task]
        self.training_loss = LOSSES[task]
        self.task = task
        self.method_state: dict[str, Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        output: Tensor = self.model(x)
        return output

    def loss(self, batch: Batch) -> Tensor:
        """The mean training loss of a batch."""
        inputs, target = batch
        return self.training_loss(self.model(inputs), target)

    def accumulated_loss(self, batch: Batch) -> Tensor:
        """The mean loss of a batch, of which all parts but the last have gone back already.

        In this way no more than one of the `parts` is kept for the way back.

        Raises:
            UserError: the batch is no tuple of tensors that could be cut.
        """
        if not (isinstance(batch, tuple | list) and all(isinstance(t, Tensor) for t in batch)):
            raise UserError(
                "hardware.accumulate cuts batches of tensors, which this data set has not."
            )
        total = torch.zeros((), device=self.device)
        parts = zip(*(tensor.chunk(self.parts) for tensor in batch), strict=True)
        *early, last = map(getattr(batch, "_make", tuple), parts)  # named tuples keep their names
        for part in early:
            loss = len(part[0]) / len(batch[0]) * self.loss(part)
            self._backward(loss)
            total = total + loss.detach()
        return total + len(last[0]) / len(batch[0]) * self.loss(last)

    def configure_optimizers(self) -> Any:
        """The method's optimizer, and the schedule over all steps of this training."""
        self.method.attach(self.model)
        return self.scheduled(self.method.optimizer(self.model, self.optimizer_factory))

    def on_train_start(self) -> None:
        """Joins the method to data-parallel training, and gives it back its resumed state."""
        super().on_train_start()
        if self.trainer.world_size > 1:
            wrapped = self.trainer.strategy.model
            assert wrapped is not None
            self.method.register(wrapped)
        if self.method_state is not None:
            self.method.load_state_dict(self.method_state)
            self.method_state = None

    def on_train_epoch_start(self) -> None:
        """Tells the method the epoch, and resets stateful models."""
        self.method.start_epoch(self.current_epoch)
        self._reset_model_state()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss_of = self.loss if self.parts == 1 else self.accumulated_loss
        loss = self.method.backward(loss_of, batch, self._backward)
        self.method.clip(self.model.parameters(), self.clip_norm)
        self.method.before_step(self.model)
        self.tick()
        self.method.after_step(self.model)

        self.note_loss(loss)
        return {"loss": loss}

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean training loss and what the method measured."""
        mean = self.running_loss.take()
        self.log("train/loss", mean, sync_dist=self.trainer.world_size > 1)
        self.log_dict(self.method.metrics())

    def on_validation_start(self) -> None:
        """Starts from empty means and, for recurrent models, from a fresh state."""
        super().on_validation_start()
        self._reset_model_state()

    @override
    def evaluate(self, batch: Batch, batch_idx: int) -> None:
        """Notes the measures of the task."""
        inputs, target = batch
        weight = target.numel() if self.task == "language" else len(target)
        self.note(self.measure(self.model(inputs), target), weight)

    def measured(self) -> dict[str, Tensor]:
        """The means; in language modelling also the perplexity."""
        measured = super().measured()
        if self.task == "language":
            measured["perplexity"] = measured["loss"].exp()
        return measured

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resumed run needs beyond weights, optimizer and schedule."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["method"] = self.method.state_dict()
        checkpoint["memory"] = getattr(self.model, "memory", None)  # of stateful recurrent models

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it; the method follows once it is attached."""
        super().on_load_checkpoint(checkpoint)
        self.method_state = checkpoint["method"]
        if checkpoint["memory"] is not None:
            self.model.memory = checkpoint["memory"]

    def _backward(self, loss: Tensor) -> None:
        if self.trainer.world_size == 1:  # where Lightning only adds hooks that nobody uses
            loss.backward()
        else:
            self.manual_backward(loss)

    def _reset_model_state(self) -> None:
        reset = getattr(self.model, "reset_state", None)
        if reset is not None:
            reset()
