"""Supervised training as one readable step: loss, backward, clip, method, update, schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from repro.errors import UserError, did_you_mean
from repro.toolbox.method import Batch, Method, OptimizerFactory
from repro.toolbox.schedules import watched

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


class RunningLoss:
    """The mean of the losses so far, summed where they are: no step waits for a number."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, loss: Tensor) -> None:
        """Adds a step's detached loss."""
        self.total = self.total + loss
        self.count += 1

    def take(self) -> Tensor | float:
        """Returns the mean and starts anew."""
        mean = self.total / max(1, self.count)
        self.total, self.count = 0.0, 0
        return mean

    def state(self) -> tuple[Tensor | float, int]:
        """What a checkpoint keeps."""
        return self.total, self.count

    def restore(self, state: tuple[Tensor | float, int]) -> None:
        """Takes over a `state`."""
        self.total, self.count = state


def step_plainly(optimizer: Any) -> None:
    """Does what Lightning's ``optimizer.step()`` does where no loss is scaled, at less cost.

    Args:
        optimizer: what a module's ``self.optimizers()`` returns.
    """
    optimizer._on_before_step()
    optimizer.optimizer.step()
    optimizer._on_after_step()


class Supervised(pl.LightningModule):
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
    """

    resumes_mid_epoch = True  # its whole state is in its checkpoints, at any step

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: OptimizerFactory,
        schedule: Callable[..., LRScheduler],
        task: str = "classification",
        clip_norm: float | None = None,
        log_every: int = 50,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise UserError(f"There is no task '{task}'.{did_you_mean(task, TASKS)}")
        if clip_norm is not None and clip_norm <= 0:
            raise UserError(f"training.clip_norm is a positive number or null, not {clip_norm}.")
        self.automatic_optimization = False
        self.model = model
        self.method = method
        self.optimizer_factory = optimizer
        self.schedule = schedule
        self.measure = TASKS[task]
        self.training_loss = LOSSES[task]
        self.task = task
        self.clip_norm = clip_norm
        self.log_every = log_every
        self.running_loss = RunningLoss()
        self.evaluation: dict[str, MeanMetric] = {}
        self.method_state: dict[str, Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        output: Tensor = self.model(x)
        return output

    def loss(self, batch: Batch) -> Tensor:
        """The mean training loss of a batch."""
        inputs, target = batch
        return self.training_loss(self.model(inputs), target)

    def configure_optimizers(self) -> Any:
        """The method's optimizer, and the schedule over all steps of this training."""
        self.method.attach(self.model)
        optimizer = self.method.optimizer(self.model, self.optimizer_factory)
        scheduler = self.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def on_train_start(self) -> None:
        """Joins the method to data-parallel training, and gives it back its resumed state."""
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "hardware.precision=16-mixed scales the loss, and clipping and methods would see "
                "the scale: use bf16-mixed."
            )
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

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One update."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = self.method.backward(self.loss, batch, self._backward)
        self.method.clip(self.model.parameters(), self.clip_norm)
        self.method.before_step(self.model)
        step_plainly(optimizer)
        scheduler: Any = self.lr_schedulers()
        if watched(scheduler) is None:
            scheduler.step()
        self.method.after_step(self.model)

        self.running_loss.add(loss)
        if self.global_step % self.log_every == 0:
            self._log_now({"train/step_loss": float(loss)})
        return {"loss": loss}

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean training loss and what the method measured."""
        mean = self.running_loss.take()
        self.log("train/loss", mean, sync_dist=self.trainer.world_size > 1)
        self.log_dict(self.method.metrics())

    def on_validation_start(self) -> None:
        """Starts from empty metrics and, for recurrent models, from a fresh state."""
        self.evaluation = {}
        self._reset_model_state()

    on_test_start = on_validation_start

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulates the validation measures."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulates the test measures."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation measures, and lets a schedule that watches one see it."""
        measured = self._log_evaluation("val")
        # Not `trainer.training`: that is false while a fit validates.
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            scheduler: Any = self.lr_schedulers()
            name = watched(scheduler)
            if name is None:
                return
            if name not in measured:
                raise UserError(
                    f"schedule.watch={name}, but validation measures {', '.join(measured)}."
                    + did_you_mean(name, measured)
                )
            scheduler.step(float(measured[name]))

    def on_test_epoch_end(self) -> None:
        """Logs the test measures."""
        self._log_evaluation("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resumed run needs beyond weights, optimizer and schedule."""
        checkpoint["method"] = self.method.state_dict()
        checkpoint["loss_so_far"] = self.running_loss.state()
        checkpoint["memory"] = getattr(self.model, "memory", None)  # of stateful recurrent models

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the running mean of the loss; the method follows once it is attached."""
        self.method_state = checkpoint["method"]
        self.running_loss.restore(checkpoint["loss_so_far"])
        if checkpoint["memory"] is not None:
            self.model.memory = checkpoint["memory"]

    def _backward(self, loss: Tensor) -> None:
        if self.trainer.world_size == 1:  # where Lightning only adds hooks that nobody uses
            loss.backward()
        else:
            self.manual_backward(loss)

    def _evaluate(self, batch: Batch) -> None:
        inputs, target = batch
        weight = target.numel() if self.task == "language" else len(target)
        for name, value in self.measure(self.model(inputs), target).items():
            if name not in self.evaluation:
                self.evaluation[name] = MeanMetric().to(self.device)
            self.evaluation[name].update(value, weight)

    def _log_evaluation(self, split: str) -> dict[str, Tensor]:
        measured = {name: metric.compute() for name, metric in self.evaluation.items()}
        if self.task == "language":
            measured["perplexity"] = measured["loss"].exp()
        self.log_dict({f"{split}/{name}": value for name, value in measured.items()})
        return measured

    def _log_now(self, values: dict[str, float]) -> None:
        for logger in self.loggers:
            # Lightning numbers an epoch's row by its last step, and steps from zero.
            logger.log_metrics(values, step=self.global_step - 1)

    def _reset_model_state(self) -> None:
        reset = getattr(self.model, "reset_state", None)
        if reset is not None:
            reset()
